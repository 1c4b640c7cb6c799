//! XML-RPC as hosts speak it: the fallback, and the form of a task's result.
//!
//! A reply is a struct with `Status` and `Value` or `ErrorDescription`. `system.listMethods` answers with
//! its bare list. Integers go out as plain text, as every host reads them.

use std::fmt::Write as _;

use roxmltree::{Document, Node, ParsingOptions};

use crate::value::Value;

/// Deepest nesting of values that is read. Real records need five levels.
const DEPTH_LIMIT: usize = 64;

/// A decoded reply of either encoding.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Success(Value),
    Failure { code: String, params: Vec<String> },
}

/// A call as a request body. The error names a text that XML cannot carry.
pub(crate) fn encode(method: &str, params: &[Value]) -> Result<Vec<u8>, String> {
    let mut out = String::from("<?xml version=\"1.0\"?><methodCall><methodName>");
    escape(method, &mut out)?;
    out.push_str("</methodName><params>");
    for param in params {
        out.push_str("<param>");
        write_value(param, &mut out)?;
        out.push_str("</param>");
    }
    out.push_str("</params></methodCall>");
    Ok(out.into_bytes())
}

/// Reads a reply. The error says what is wrong with it.
pub(crate) fn decode(body: &[u8]) -> Result<Reply, String> {
    let text = std::str::from_utf8(body).map_err(|_| "the reply is not UTF-8 text".to_owned())?;
    let document = parse(text)?;
    let root = document.root_element();
    if !root.has_tag_name("methodResponse") {
        return Err(format!("the reply is <{}>, not <methodResponse>", root.tag_name().name()));
    }
    let top = root.first_element_child().ok_or("the reply is empty")?;
    let value = top.descendants().find(|node| node.has_tag_name("value")).ok_or("the reply has no value")?;
    let value = read_value(value, 0)?;
    match top.has_tag_name("fault") {
        true => fault(&value),
        false => envelope(value),
    }
}

/// Reads a task's result: a `<value>`, or nothing for a call without a result.
pub(crate) fn decode_result(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(Value::Nil);
    }
    let document = parse(text)?;
    let root = document.root_element();
    if !root.has_tag_name("value") {
        return Err(format!("the result is <{}>, not <value>", root.tag_name().name()));
    }
    read_value(root, 0)
}

fn parse(text: &str) -> Result<Document<'_>, String> {
    Document::parse_with_options(text, ParsingOptions::default()).map_err(|error| error.to_string())
}

fn envelope(value: Value) -> Result<Reply, String> {
    let Value::Struct(mut members) = value else { return Ok(Reply::Success(value)) };
    match members.get("Status").and_then(Value::as_str) {
        Some("Success") => Ok(Reply::Success(members.remove("Value").unwrap_or_default())),
        Some("Failure") => {
            let Some(Value::Array(items)) = members.remove("ErrorDescription") else {
                return Err("the failure has no description".to_owned());
            };
            let mut texts = items.into_iter().map(|item| match item {
                Value::String(text) => text,
                other => format!("{other:?}"),
            });
            let code = texts.next().ok_or("the failure's description is empty")?;
            Ok(Reply::Failure { code, params: texts.collect() })
        }
        _ => Err("the reply has no status".to_owned()),
    }
}

/// XAPI reports its own errors in the envelope; a fault comes from the layer below.
fn fault(value: &Value) -> Result<Reply, String> {
    let text = value.get("faultString").and_then(Value::as_str).unwrap_or("no reason given");
    Ok(Reply::Failure { code: "FAULT".to_owned(), params: vec![text.to_owned()] })
}

