//! XML-RPC as the toolstack speaks it: strings and 64-bit integers are untyped values, every answer but one is a
//! struct with `Status`, and there are no faults.

use super::{Request, value::Value};
use crate::failure::Outcome;
use roxmltree::Node;

/// Decodes a `methodCall`. The error text is for the 500 page.
pub fn decode(body: &[u8]) -> Result<Request, String> {
    let text = std::str::from_utf8(body).map_err(|e| e.to_string())?;
    let document = roxmltree::Document::parse(text).map_err(|e| e.to_string())?;
    let root = document.root_element();
    if !root.has_tag_name("methodCall") {
        return Err(format!("expected methodCall, found {}", root.tag_name().name()));
    }
    let method = child(root, "methodName")?.text().unwrap_or_default().trim().to_owned();
    let params = match child(root, "params") {
        Err(_) => Vec::new(),
        Ok(list) => list
            .children()
            .filter(|n| n.has_tag_name("param"))
            .map(|param| value_of(child(param, "value")?))
            .collect::<Result<_, _>>()?,
    };
    Ok(Request { method, params })
}

/// Decodes a document whose root is one `<value>`, as `ova.xml` is.
pub fn decode_value(text: &str) -> Result<Value, String> {
    let document = roxmltree::Document::parse(text).map_err(|e| e.to_string())?;
    let root = document.root_element();
    if !root.has_tag_name("value") {
        return Err(format!("expected value, found {}", root.tag_name().name()));
    }
    value_of(root)
}

/// Encodes a reply in its `Status` envelope. `bare` leaves the envelope out (`system.listMethods`).
pub fn encode(outcome: &Outcome<Value>, bare: bool) -> Vec<u8> {
    let mut out = String::from("<?xml version=\"1.0\"?><methodResponse><params><param>");
    match outcome {
        Ok(value) if bare => write_value(&mut out, value),
        Ok(value) => {
            out.push_str("<value><struct><member><name>Status</name><value>Success</value></member>");
            out.push_str("<member><name>Value</name>");
            write_value(&mut out, value);
            out.push_str("</member></struct></value>");
        }
        Err(failure) => {
            out.push_str("<value><struct><member><name>Status</name><value>Failure</value></member>");
            out.push_str("<member><name>ErrorDescription</name>");
            write_value(&mut out, &Value::texts(failure.list().iter().cloned()));
            out.push_str("</member></struct></value>");
        }
    }
    out.push_str("</param></params></methodResponse>");
    out.into_bytes()
}

/// One value as an XML fragment; also the form of `task.result`.
pub fn fragment(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value);
    out
}

fn write_value(out: &mut String, value: &Value) {
    out.push_str("<value>");
    match value {
        Value::Nil => out.push_str("<nil/>"),
        Value::Bool(b) => out.push_str(if *b { "<boolean>1</boolean>" } else { "<boolean>0</boolean>" }),
        Value::Int(n) => out.push_str(&n.to_string()),
        Value::Count(n) => out.push_str(&format!("<i4>{n}</i4>")),
        Value::Float(f) => out.push_str(&format!("<double>{}</double>", significant(*f))),
        Value::Text(text) => escape(out, text),
        Value::Date(text) => out.push_str(&format!("<dateTime.iso8601>{text}</dateTime.iso8601>")),
        Value::List(items) => {
            out.push_str("<array><data>");
            items.iter().for_each(|item| write_value(out, item));
            out.push_str("</data></array>");
        }
        Value::Map(map) => {
            out.push_str("<struct>");
            for (name, member) in map {
                out.push_str("<member><name>");
                escape(out, name);
                out.push_str("</name>");
                write_value(out, member);
                out.push_str("</member>");
            }
            out.push_str("</struct>");
        }
    }
    out.push_str("</value>");
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            // XML 1.0 has no spelling for these; the toolstack drops them too.
            c if c.is_control() && !matches!(c, '\n' | '\r' | '\t') => {}
            c => out.push(c),
        }
    }
}

