//! Turns what arrived on the wire into the type the API declares, with the leniencies real servers have: integers and
//! floats may be strings, dates may have hyphens, a missing map may be an empty string.

use super::schema::{Type, schema};
use crate::failure::{Failure, Outcome};
use crate::rpc::value::{Value, parse_date};

/// Coerces `value` to `kind`; `name` is the parameter or member for the error.
pub(crate) fn coerce(value: Value, kind: &Type, name: &str) -> Outcome<Value> {
    let wrong = || Failure::field_type(name);
    match (kind, value) {
        (Type::Text | Type::Ref(_), Value::Text(text)) => Ok(Value::Text(text)),
        // An untyped number inside a struct reaches us as text; a typed one is taken for what it prints as.
        (Type::Text, Value::Int(n)) => Ok(Value::text(n.to_string())),
        (Type::Int, Value::Int(n)) => Ok(Value::Int(n)),
        (Type::Int, Value::Text(text)) => text.trim().parse().map(Value::Int).map_err(|_| wrong()),
        (Type::Float, Value::Float(f)) => Ok(Value::Float(f)),
        (Type::Float, Value::Int(n)) => Ok(Value::Float(n as f64)),
        (Type::Float, Value::Text(text)) => text.trim().parse().map(Value::Float).map_err(|_| wrong()),
        (Type::Bool, Value::Bool(b)) => Ok(Value::Bool(b)),
        (Type::Date, Value::Date(text) | Value::Text(text)) => {
            parse_date(&text).map(Value::Date).ok_or_else(wrong)
        }
        (Type::Enum(enumeration), Value::Text(text)) => {
            let known = schema()
                .enums
                .get(enumeration)
                .is_none_or(|values| values.iter().any(|v| v.eq_ignore_ascii_case(&text)));
            if !known {
                return Err(wrong());
            }
            let exact = schema()
                .enums
                .get(enumeration)
                .and_then(|values| values.iter().find(|v| v.eq_ignore_ascii_case(&text)).cloned());
            Ok(Value::Text(exact.unwrap_or(text)))
        }
        (Type::Set(item), Value::List(items)) => {
            items.into_iter().map(|v| coerce(v, item, name)).collect::<Outcome<_>>().map(Value::List)
        }
        (Type::Map(_, item), Value::Map(map)) => map
            .into_iter()
            .map(|(k, v)| Ok((k, coerce(v, item, name)?)))
            .collect::<Outcome<_>>()
            .map(Value::Map),
        (Type::Record(_), Value::Map(map)) => Ok(Value::Map(map)),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_leniencies_are_granted() {
        let ok = |v, t: &Type| coerce(v, t, "x").unwrap();
        assert_eq!(ok(Value::text("12"), &Type::Int), Value::Int(12));
        assert_eq!(ok(Value::Int(2), &Type::Float), Value::Float(2.0));
        assert_eq!(ok(Value::text("60.1"), &Type::Float), Value::Float(60.1));
        assert_eq!(ok(Value::text("rw"), &Type::Enum("vbd_mode".into())), Value::text("RW"));
        let refused = |v, t: &Type| assert_eq!(coerce(v, t, "x"), Err(Failure::field_type("x")));
        refused(Value::text("true"), &Type::Bool);
        refused(Value::Int(1), &Type::Bool);
        refused(Value::Nil, &Type::Text);
        refused(Value::text("XX"), &Type::Enum("vbd_mode".into()));
        refused(Value::text("twelve"), &Type::Int);
    }
}