fn read_value(value: Node<'_, '_>, depth: usize) -> Result<Value, String> {
    if depth > DEPTH_LIMIT {
        return Err(format!("values are nested more than {DEPTH_LIMIT} deep"));
    }
    let Some(inner) = value.first_element_child() else {
        return Ok(Value::String(text_of(value)));
    };
    match inner.tag_name().name() {
        "string" | "dateTime.iso8601" | "base64" => Ok(Value::String(text_of(inner))),
        "int" | "i4" | "i8" => {
            let text = text_of(inner);
            text.trim().parse().map(Value::Int).map_err(|_| format!("integer is {text:?}"))
        }
        "double" => {
            let text = text_of(inner);
            text.trim().parse().map(Value::Float).map_err(|_| format!("double is {text:?}"))
        }
        "boolean" => match text_of(inner).trim() {
            "0" => Ok(Value::Bool(false)),
            "1" => Ok(Value::Bool(true)),
            other => Err(format!("boolean is {other:?}")),
        },
        "nil" => Ok(Value::Nil),
        "array" => {
            let Some(list) = inner.first_element_child() else { return Ok(Value::Array(Vec::new())) };
            let items = list.children().filter(Node::is_element);
            Ok(Value::Array(items.map(|item| read_value(item, depth + 1)).collect::<Result<_, _>>()?))
        }
        "struct" => {
            let members = inner.children().filter(Node::is_element).map(|member| {
                let part = |tag| member.children().find(|child| child.has_tag_name(tag));
                let name = part("name").ok_or("a struct member has no name")?;
                let value = part("value").ok_or("a struct member has no value")?;
                Ok((text_of(name), read_value(value, depth + 1)?))
            });
            Ok(Value::Struct(members.collect::<Result<_, String>>()?))
        }
        other => Err(format!("unknown type <{other}>")),
    }
}

fn text_of(node: Node<'_, '_>) -> String {
    node.children().filter(Node::is_text).filter_map(|child| child.text()).collect()
}

fn write_value(value: &Value, out: &mut String) -> Result<(), String> {
    out.push_str("<value>");
    match value {
        Value::Nil => out.push_str("<nil/>"),
        Value::Bool(flag) => {
            out.push_str(if *flag { "<boolean>1</boolean>" } else { "<boolean>0</boolean>" })
        }
        Value::Int(number) => write!(out, "{number}").expect("a String takes every write"),
        Value::Float(number) => write!(out, "<double>{number}</double>").expect("a String takes every write"),
        Value::String(text) => escape(text, out)?,
        Value::Array(items) => {
            out.push_str("<array><data>");
            items.iter().try_for_each(|item| write_value(item, out))?;
            out.push_str("</data></array>");
        }
        Value::Struct(members) => {
            out.push_str("<struct>");
            for (name, value) in members {
                out.push_str("<member><name>");
                escape(name, out)?;
                out.push_str("</name>");
                write_value(value, out)?;
                out.push_str("</member>");
            }
            out.push_str("</struct>");
        }
    }
    out.push_str("</value>");
    Ok(())
}

