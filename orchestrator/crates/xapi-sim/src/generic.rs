//! The generated accessors: getters, setters, map and set editing, record listing.

use crate::failure::{Failure, Outcome};
use crate::rpc::value::{Record, Value};
use crate::sim::{Args, Context, State};
use crate::store::methods::{Action, Method};
use crate::store::schema::{Field, schema};
use crate::{vbd, vm};

pub(crate) async fn call(context: &Context, method: &Method, args: &Args) -> Outcome<Value> {
    let class = method.class.name.as_str();
    match &method.action {
        Action::Get(field) => context.with(|s| {
            s.db.get(class, args.text(0))?;
            Ok(member(s, class, args.text(0), field))
        }),
        Action::GetRecord => context.with(|s| {
            let record = s.db.get(class, args.text(0))?;
            Ok(Value::Map(present(s, class, args.text(0), record)))
        }),
        Action::GetAll => Ok(Value::texts(context.with(|s| s.db.refs(class)))),
        Action::GetAllRecords => Ok(context.with(|s| all_records(s, class))),
        Action::GetByUuid => context.with(|s| s.db.by_uuid(class, args.text(0)).map(Value::Text)),
        Action::GetByNameLabel => {
            Ok(Value::texts(context.with(|s| s.db.find(class, "name_label", args.text(0)))))
        }
        Action::Custom | Action::Create | Action::Destroy => Err(Failure::internal("not an accessor")),
        edit => {
            let (field, value) = context.with(|s| edited(s, class, edit, args))?;
            context.with(|s| check_set(s, class, args.text(0), field, &value))?;
            context.with(|s| s.db.put(class, args.text(0), field, value));
            if let (Action::Set(_), "VM", "xenstore_data") = (edit, class, field) {
                vm::power::replace_xenstore_data(context, args.text(0)).await;
            }
            Ok(Value::void())
        }
    }
}

/// The new value of the member that an editing call changes.
fn edited<'a>(state: &State, class: &str, edit: &'a Action, args: &Args) -> Outcome<(&'a str, Value)> {
    let this = args.text(0);
    let record = state.db.get(class, this)?;
    let current = |field: &Field| record.get(&field.name).cloned().unwrap_or_else(|| field.kind.empty());
    let (field, value) = match edit {
        Action::Set(field) => (field, args.0[1].clone()),
        Action::AddTo(field) => {
            let Value::Map(mut map) = current(field) else { return Err(Failure::field_type(&field.name)) };
            let key = args.text(1).to_owned();
            if map.contains_key(&key) {
                return Err(Failure::new("MAP_DUPLICATE_KEY", [class, &field.name, this, &key]));
            }
            map.insert(key, args.0[2].clone());
            (field, Value::Map(map))
        }
        Action::RemoveFrom(field) => {
            let Value::Map(mut map) = current(field) else { return Err(Failure::field_type(&field.name)) };
            map.remove(args.text(1));
            (field, Value::Map(map))
        }
        Action::Add(field) | Action::Remove(field) => {
            let Value::List(mut list) = current(field) else { return Err(Failure::field_type(&field.name)) };
            list.retain(|v| *v != args.0[1]);
            if matches!(edit, Action::Add(_)) {
                list.push(args.0[1].clone());
            }
            (field, Value::List(list))
        }
        _ => return Err(Failure::internal("not an editing call")),
    };
    Ok((&field.name, value))
}

/// Rules of single members.
fn check_set(state: &State, class: &str, this: &str, field: &str, value: &Value) -> Outcome<()> {
    match (class, field) {
        ("VM", "is_a_template") => vm::rules::check_template_flag(&state.db, this, value),
        ("VM", "platform") => vm::rules::check_platform(&state.db, this, value),
        ("VBD", "userdevice") => {
            let vm = state.db.text("VBD", this, "VM");
            vbd::check_position(&state.db, &vm, value.as_text().unwrap_or_default(), Some(this))
        }
        _ => Ok(()),
    }
}

fn all_records(state: &State, class: &str) -> Value {
    let records = state.db.refs(class).into_iter().filter_map(|r| {
        let record = present(state, class, &r, &state.db.row(class, &r)?.record);
        Some((r, Value::Map(record)))
    });
    Value::Map(records.collect())
}

fn member(state: &State, class: &str, reference: &str, field: &Field) -> Value {
    if field.name == "allowed_operations" {
        return Value::texts(allowed(state, class, reference));
    }
    let record = state.db.row(class, reference).map(|r| &r.record);
    record.and_then(|r| r.get(&field.name)).cloned().unwrap_or_else(|| field.kind.empty())
}

/// A record as callers see it: with the operations that are allowed at this moment, without the members that the
/// imitated release does not have.
pub(crate) fn present(state: &State, class: &str, reference: &str, record: &Record) -> Record {
    let mut record = record.clone();
    if let Some(class) = schema().class(class) {
        for field in class.fields.iter().filter(|f| f.since > state.api) {
            record.remove(&field.name);
        }
    }
    if matches!(class, "VM" | "VBD" | "VDI") {
        record.insert("allowed_operations".into(), Value::texts(allowed(state, class, reference)));
    }
    record
}

fn allowed(state: &State, class: &str, reference: &str) -> Vec<String> {
    match class {
        "VM" => vm::rules::allowed_operations(state, reference),
        "VBD" => vbd::allowed_operations(&state.db, reference),
        "VDI" => crate::storage::vdi::allowed_operations(&state.db, reference),
        _ => state.db.list(class, reference, "allowed_operations"),
    }
}