/// Sixteen significant digits without trailing zeros, in the manner of printf's `%.16g`.
fn significant(f: f64) -> String {
    if f == 0.0 || !f.is_finite() {
        return if f == 0.0 { "0".into() } else { f.to_string() };
    }
    let scientific = format!("{f:.15e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("the e format always has an exponent");
    let exponent: i32 = exponent.parse().expect("the e format writes a decimal exponent");
    let trim = |s: &str| {
        if s.contains('.') { s.trim_end_matches('0').trim_end_matches('.').to_owned() } else { s.to_owned() }
    };
    if (-4..16).contains(&exponent) {
        let decimals = usize::try_from(15 - exponent).expect("the exponent is below 16");
        trim(&format!("{f:.decimals$}"))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trim(mantissa), exponent.abs())
    }
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Result<Node<'a, 'i>, String> {
    node.children()
        .find(|n| n.has_tag_name(name))
        .ok_or_else(|| format!("{} without {name}", node.tag_name().name()))
}

fn value_of(node: Node<'_, '_>) -> Result<Value, String> {
    let Some(typed) = node.children().find(Node::is_element) else {
        return Ok(Value::text(all_text(node)));
    };
    let text = all_text(typed);
    let number = text.trim();
    match typed.tag_name().name() {
        "string" => Ok(Value::Text(text)),
        "int" | "i4" | "i8" => number.parse().map(Value::Int).map_err(|_| format!("bad integer {number:?}")),
        "boolean" => match number {
            "1" | "true" => Ok(Value::Bool(true)),
            "0" | "false" => Ok(Value::Bool(false)),
            other => Err(format!("bad boolean {other:?}")),
        },
        "double" => number.parse().map(Value::Float).map_err(|_| format!("bad double {number:?}")),
        "dateTime.iso8601" => Ok(Value::Date(number.to_owned())),
        "nil" => Ok(Value::Nil),
        "base64" => Ok(Value::Text(text)),
        "array" => child(typed, "data")?
            .children()
            .filter(|n| n.has_tag_name("value"))
            .map(value_of)
            .collect::<Result<_, _>>()
            .map(Value::List),
        "struct" => typed
            .children()
            .filter(|n| n.has_tag_name("member"))
            .map(|member| Ok((all_text(child(member, "name")?), value_of(child(member, "value")?)?)))
            .collect::<Result<_, String>>()
            .map(Value::Map),
        other => Err(format!("unknown value type {other}")),
    }
}

fn all_text(node: Node<'_, '_>) -> String {
    node.children().filter(Node::is_text).filter_map(|n| n.text()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;

    fn text(outcome: Outcome<Value>, bare: bool) -> String {
        String::from_utf8(encode(&outcome, bare)).unwrap()
    }

    #[test]
    fn answers_carry_status_and_untyped_strings() {
        assert_eq!(
            text(Ok(Value::text("a<b&c")), false),
            "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct>\
             <member><name>Status</name><value>Success</value></member>\
             <member><name>Value</name><value>a&lt;b&amp;c</value></member>\
             </struct></value></param></params></methodResponse>"
        );
        assert_eq!(
            text(Err(Failure::new("UUID_INVALID", ["VM", "x"])), false),
            "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct>\
             <member><name>Status</name><value>Failure</value></member>\
             <member><name>ErrorDescription</name><value><array><data><value>UUID_INVALID</value><value>VM</value>\
             <value>x</value></data></array></value></member>\
             </struct></value></param></params></methodResponse>"
        );
        assert_eq!(
            text(Ok(Value::texts(["VM.start"])), true),
            "<?xml version=\"1.0\"?><methodResponse><params><param><value><array><data><value>VM.start</value>\
             </data></array></value></param></params></methodResponse>"
        );
    }

    #[test]
    fn scalars_follow_the_encoding_table() {
        assert_eq!(fragment(&Value::Int(-9_223_372_036_854_775_808)), "<value>-9223372036854775808</value>");
        assert_eq!(fragment(&Value::Bool(true)), "<value><boolean>1</boolean></value>");
        assert_eq!(fragment(&Value::Count(3)), "<value><i4>3</i4></value>");
        assert_eq!(fragment(&Value::Float(0.1)), "<value><double>0.1</double></value>");
        assert_eq!(fragment(&Value::Float(1.0 / 3.0)), "<value><double>0.3333333333333333</double></value>");
        assert_eq!(fragment(&Value::Float(1e20)), "<value><double>1e+20</double></value>");
        assert_eq!(
            fragment(&Value::Date("20240420T12:00:00Z".into())),
            "<value><dateTime.iso8601>20240420T12:00:00Z</dateTime.iso8601></value>"
        );
        assert_eq!(fragment(&Value::Map(Default::default())), "<value><struct></struct></value>");
        assert_eq!(fragment(&Value::List(vec![])), "<value><array><data></data></array></value>");
        assert_eq!(fragment(&Value::void()), "<value></value>");
    }

    #[test]
    fn calls_are_read_in_every_spelling_clients_use() {
        let body = b"<?xml version='1.0'?>\n<methodCall>\n<methodName>VM.start</methodName>\n<params>\n<param>\n\
            <value><string>OpaqueRef:s</string></value>\n</param>\n<param>\n<value>plain &amp; simple</value>\n</param>\n\
            <param><value><boolean>1</boolean></value></param>\n<param><value><int>12</int></value></param>\
            <param><value><double>60.1</double></value></param><param><value><nil/></value></param>\
            <param><value><struct>\n<member>\n<name>k</name>\n<value><array><data>\n<value>v</value>\n</data></array>\
            </value>\n</member>\n</struct></value></param></params></methodCall>";
        let request = decode(body).unwrap();
        assert_eq!(request.method, "VM.start");
        let map = [("k".to_owned(), Value::List(vec![Value::text("v")]))].into_iter().collect();
        let expected = vec![
            Value::text("OpaqueRef:s"),
            Value::text("plain & simple"),
            Value::Bool(true),
            Value::Int(12),
            Value::Float(60.1),
            Value::Nil,
            Value::Map(map),
        ];
        assert_eq!(request.params, expected);
        assert!(decode(b"<methodResponse/>").is_err());
        assert!(decode(b"not xml").is_err());
    }
}
