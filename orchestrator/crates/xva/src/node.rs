//! The values of `ova.xml`: one XML-RPC `<value>` without an envelope.
//!
//! The file format owns this little codec, apart from any client's: who reads XVAs, such as a lab pool, need
//! not share an encoder with who talks to pools. Struct members keep their order, so that the bytes are
//! stable. Integers are written as plain text, which every importer reads.

use std::fmt::Write as _;

/// Deepest nesting that is read. Real files need six levels.
const DEPTH_LIMIT: usize = 32;

/// Most XML nodes that are read, a bound on memory.
const NODE_LIMIT: u32 = 4_000_000;

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// String, integer, reference or enumeration. Reading gives doubles and dates as text as well.
    Text(String),
    Bool(bool),
    Double(&'static str),
    Date(&'static str),
    Array(Vec<Node>),
    Struct(Vec<(String, Node)>),
}

impl Node {
    pub(crate) fn text(value: impl Into<String>) -> Self {
        Self::Text(value.into())
    }

    pub(crate) fn number(value: u64) -> Self {
        Self::Text(value.to_string())
    }

    pub(crate) fn empty_set() -> Self {
        Self::Array(Vec::new())
    }

    pub(crate) fn empty_map() -> Self {
        Self::Struct(Vec::new())
    }

    pub(crate) fn record(members: impl IntoIterator<Item = (&'static str, Node)>) -> Self {
        Self::Struct(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    pub(crate) fn map<'a>(entries: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        Self::Struct(entries.into_iter().map(|(key, value)| (key.clone(), Self::text(value))).collect())
    }

    /// Member of a struct.
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        match self {
            Self::Struct(members) => members.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// Text of a scalar.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Double(text) | Self::Date(text) => Some(text),
            _ => None,
        }
    }

    /// The value as XML.
    pub(crate) fn to_xml(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        out.push_str("<value>");
        match self {
            Self::Text(text) => escape(text, out),
            Self::Bool(value) => {
                out.push_str(if *value { "<boolean>1</boolean>" } else { "<boolean>0</boolean>" })
            }
            Self::Double(text) => write!(out, "<double>{text}</double>").expect("a String takes every write"),
            Self::Date(text) => {
                write!(out, "<dateTime.iso8601>{text}</dateTime.iso8601>")
                    .expect("a String takes every write");
            }
            Self::Array(items) => {
                out.push_str("<array><data>");
                items.iter().for_each(|item| item.write(out));
                out.push_str("</data></array>");
            }
            Self::Struct(members) => {
                out.push_str("<struct>");
                for (name, value) in members {
                    out.push_str("<member><name>");
                    escape(name, out);
                    out.push_str("</name>");
                    value.write(out);
                    out.push_str("</member>");
                }
                out.push_str("</struct>");
            }
        }
        out.push_str("</value>");
    }

    /// Reads a document whose root is `<value>`. The error says where and what.
    pub(crate) fn from_xml(text: &str) -> Result<Self, String> {
        let options = roxmltree::ParsingOptions { nodes_limit: NODE_LIMIT, ..Default::default() };
        let document =
            roxmltree::Document::parse_with_options(text, options).map_err(|error| error.to_string())?;
        let root = document.root_element();
        if !root.has_tag_name("value") {
            return Err(format!("the root is <{}>, not <value>", root.tag_name().name()));
        }
        read(root, 0)
    }
}

/// True when XML can carry the text: no control characters but tab and line ends.
pub(crate) fn is_writable(text: &str) -> bool {
    text.chars().all(|c| matches!(c, '\t' | '\n') || (c >= ' ' && c != '\u{fffe}' && c != '\u{ffff}'))
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
}

fn read(value: roxmltree::Node<'_, '_>, depth: usize) -> Result<Node, String> {
    if depth > DEPTH_LIMIT {
        return Err(format!("values are nested more than {DEPTH_LIMIT} deep"));
    }
    let Some(inner) = value.first_element_child() else {
        return Ok(Node::text(text_of(value)));
    };
    match inner.tag_name().name() {
        "string" | "int" | "i4" | "i8" | "double" | "dateTime.iso8601" | "base64" => {
            Ok(Node::text(text_of(inner)))
        }
        "nil" => Ok(Node::text("")),
        "boolean" => match text_of(inner).trim() {
            "0" => Ok(Node::Bool(false)),
            "1" => Ok(Node::Bool(true)),
            other => Err(format!("boolean is {other:?}")),
        },
        "array" => {
            let Some(list) = inner.first_element_child() else { return Ok(Node::empty_set()) };
            let items = list.children().filter(roxmltree::Node::is_element);
            Ok(Node::Array(items.map(|item| read(item, depth + 1)).collect::<Result<_, _>>()?))
        }
        "struct" => {
            let mut members = Vec::new();
            for member in inner.children().filter(roxmltree::Node::is_element) {
                let part = |tag| member.children().find(|child| child.has_tag_name(tag));
                let name = part("name").ok_or("a struct member has no name")?;
                let value = part("value").ok_or("a struct member has no value")?;
                members.push((text_of(name), read(value, depth + 1)?));
            }
            Ok(Node::Struct(members))
        }
        other => Err(format!("unknown type <{other}>")),
    }
}

fn text_of(node: roxmltree::Node<'_, '_>) -> String {
    node.children().filter_map(|child| child.text().filter(|_| child.is_text())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_node() -> impl Strategy<Value = Node> {
        let leaf =
            prop_oneof!["[ -~\u{e4}\n]{0,12}".prop_map(Node::Text), any::<bool>().prop_map(Node::Bool)];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Node::Array),
                proptest::collection::vec(("[a-zA-Z_<&]{1,8}", inner), 0..6).prop_map(Node::Struct),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_round_trip(node in any_node()) {
            prop_assert_eq!(Node::from_xml(&node.to_xml()), Ok(node));
        }

        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = Node::from_xml(&text);
        }
    }

    #[test]
    fn deep_nesting_is_refused_not_overflowed() {
        let open = "<value><array><data>".repeat(100_000);
        assert!(Node::from_xml(&open).is_err());
        let closed =
            format!("{}{}", "<value><array><data>".repeat(100), "</data></array></value>".repeat(100));
        assert!(Node::from_xml(&closed).expect_err("too deep").contains("nested"));
    }

    #[test]
    fn a_document_type_is_refused() {
        let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaa\">]><value>&a;</value>";
        assert!(Node::from_xml(bomb).is_err());
    }
}
