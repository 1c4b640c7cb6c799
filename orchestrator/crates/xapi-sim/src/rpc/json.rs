//! JSON-RPC 1.0 and 2.0 as the toolstack speaks them on one path.
//!
//! No `jsonrpc` member is version 1; `"2.0"` is version 2; anything else, and an `id` that is neither a string nor an
//! integer, is a malformed request that the HTTP layer answers with a 500 page.

use super::{Request, value::Value};
use crate::failure::{Failure, Outcome};
use serde_json::{Map, Number, json};

/// Which of the two reply forms the caller asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `{"result":..., "error":..., "id":...}`
    V1,
    /// `{"jsonrpc":"2.0", ...}`
    V2,
}

/// A decoded JSON-RPC call.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// The call.
    pub request: Request,
    /// The reply form.
    pub version: Version,
    /// Echoed in the reply.
    pub id: serde_json::Value,
}

/// Decodes a request body. The error text is for the 500 page.
pub fn decode(body: &[u8]) -> Result<Envelope, String> {
    let root: serde_json::Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let object = root.as_object().ok_or("the request is not an object")?;
    let version = match object.get("jsonrpc") {
        None => Version::V1,
        Some(v) if v == "2.0" => Version::V2,
        Some(other) => return Err(format!("unknown jsonrpc version {other}")),
    };
    let id = object.get("id").cloned().unwrap_or(serde_json::Value::Null);
    if !(id.is_string() || id.is_i64() || id.is_u64()) {
        return Err("id must be a string or an integer".into());
    }
    let method = object.get("method").and_then(|m| m.as_str()).ok_or("method is missing")?.to_owned();
    let params = match object.get("params") {
        None => Vec::new(),
        Some(serde_json::Value::Array(items)) => items.iter().map(from_json).collect(),
        Some(_) => return Err("params must be an array".into()),
    };
    Ok(Envelope { request: Request { method, params }, version, id })
}

/// Encodes a reply. `error_array` selects the old form of version 2 errors (servers before API 2.8).
pub fn encode(
    version: Version,
    id: &serde_json::Value,
    outcome: &Outcome<Value>,
    error_array: bool,
) -> Vec<u8> {
    let reply = match (version, outcome) {
        (Version::V1, Ok(value)) => json!({"result": to_json(value), "error": null, "id": id}),
        (Version::V1, Err(failure)) => json!({"result": null, "error": failure.list(), "id": id}),
        (Version::V2, Ok(value)) => json!({"jsonrpc": "2.0", "result": to_json(value), "id": id}),
        (Version::V2, Err(failure)) if error_array => {
            json!({"jsonrpc": "2.0", "error": failure.list(), "id": id})
        }
        (Version::V2, Err(failure)) => json!({"jsonrpc": "2.0", "error": error_object(failure), "id": id}),
    };
    reply.to_string().into_bytes()
}

fn error_object(failure: &Failure) -> serde_json::Value {
    json!({"code": 1, "message": failure.code(), "data": &failure.list()[1..]})
}

/// A value as JSON.
pub fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Nil => serde_json::Value::Null,
        Value::Bool(b) => (*b).into(),
        Value::Int(n) => (*n).into(),
        Value::Count(n) => (*n).into(),
        Value::Float(f) => Number::from_f64(*f).map_or(serde_json::Value::Null, serde_json::Value::Number),
        Value::Text(text) | Value::Date(text) => text.clone().into(),
        Value::List(items) => items.iter().map(to_json).collect(),
        Value::Map(map) => map.iter().map(|(k, v)| (k.clone(), to_json(v))).collect::<Map<_, _>>().into(),
    }
}

/// JSON as a value; dates and references stay text until a type is known.
pub fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(b) => Value::Bool(*b),
        serde_json::Value::Number(n) => {
            n.as_i64().map_or_else(|| Value::Float(n.as_f64().unwrap_or(f64::NAN)), Value::Int)
        }
        serde_json::Value::String(text) => Value::text(text),
        serde_json::Value::Array(items) => Value::List(items.iter().map(from_json).collect()),
        serde_json::Value::Object(map) => {
            Value::Map(map.iter().map(|(k, v)| (k.clone(), from_json(v))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(version: Version, outcome: Outcome<Value>) -> serde_json::Value {
        serde_json::from_slice(&encode(version, &json!(7), &outcome, false)).unwrap()
    }

    #[test]
    fn replies_have_the_documented_members() {
        let refused = || Err(Failure::new("SESSION_INVALID", ["OpaqueRef:x"]));
        assert_eq!(reply(Version::V1, Ok(Value::Int(5))), json!({"result": 5, "error": null, "id": 7}));
        assert_eq!(
            reply(Version::V1, refused()),
            json!({"result": null, "error": ["SESSION_INVALID", "OpaqueRef:x"], "id": 7})
        );
        assert_eq!(
            reply(Version::V2, refused()),
            json!({"jsonrpc": "2.0", "error": {"code": 1, "message": "SESSION_INVALID", "data": ["OpaqueRef:x"]}, "id": 7})
        );
        let old = encode(Version::V2, &json!("a"), &refused(), true);
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&old).unwrap(),
            json!({"jsonrpc": "2.0", "error": ["SESSION_INVALID", "OpaqueRef:x"], "id": "a"})
        );
        assert_eq!(reply(Version::V2, Ok(Value::void())), json!({"jsonrpc": "2.0", "result": "", "id": 7}));
    }

    #[test]
    fn version_and_id_decide_whether_a_request_is_well_formed() {
        let v1 = decode(br#"{"method":"VM.get_all","params":["OpaqueRef:s"],"id":0}"#).unwrap();
        assert_eq!((v1.version, v1.request.params.len()), (Version::V1, 1));
        assert_eq!(decode(br#"{"jsonrpc":"2.0","method":"m","id":"x"}"#).unwrap().version, Version::V2);
        assert!(decode(br#"{"jsonrpc":"1.0","method":"m","id":1}"#).is_err());
        assert!(decode(br#"{"jsonrpc":"2.0","method":"m","id":null}"#).is_err());
        assert!(decode(br#"{"jsonrpc":"2.0","method":"m"}"#).is_err());
        assert!(decode(br#"{"jsonrpc":"2.0","method":"m","id":1.5}"#).is_err());
    }
}
