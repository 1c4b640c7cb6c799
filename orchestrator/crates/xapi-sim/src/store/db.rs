//! The records of all classes, with the generation counter that events are made of.
//!
//! Promises: every change of a record gets a new generation; the many-side of a relation always agrees with the
//! one-side; a deleted object is remembered long enough for `event.from`. As on real servers, references to a deleted
//! object dangle: whoever deletes must mend them. Never blocks and knows no session.

use super::relations::{RELATIONS, Relation};
use super::schema::{Class, schema};
use crate::failure::{Failure, Outcome};
use crate::rpc::value::{NULL, Record, Value};
use std::collections::{BTreeMap, VecDeque};
use uuid::Uuid;

/// Deleted objects that are remembered. A client that is further behind gets `EVENTS_LOST`.
const DELETIONS_KEPT: usize = 100_000;

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) record: Record,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Deletion {
    pub(crate) class: String,
    pub(crate) reference: String,
    pub(crate) created: u64,
    pub(crate) deleted: u64,
}

/// The database.
#[derive(Debug, Default)]
pub(crate) struct Db {
    tables: BTreeMap<String, BTreeMap<String, Row>>,
    deletions: VecDeque<Deletion>,
    /// Generation below which deletions have been forgotten.
    forgotten: u64,
    generation: u64,
    journal: Vec<(bool, String, String, String)>,
}

impl Db {
    /// The generation of the latest change.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    pub(crate) fn deletions(&self) -> impl Iterator<Item = &Deletion> {
        self.deletions.iter()
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = (&String, &BTreeMap<String, Row>)> {
        self.tables.iter()
    }

    /// Creations (`true`) and deletions since the last call: class, reference and uuid, for the log.
    pub(crate) fn take_journal(&mut self) -> Vec<(bool, String, String, String)> {
        std::mem::take(&mut self.journal)
    }

