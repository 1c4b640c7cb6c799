//! JSON-RPC 2.0 as hosts speak it.
//!
//! Hosts before 7.3 answer a 2.0 call with the error array of version 1, so both forms are read.

use std::collections::BTreeMap;

use crate::value::Value;
use crate::xml::Reply;

/// A call as a request body.
pub(crate) fn encode(method: &str, params: &[Value], id: u64) -> Vec<u8> {
    let params: Vec<serde_json::Value> = params.iter().map(to_json).collect();
    let call = serde_json::json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": id });
    call.to_string().into_bytes()
}

/// Reads a reply. The error says what is wrong with it.
pub(crate) fn decode(body: &[u8], id: u64) -> Result<Reply, String> {
    let reply: serde_json::Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let serde_json::Value::Object(mut reply) = reply else {
        return Err("the reply is not an object".to_owned());
    };
    match reply.get("id") {
        Some(serde_json::Value::Number(number)) if number.as_u64() == Some(id) => {}
        Some(serde_json::Value::String(text)) if *text == id.to_string() => {}
        _ => return Err("the reply is for another call".to_owned()),
    }
    match reply.remove("error") {
        None | Some(serde_json::Value::Null) => {}
        Some(serde_json::Value::Array(items)) => return failure(items.into_iter()),
        Some(serde_json::Value::Object(mut error)) => {
            let code = error.remove("message").ok_or("the error has no message")?;
            let params = match error.remove("data") {
                Some(serde_json::Value::Array(items)) => items,
                None | Some(serde_json::Value::Null) => Vec::new(),
                Some(other) => vec![other],
            };
            return failure([code].into_iter().chain(params));
        }
        Some(_) => return Err("the error is neither a list nor an object".to_owned()),
    }
    let result = reply.remove("result").ok_or("the reply has neither a result nor an error")?;
    Ok(Reply::Success(from_json(result)))
}

fn failure(mut items: impl Iterator<Item = serde_json::Value>) -> Result<Reply, String> {
    let text = |item| match item {
        serde_json::Value::String(text) => text,
        other => other.to_string(),
    };
    let code = items.next().map(text).ok_or("the error list is empty")?;
    Ok(Reply::Failure { code, params: items.map(text).collect() })
}

fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Nil => serde_json::Value::Null,
        Value::Bool(flag) => (*flag).into(),
        Value::Int(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(to_json).collect::<Vec<_>>().into(),
        Value::Struct(members) => {
            let members = members.iter().map(|(key, value)| (key.clone(), to_json(value)));
            serde_json::Value::Object(members.collect())
        }
    }
}

fn from_json(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(flag) => Value::Bool(flag),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::Int(whole),
            // Without the arbitrary-precision feature every number is an integer or a double.
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::String(text),
        serde_json::Value::Array(items) => Value::Array(items.into_iter().map(from_json).collect()),
        serde_json::Value::Object(members) => {
            let members: BTreeMap<_, _> =
                members.into_iter().map(|(key, value)| (key, from_json(value))).collect();
            Value::Struct(members)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::tests::any_value;
    use proptest::prelude::*;

    #[test]
    fn a_call_has_these_bytes() {
        let body = encode("VM.snapshot", &["OpaqueRef:s".into(), Value::Int(5), Value::Bool(true)], 7);
        assert_eq!(
            String::from_utf8(body).expect("text"),
            r#"{"id":7,"jsonrpc":"2.0","method":"VM.snapshot","params":["OpaqueRef:s",5,true]}"#
        );
    }

    #[test]
    fn both_error_forms_are_read() {
        let expected =
            Reply::Failure { code: "HANDLE_INVALID".into(), params: vec!["VM".into(), "OpaqueRef:1".into()] };
        let version_2 = br#"{"jsonrpc":"2.0","error":{"code":1,"message":"HANDLE_INVALID","data":["VM","OpaqueRef:1"]},"id":3}"#;
        let version_1 = br#"{"result":null,"error":["HANDLE_INVALID","VM","OpaqueRef:1"],"id":3}"#;
        assert_eq!(decode(version_2, 3), Ok(expected.clone()));
        assert_eq!(decode(version_1, 3), Ok(expected));
    }

    #[test]
    fn results_are_read() {
        let body = br#"{"result":{"a":[1,-2,0.5,true,"x",null]},"error":null,"id":"3"}"#;
        let items = vec![1.into(), Value::Int(-2), 0.5.into(), true.into(), "x".into(), Value::Nil];
        assert_eq!(decode(body, 3), Ok(Reply::Success(Value::record([("a", Value::Array(items))]))));
        assert!(decode(body, 4).is_err());
        assert!(decode(br#"{"id":3}"#, 3).is_err());
        assert!(decode(b"<html>", 3).is_err());
        let nested = format!("{{\"id\":3,\"result\":{}", "[".repeat(200_000));
        assert!(decode(nested.as_bytes(), 3).is_err());
    }

    impl From<i32> for Value {
        fn from(value: i32) -> Self {
            Value::Int(value.into())
        }
    }

    proptest! {
        #[test]
        fn values_round_trip(value in any_value()) {
            prop_assert_eq!(from_json(to_json(&value)), value);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,100}") {
            let _ = decode(&bytes, 1);
            let _ = decode(text.as_bytes(), 1);
        }
    }
}