fn escape(text: &str, out: &mut String) -> Result<(), String> {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Parsers turn a bare carriage return into a line feed.
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(c),
            _ if c < ' ' || c == '\u{fffe}' || c == '\u{ffff}' => {
                return Err(format!("the text {text:?} holds {c:?}, which XML cannot carry"));
            }
            other => out.push(other),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::tests::any_value;
    use proptest::prelude::*;

    fn respond(value: &str) -> Result<Reply, String> {
        let body = format!(
            "<?xml version=\"1.0\"?><methodResponse><params><param>{value}</param></params></methodResponse>"
        );
        decode(body.as_bytes())
    }

    #[test]
    fn a_call_has_these_bytes() {
        let params = ["a<b".into(), Value::Int(5), Value::Bool(false), Value::Float(30.0)];
        let body = encode("event.from", &params).expect("plain text");
        assert_eq!(
            String::from_utf8(body).expect("text"),
            "<?xml version=\"1.0\"?><methodCall><methodName>event.from</methodName><params>\
             <param><value>a&lt;b</value></param><param><value>5</value></param>\
             <param><value><boolean>0</boolean></value></param>\
             <param><value><double>30</double></value></param></params></methodCall>"
        );
        assert!(encode("x", &["\u{1}".into()]).is_err());
    }

    #[test]
    fn success_and_failure_are_read() {
        let success = respond(
            "<value><struct><member><name>Status</name><value>Success</value></member>\
             <member><name>Value</name><value><struct><member><name>virtual_size</name><value>8388608</value></member>\
             <member><name>read_only</name><value><boolean>1</boolean></value></member>\
             <member><name>snapshot_time</name><value><dateTime.iso8601>20240420T12:00:00Z</dateTime.iso8601></value>\
             </member><member><name>tags</name><value><array><data/></array></value></member></struct></value></member>\
             </struct></value>",
        );
        let Ok(Reply::Success(record)) = success else { panic!("{success:?}") };
        assert_eq!(record.get("virtual_size").and_then(Value::as_i64), Some(8_388_608));
        assert_eq!(record.get("read_only"), Some(&Value::Bool(true)));
        assert_eq!(record.get("snapshot_time").and_then(Value::as_str), Some("20240420T12:00:00Z"));
        assert_eq!(record.get("tags"), Some(&Value::Array(Vec::new())));

        let failure = respond(
            "<value><struct><member><name>Status</name><value>Failure</value></member><member>\
             <name>ErrorDescription</name><value><array><data><value>VDI_IN_USE</value><value>OpaqueRef:1</value>\
             </data></array></value></member></struct></value>",
        );
        assert_eq!(
            failure,
            Ok(Reply::Failure { code: "VDI_IN_USE".into(), params: vec!["OpaqueRef:1".into()] })
        );
        let methods = respond("<value><array><data><value>VM.start</value></data></array></value>");
        assert_eq!(methods, Ok(Reply::Success(Value::from(vec!["VM.start"]))));
        assert!(respond("<value><struct></struct></value>").is_err());
        assert!(decode(b"<html><body>no</body></html>").is_err());
    }

    #[test]
    fn task_results_are_read() {
        assert_eq!(decode_result(""), Ok(Value::Nil));
        assert_eq!(decode_result("<value>OpaqueRef:1</value>"), Ok("OpaqueRef:1".into()));
        assert_eq!(
            decode_result("<value><array><data><value>OpaqueRef:1</value></data></array></value>"),
            Ok(Value::from(vec!["OpaqueRef:1"]))
        );
        assert!(decode_result("OpaqueRef:1").is_err());
    }

    #[test]
    fn a_document_type_is_refused() {
        let bomb = b"<!DOCTYPE x [<!ENTITY a \"aaaa\">]><methodResponse>&a;</methodResponse>";
        assert!(decode(bomb).is_err());
    }

    #[test]
    fn deep_nesting_is_refused() {
        let nested = |depth: usize| {
            format!("{}x{}", "<value><array><data>".repeat(depth), "</data></array></value>".repeat(depth))
        };
        assert!(decode_result(&nested(60)).is_ok());
        assert!(decode_result(&nested(100)).is_err());
        assert!(decode_result(&"<value><array><data>".repeat(200_000)).is_err());
    }

    /// What reading gives back: integers become text.
    fn as_read(value: Value) -> Value {
        match value {
            Value::Int(number) => Value::String(number.to_string()),
            Value::Array(items) => Value::Array(items.into_iter().map(as_read).collect()),
            Value::Struct(members) => {
                Value::Struct(members.into_iter().map(|(key, value)| (key, as_read(value))).collect())
            }
            other => other,
        }
    }

    proptest! {
        #[test]
        fn values_round_trip(value in any_value()) {
            let mut text = String::new();
            write_value(&value, &mut text).expect("plain text");
            prop_assert_eq!(decode_result(&text), Ok(as_read(value)));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,100}") {
            let _ = decode(&bytes);
            let _ = decode_result(&text);
        }
    }
}