    fn tick(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    /// A record with every member at its empty or default value, and a fresh uuid.
    pub(crate) fn blank(class: &str) -> Record {
        let class = class_of(class);
        let mut record: Record = class
            .fields
            .iter()
            .map(|f| (f.name.clone(), f.default.clone().unwrap_or_else(|| f.kind.empty())))
            .collect();
        record.insert("uuid".into(), Value::text(Uuid::new_v4().to_string()));
        record
    }

    /// Adds a record and answers its reference.
    pub(crate) fn create(&mut self, class: &str, record: Record) -> String {
        let reference = format!("OpaqueRef:{}", Uuid::new_v4());
        self.insert(class, reference.clone(), record);
        reference
    }

    /// Adds a record under a given reference.
    pub(crate) fn insert(&mut self, class: &str, reference: String, record: Record) {
        let now = self.tick();
        let links = links_of(class, &record);
        self.journal.push((true, class.to_owned(), reference.clone(), text_of(&record, "uuid")));
        let row = Row { record, created: now, modified: now };
        self.tables.entry(class.to_owned()).or_default().insert(reference.clone(), row);
        for (relation, parent) in links {
            self.link(relation, &parent, &reference, true);
        }
    }

    /// Removes a record; an unknown one is no error.
    pub(crate) fn remove(&mut self, class: &str, reference: &str) {
        let Some(row) = self.tables.get_mut(class).and_then(|t| t.remove(reference)) else { return };
        let deleted = self.tick();
        self.journal.push((false, class.to_owned(), reference.to_owned(), text_of(&row.record, "uuid")));
        for (relation, parent) in links_of(class, &row.record) {
            self.link(relation, &parent, reference, false);
        }
        if self.deletions.len() == DELETIONS_KEPT
            && let Some(oldest) = self.deletions.pop_front()
        {
            self.forgotten = oldest.deleted;
        }
        self.deletions.push_back(Deletion {
            class: class.to_owned(),
            reference: reference.to_owned(),
            created: row.created,
            deleted,
        });
    }

    fn link(&mut self, relation: &Relation, parent: &str, child: &str, add: bool) {
        let now = self.generation + 1;
        let Some(row) = self.tables.get_mut(relation.parent).and_then(|t| t.get_mut(parent)) else { return };
        let Some(Value::List(many)) = row.record.get_mut(relation.many) else { return };
        many.retain(|v| v.as_text() != Some(child));
        if add {
            many.push(Value::text(child));
        }
        row.modified = now;
        self.generation = now;
    }

    /// Sets a member of an existing record; changes nothing when the value is the same.
    pub(crate) fn put(&mut self, class: &str, reference: &str, field: &str, value: Value) {
        let now = self.generation + 1;
        let Some(row) = self.tables.get_mut(class).and_then(|t| t.get_mut(reference)) else { return };
        let before = row.record.get(field);
        if before == Some(&value) {
            return;
        }
        let before = before.and_then(Value::as_text).unwrap_or(NULL).to_owned();
        let after = value.as_text().unwrap_or(NULL).to_owned();
        row.record.insert(field.to_owned(), value);
        row.modified = now;
        self.generation = now;
        if let Some(relation) = RELATIONS.iter().find(|r| r.child == class && r.field == field) {
            self.link(relation, &before, reference, false);
            self.link(relation, &after, reference, true);
        }
    }

    /// Marks a record as changed without changing it.
    pub(crate) fn touch(&mut self, class: &str, reference: &str) -> Outcome<()> {
        self.get(class, reference)?;
        let now = self.tick();
        if let Some(row) = self.tables.get_mut(class).and_then(|t| t.get_mut(reference)) {
            row.modified = now;
        }
        Ok(())
    }

    pub(crate) fn row(&self, class: &str, reference: &str) -> Option<&Row> {
        self.tables.get(class)?.get(reference)
    }

    pub(crate) fn exists(&self, class: &str, reference: &str) -> bool {
        self.row(class, reference).is_some()
    }

    /// The record, or `HANDLE_INVALID`.
    pub(crate) fn get(&self, class: &str, reference: &str) -> Outcome<&Record> {
        self.row(class, reference).map(|r| &r.record).ok_or_else(|| Failure::handle_invalid(class, reference))
    }

    /// All references of a class.
    pub(crate) fn refs(&self, class: &str) -> Vec<String> {
        self.tables.get(class).map(|t| t.keys().cloned().collect()).unwrap_or_default()
    }

    /// References of the records whose text member has that value.
    pub(crate) fn find(&self, class: &str, field: &str, text: &str) -> Vec<String> {
        let Some(table) = self.tables.get(class) else { return Vec::new() };
        let matches = |row: &Row| row.record.get(field).and_then(Value::as_text) == Some(text);
        table.iter().filter(|(_, row)| matches(row)).map(|(r, _)| r.clone()).collect()
    }

    /// The object of that uuid, or `UUID_INVALID`.
    pub(crate) fn by_uuid(&self, class: &str, uuid: &str) -> Outcome<String> {
        let found = self.find(class, "uuid", uuid).into_iter().next();
        found.ok_or_else(|| Failure::new("UUID_INVALID", [class, uuid]))
    }

    /// A reference or a uuid, as the HTTP handlers accept.
    pub(crate) fn by_ref_or_uuid(&self, class: &str, text: &str) -> Outcome<String> {
        if self.exists(class, text) { Ok(text.to_owned()) } else { self.by_uuid(class, text) }
    }

    /// A text member; empty where the record or member is missing.
    pub(crate) fn text(&self, class: &str, reference: &str, field: &str) -> String {
        self.row(class, reference).map(|r| text_of(&r.record, field)).unwrap_or_default()
    }

    pub(crate) fn flag(&self, class: &str, reference: &str, field: &str) -> bool {
        matches!(self.row(class, reference).and_then(|r| r.record.get(field)), Some(Value::Bool(true)))
    }

    pub(crate) fn int(&self, class: &str, reference: &str, field: &str) -> i64 {
        match self.row(class, reference).and_then(|r| r.record.get(field)) {
            Some(Value::Int(n)) => *n,
            _ => 0,
        }
    }

    /// The items of a set of references or strings.
    pub(crate) fn list(&self, class: &str, reference: &str, field: &str) -> Vec<String> {
        match self.row(class, reference).and_then(|r| r.record.get(field)) {
            Some(Value::List(items)) => items.iter().filter_map(Value::as_text).map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn map(&self, class: &str, reference: &str, field: &str) -> Record {
        match self.row(class, reference).and_then(|r| r.record.get(field)) {
            Some(Value::Map(map)) => map.clone(),
            _ => Record::new(),
        }
    }

    /// Changes one key of a map member; `None` removes it.
    pub(crate) fn put_key(
        &mut self,
        class: &str,
        reference: &str,
        field: &str,
        key: &str,
        value: Option<Value>,
    ) {
        let mut map = self.map(class, reference, field);
        match value {
            Some(value) => map.insert(key.to_owned(), value),
            None => map.remove(key),
        };
        self.put(class, reference, field, Value::Map(map));
    }
}

/// A text member of a record that is not (yet) in the store.
pub(crate) fn text_of(record: &Record, field: &str) -> String {
    record.get(field).and_then(Value::as_text).unwrap_or_default().to_owned()
}

fn class_of(name: &str) -> &'static Class {
    schema().class(name).unwrap_or_else(|| panic!("class {name} is not in the schema"))
}

fn links_of(class: &str, record: &Record) -> Vec<(&'static Relation, String)> {
    RELATIONS
        .iter()
        .filter(|r| r.child == class)
        .filter_map(|r| Some((r, record.get(r.field)?.as_text()?.to_owned())))
        .filter(|(_, parent)| parent != NULL)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_follow_creation_change_and_removal() {
        let mut db = Db::default();
        let vm = db.create("VM", Db::blank("VM"));
        let other = db.create("VM", Db::blank("VM"));
        let mut vbd = Db::blank("VBD");
        vbd.insert("VM".into(), Value::text(&vm));
        let vbd = db.create("VBD", vbd);
        assert_eq!(db.list("VM", &vm, "VBDs"), std::slice::from_ref(&vbd));
        db.put("VBD", &vbd, "VM", Value::text(&other));
        assert!(db.list("VM", &vm, "VBDs").is_empty());
        assert_eq!(db.list("VM", &other, "VBDs"), std::slice::from_ref(&vbd));
        let before = db.generation();
        db.remove("VBD", &vbd);
        assert!(db.list("VM", &other, "VBDs").is_empty());
        assert!(db.generation() > before);
        assert_eq!(db.deletions().count(), 1);
    }
}
