//! The list of calls a flavour answers: the generated accessors of every class plus the described messages.

use super::schema::{Class, Field, Message, Param, Qualifier, Type, schema};
use crate::flavour::ApiVersion;
use std::collections::BTreeMap;

/// What a call does.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Has code of its own.
    Custom,
    Get(&'static Field),
    Set(&'static Field),
    AddTo(&'static Field),
    RemoveFrom(&'static Field),
    Add(&'static Field),
    Remove(&'static Field),
    GetRecord,
    GetAll,
    GetAllRecords,
    GetByUuid,
    GetByNameLabel,
    /// The generated constructor; the class still decides what happens.
    Create,
    Destroy,
}

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Method {
    pub(crate) class: &'static Class,
    pub(crate) name: String,
    pub(crate) action: Action,
    pub(crate) params: Vec<Param>,
    /// Whether `Async.` may be put before it.
    pub(crate) asynchronous: bool,
    /// Whether the first parameter is a session.
    pub(crate) session: bool,
}

/// Every call of that API version by its full name.
pub(crate) fn methods(api: ApiVersion) -> BTreeMap<String, Method> {
    let mut all = BTreeMap::new();
    for class in &schema().classes {
        generate(class, api, &mut all);
        for message in class.messages.iter().filter(|m| m.since <= api) {
            add(&mut all, described(class, message, api));
        }
    }
    all
}

/// The names `system.listMethods` answers: without the asynchronous forms.
pub(crate) fn names(methods: &BTreeMap<String, Method>) -> Vec<String> {
    let mut names: Vec<String> = methods.keys().cloned().collect();
    names.push("system.listMethods".into());
    names.sort();
    names
}

fn add(all: &mut BTreeMap<String, Method>, method: Method) {
    all.insert(format!("{}.{}", method.class.name, method.name), method);
}

fn described(class: &'static Class, message: &Message, api: ApiVersion) -> Method {
    let session = !(class.name == "session" && message.name == "login_with_password");
    Method {
        class,
        name: message.name.clone(),
        action: Action::Custom,
        params: message.params.iter().filter(|p| p.since <= api).cloned().collect(),
        asynchronous: !matches!(class.name.as_str(), "session" | "task" | "event"),
        session,
    }
}

fn param(name: &str, kind: Type) -> Param {
    Param { name: name.to_owned(), kind, optional: false, since: ApiVersion::v2(0) }
}

fn generate(class: &'static Class, api: ApiVersion, all: &mut BTreeMap<String, Method>) {
    // Events have no table, messages have only the described calls, sessions are never listed.
    if matches!(class.name.as_str(), "event" | "message") {
        return;
    }
    let this = || param("self", Type::Ref(class.name.clone()));
    let mut plain = |name: String, action: Action, params: Vec<Param>, asynchronous: bool| {
        add(all, Method { class, name, action, params, asynchronous, session: true });
    };
    plain("get_record".into(), Action::GetRecord, vec![this()], false);
    plain("get_by_uuid".into(), Action::GetByUuid, vec![param("uuid", Type::Text)], false);
    if class.name != "session" {
        plain("get_all".into(), Action::GetAll, vec![], false);
        plain("get_all_records".into(), Action::GetAllRecords, vec![], false);
    }
    if class.field("name_label").is_some() {
        plain("get_by_name_label".into(), Action::GetByNameLabel, vec![param("label", Type::Text)], false);
    }
    if class.creatable {
        plain("create".into(), Action::Create, vec![param("args", Type::Record(class.name.clone()))], true);
    }
    if class.destroyable {
        plain("destroy".into(), Action::Destroy, vec![this()], true);
    }
    for field in class.fields.iter().filter(|f| f.since <= api) {
        plain(format!("get_{}", field.name), Action::Get(field), vec![this()], false);
        if field.qualifier != Qualifier::Writable {
            continue;
        }
        let value = param("value", field.kind.clone());
        plain(format!("set_{}", field.name), Action::Set(field), vec![this(), value], false);
        match &field.kind {
            Type::Map(key, item) => {
                let (key, item) = (param("key", (**key).clone()), param("value", (**item).clone()));
                plain(
                    format!("add_to_{}", field.name),
                    Action::AddTo(field),
                    vec![this(), key.clone(), item],
                    false,
                );
                plain(
                    format!("remove_from_{}", field.name),
                    Action::RemoveFrom(field),
                    vec![this(), key],
                    false,
                );
            }
            Type::Set(item) => {
                let item = param("value", (**item).clone());
                plain(format!("add_{}", field.name), Action::Add(field), vec![this(), item.clone()], false);
                plain(format!("remove_{}", field.name), Action::Remove(field), vec![this(), item], false);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setters_exist_only_for_writable_fields() {
        let all = methods(ApiVersion::v2(21));
        for name in [
            "VM.set_name_label",
            "VM.add_to_other_config",
            "VM.add_tags",
            "VBD.create",
            "VDI.list_changed_blocks",
        ] {
            assert!(all.contains_key(name), "{name}");
        }
        for name in
            ["VM.set_power_state", "VBD.set_device", "VM.set_uuid", "session.get_all", "event.get_all"]
        {
            assert!(!all.contains_key(name), "{name}");
        }
        let listed = names(&all);
        assert!(listed.contains(&"VM.start".into()) && !listed.iter().any(|name| name.starts_with("Async.")));
    }

    #[test]
    fn old_servers_lack_change_tracking_and_the_third_snapshot_argument() {
        let old = methods(ApiVersion::v2(7));
        assert!(!old.contains_key("VDI.list_changed_blocks") && !old.contains_key("VDI.get_cbt_enabled"));
        assert_eq!(old["VM.snapshot"].params.len(), 2);
        assert_eq!(methods(ApiVersion::v2(21))["VM.snapshot"].params.len(), 3);
    }
}
