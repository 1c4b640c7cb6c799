//! The message calls: notes that administrators read. The one class whose accessors are not generated.

use crate::dispatch::unknown;
use crate::failure::{Failure, Outcome};
use crate::rpc::value::Value;
use crate::sim::{Args, Context, State, now};
use crate::store::db::Db;

const CLASS: &str = "message";

pub(crate) fn call(context: &Context, name: &str, args: &Args) -> Outcome<Value> {
    context.with(|s| match name {
        "create" => create(s, args),
        "destroy" => {
            s.db.get(CLASS, args.text(0))?;
            s.db.remove(CLASS, args.text(0));
            Ok(Value::void())
        }
        "get_all" => Ok(Value::texts(s.db.refs(CLASS))),
        "get_all_records" => Ok(records(&s.db, |_| true)),
        "get_record" => s.db.get(CLASS, args.text(0)).map(|r| Value::Map(r.clone())),
        "get_by_uuid" => s.db.by_uuid(CLASS, args.text(0)).map(Value::Text),
        "get_since" => Ok(records(&s.db, |r| s.db.text(CLASS, r, "timestamp").as_str() >= args.text(0))),
        "get" => Ok(records(&s.db, |r| {
            s.db.text(CLASS, r, "cls") == args.text(0)
                && s.db.text(CLASS, r, "obj_uuid") == args.text(1)
                && s.db.text(CLASS, r, "timestamp").as_str() >= args.text(2)
        })),
        _ => Err(unknown(CLASS, name)),
    })
}

fn records(db: &Db, wanted: impl Fn(&str) -> bool) -> Value {
    let found = db.refs(CLASS).into_iter().filter(|r| wanted(r));
    Value::Map(
        found.filter_map(|r| Some((r.clone(), Value::Map(db.row(CLASS, &r)?.record.clone())))).collect(),
    )
}

fn create(state: &mut State, args: &Args) -> Outcome<Value> {
    let class = args.text(2);
    let exact = crate::store::schema::schema().classes.iter().find(|c| c.name.eq_ignore_ascii_case(class));
    if let Some(exact) = exact {
        state.db.by_uuid(&exact.name, args.text(3))?;
    } else {
        return Err(Failure::invalid_value("cls", class));
    }
    let mut record = Db::blank(CLASS);
    for (index, field) in ["name", "priority", "cls", "obj_uuid", "body"].into_iter().enumerate() {
        record.insert(field.into(), args.0[index].clone());
    }
    record.insert("timestamp".into(), now());
    Ok(Value::text(state.db.create(CLASS, record)))
}
