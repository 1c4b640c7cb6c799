//! What a domain may ask of its store: requests, watches and transactions.
//!
//! Owns the state of one guest's connection and does no input or output itself: answers and watch
//! events go to an outbox, changes are returned to the caller.
//!
//! A transaction works on a snapshot. Its end succeeds when nothing changed meanwhile, or when every
//! request in it, done again on the present tree, gets the answer it got before; otherwise it is
//! `EAGAIN`. This is oxenstored's rule. Watches fire only for what is committed.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use super::tree::{DomainId, Path, Permissions, Refusal, Tree};
use super::wire::{Message, PAYLOAD_MAX, kind};

/// Most watches of a guest: oxenstored's default of `quota-maxwatch`.
pub(crate) const WATCHES_MAX: usize = 100;
/// Most open transactions of a guest: oxenstored's default of `quota-transaction`.
pub(crate) const TRANSACTIONS_MAX: usize = 10;
/// Most requests in one transaction: oxenstored's default of `quota-maxrequests`.
const TRANSACTION_REQUESTS_MAX: usize = 1024;
/// Most messages that wait for a guest that does not read. Watch events over it are lost, as they are
/// in oxenstored (`quota-maxwatchevents`).
pub(crate) const OUTBOX_MAX: usize = 1024;
/// A domain's name for itself, `DOMID_SELF`.
const DOMAIN_SELF: u32 = 0x7ff0;

/// Something the guest changed under its home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// Relative to the domain's home.
    pub(crate) path: String,
    /// `None`: the node and everything below it is gone.
    pub(crate) value: Option<String>,
}

/// A node that a request touched.
#[derive(Debug, Clone)]
struct Touch {
    path: Path,
    how: Touched,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Touched {
    Written,
    Removed,
    PermissionsSet,
}

#[derive(Debug)]
struct Watch {
    /// As the guest wrote it; events are told in the same form.
    text: Vec<u8>,
    /// `None` for `@introduceDomain` and its like, which nothing in the lab ever fires.
    path: Option<Path>,
    token: Vec<u8>,
    since: SystemTime,
}

#[derive(Debug)]
struct Transaction {
    base: Tree,
    tree: Tree,
    done: Vec<(Message, Answer)>,
    touches: Vec<Touch>,
    since: SystemTime,
}

type Answer = Result<Vec<u8>, Refusal>;

/// One domain's store and its connection.
#[derive(Debug)]
pub(crate) struct Domain {
    id: DomainId,
    home: Path,
    tree: Tree,
    watches: Vec<Watch>,
    transactions: BTreeMap<u32, Transaction>,
    last_transaction: u32,
    outbox: VecDeque<Message>,
    forgotten_before: SystemTime,
}

impl Domain {
    pub(super) fn new(id: DomainId, tree: Tree) -> Domain {
        Domain {
            id,
            home: id.home(),
            tree,
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            last_transaction: 0,
            outbox: VecDeque::new(),
            forgotten_before: SystemTime::UNIX_EPOCH,
        }
    }

    /// Serves one request. The answer, then watch events, are in the outbox afterwards.
    pub(super) fn handle(&mut self, message: Message, now: SystemTime) -> Vec<Change> {
        // As oxenstored: watches live outside transactions, whatever the frame says.
        let transaction = match message.kind {
            kind::WATCH | kind::UNWATCH => 0,
            _ => message.transaction,
        };
        match message.kind {
            kind::WATCH => {
                let text_and_answer = self.watch(&message.payload, now);
                let event = text_and_answer.as_ref().ok().cloned();
                self.answer(&message, text_and_answer.map(|_| ok()));
                if let Some(event) = event {
                    self.push_event(event);
                }
                Vec::new()
            }
            kind::TRANSACTION_END => match self.end_transaction(transaction, &message.payload) {
                Ok((before, touches)) => {
                    self.answer(&message, Ok(ok()));
                    self.publish(&before, &touches)
                }
                Err(refusal) => {
                    self.answer(&message, Err(refusal));
                    Vec::new()
                }
            },
            _ if transaction != 0 => {
                let answer = self.handle_inside(transaction, &message);
                self.answer(&message, answer);
                Vec::new()
            }
            _ => {
                let before = self.tree.clone();
                let mut touches = Vec::new();
                let answer = match self.connection_request(&message, now) {
                    Some(answer) => answer,
                    None => execute(&mut self.tree, self.id, &message, &mut touches),
                };
                self.answer(&message, answer);
                self.publish(&before, &touches)
            }
        }
    }

    /// Writes as the toolstack does: no permission or quota stops it, and watches fire.
    pub(super) fn write_as_toolstack(&mut self, relative: &str, value: &str) -> Result<(), Refusal> {
        let path = self.home.join(relative)?;
        let before = self.tree.clone();
        self.tree.write(DomainId::CONTROL, &path, value.as_bytes())?;
        self.fire(&before, &[Touch { path, how: Touched::Written }]);
        Ok(())
    }

    /// Removes what stands at `prefix` and writes `values` (paths relative to the home) there instead.
    /// The node at `prefix` keeps its permissions, or gets its parent's where there was none.
    pub(super) fn replace_as_toolstack(
        &mut self,
        prefix: &str,
        values: &BTreeMap<String, String>,
    ) -> Result<(), Refusal> {
        let prefix = self.home.join(prefix)?;
        let mut changed = self.tree.clone();
        changed.make_directory(DomainId::CONTROL, &prefix)?;
        let permissions = changed.permissions(DomainId::CONTROL, &prefix)?.clone();
        changed.remove(DomainId::CONTROL, &prefix)?;
        changed.make_directory(DomainId::CONTROL, &prefix)?;
        changed.set_permissions(DomainId::CONTROL, &prefix, permissions)?;
        let mut touches = vec![Touch { path: prefix.clone(), how: Touched::Removed }];
        for (relative, value) in values {
            let path = self.home.join(relative)?;
            if !path.is_at_or_below(&prefix) {
                return Err(Refusal::Invalid);
            }
            changed.write(DomainId::CONTROL, &path, value.as_bytes())?;
            touches.push(Touch { path, how: Touched::Written });
        }
        let before = std::mem::replace(&mut self.tree, changed);
        self.fire(&before, &touches);
        Ok(())
    }

    /// The node at `prefix` and all below it, by path relative to the home. The empty prefix means all.
    pub(super) fn collect(&self, prefix: &str) -> BTreeMap<String, String> {
        let path = match prefix {
            "" => Ok(self.home.clone()),
            _ => self.home.join(prefix),
        };
        let found = path.map(|path| self.tree.collect(&self.home, &path)).unwrap_or_default();
        found
            .into_iter()
            .filter(|(path, _)| !path.is_empty())
            .map(|(path, value)| {
                (path.trim_start_matches('/').to_owned(), String::from_utf8_lossy(&value).into_owned())
            })
            .collect()
    }

    /// The guest closed its port at `moment`: its watches and transactions from before go, as they go
    /// when a process closes `/dev/xen/xenbus`. The news comes by another way than the requests and can
    /// be overtaken by those of the next opening, which stay.
    pub(crate) fn forget_before(&mut self, moment: SystemTime) {
        self.watches.retain(|watch| watch.since > moment);
        self.transactions.retain(|_, transaction| transaction.since > moment);
        self.forgotten_before = self.forgotten_before.max(moment);
    }

    /// When the port was last seen closing.
    pub(super) fn forgotten_before(&self) -> SystemTime {
        self.forgotten_before
    }

    /// The next message for the guest.
    pub(super) fn pop(&mut self) -> Option<Message> {
        self.outbox.pop_front()
    }

    /// Requests about the connection itself; `None` for those about the tree.
    fn connection_request(&mut self, message: &Message, now: SystemTime) -> Option<Answer> {
        match message.kind {
            kind::UNWATCH => Some(self.unwatch(&message.payload).map(|()| ok())),
            kind::TRANSACTION_START => Some(self.start_transaction(now)),
            kind::RESET_WATCHES => {
                self.watches.clear();
                self.transactions.clear();
                Some(Ok(ok()))
            }
            _ => None,
        }
    }

    fn handle_inside(&mut self, number: u32, message: &Message) -> Answer {
        let transaction = self.transactions.get_mut(&number).ok_or(Refusal::Io)?;
        match message.kind {
            kind::TRANSACTION_START => return Err(Refusal::Busy),
            kind::RESET_WATCHES => return Err(Refusal::Invalid),
            _ => {}
        }
        if transaction.done.len() >= TRANSACTION_REQUESTS_MAX {
            return Err(Refusal::Quota);
        }
        let answer = execute(&mut transaction.tree, self.id, message, &mut transaction.touches);
        transaction.done.push((message.clone(), answer.clone()));
        answer
    }

    fn start_transaction(&mut self, now: SystemTime) -> Answer {
        if self.transactions.len() >= TRANSACTIONS_MAX {
            return Err(Refusal::Quota);
        }
        let mut number = self.last_transaction;
        loop {
            number = number.checked_add(1).unwrap_or(1);
            if !self.transactions.contains_key(&number) {
                break;
            }
        }
        self.last_transaction = number;
        let transaction = Transaction {
            base: self.tree.clone(),
            tree: self.tree.clone(),
            done: Vec::new(),
            touches: Vec::new(),
            since: now,
        };
        self.transactions.insert(number, transaction);
        Ok(format!("{number}\0").into_bytes())
    }

    /// Gives the tree from before the commit and what the commit touched.
    fn end_transaction(&mut self, number: u32, payload: &[u8]) -> Result<(Tree, Vec<Touch>), Refusal> {
        if number == 0 {
            return Err(Refusal::NotFound);
        }
        if !self.transactions.contains_key(&number) {
            return Err(Refusal::Io);
        }
        let commit = match payload {
            b"T\0" => true,
            b"F\0" => false,
            _ => return Err(Refusal::Invalid),
        };
        let transaction = self.transactions.remove(&number).ok_or(Refusal::Io)?;
        let before = self.tree.clone();
        if !commit || transaction.touches.is_empty() {
            return Ok((before, Vec::new()));
        }
        if transaction.base.is_same_as(&self.tree) {
            self.tree = transaction.tree;
        } else {
            let mut again = self.tree.clone();
            for (message, answer) in &transaction.done {
                if execute(&mut again, self.id, message, &mut Vec::new()) != *answer {
                    return Err(Refusal::Again);
                }
            }
            self.tree = again;
        }
        Ok((before, transaction.touches))
    }

    /// Registers a watch; gives the payload of the event that fires at once.
    fn watch(&mut self, payload: &[u8], now: SystemTime) -> Answer {
        let (text, token) = two_strings(payload)?;
        let path = match text.first() {
            Some(b'@') => None,
            _ => Some(Path::parse(text, &self.home)?),
        };
        if self.find_watch(text, path.as_ref(), token).is_some() {
            return Err(Refusal::Exists);
        }
        if self.watches.len() >= WATCHES_MAX {
            return Err(Refusal::Quota);
        }
        let watch = Watch { text: text.to_vec(), path, token: token.to_vec(), since: now };
        let event = event_payload(&watch.text, &watch.token);
        self.watches.push(watch);
        Ok(event)
    }

    fn unwatch(&mut self, payload: &[u8]) -> Result<(), Refusal> {
        let (text, token) = two_strings(payload)?;
        let path = match text.first() {
            Some(b'@') => None,
            _ => Some(Path::parse(text, &self.home)?),
        };
        let index = self.find_watch(text, path.as_ref(), token).ok_or(Refusal::NotFound)?;
        self.watches.remove(index);
        Ok(())
    }

    fn find_watch(&self, text: &[u8], path: Option<&Path>, token: &[u8]) -> Option<usize> {
        self.watches.iter().position(|watch| {
            let same_path = match path {
                Some(_) => watch.path.as_ref() == path,
                None => watch.text == text,
            };
            same_path && watch.token == token
        })
    }

    /// Fires watches and says what changed for the simulator.
    fn publish(&mut self, before: &Tree, touches: &[Touch]) -> Vec<Change> {
        self.fire(before, touches);
        touches.iter().filter_map(|touch| self.change(touch)).collect()
    }

    fn change(&self, touch: &Touch) -> Option<Change> {
        let path = touch.path.relative_to(&self.home)?;
        let value = match touch.how {
            Touched::PermissionsSet => return None,
            Touched::Removed => None,
            // A transaction may have removed it again after it was written.
            Touched::Written => {
                let value = self.tree.read(DomainId::CONTROL, &touch.path).ok()?;
                Some(String::from_utf8_lossy(value).into_owned())
            }
        };
        Some(Change { path, value })
    }

    fn fire(&mut self, before: &Tree, touches: &[Touch]) {
        let mut events = Vec::new();
        for touch in touches {
            for watch in &self.watches {
                let Some(path) = &watch.path else { continue };
                let told = if touch.path.is_at_or_below(path) {
                    self.event_text(watch, &touch.path)
                } else if touch.how == Touched::Removed && path.is_at_or_below(&touch.path) {
                    Some(watch.text.clone())
                } else {
                    None
                };
                let Some(told) = told else { continue };
                let seen = if told == watch.text { path } else { &touch.path };
                if self.tree.is_visible(self.id, seen) || before.is_visible(self.id, seen) {
                    events.push(event_payload(&told, &watch.token));
                }
            }
        }
        for event in events {
            self.push_event(event);
        }
    }

    /// The touched path in the form the watch was registered in.
    fn event_text(&self, watch: &Watch, path: &Path) -> Option<Vec<u8>> {
        if watch.text.first() == Some(&b'/') {
            return Some(path.to_string().into_bytes());
        }
        path.relative_to(&self.home).map(String::into_bytes)
    }

    fn push_event(&mut self, payload: Vec<u8>) {
        // A long token with a long path: there is no way to tell it.
        if self.outbox.len() >= OUTBOX_MAX || payload.len() > PAYLOAD_MAX {
            tracing::warn!(domain = self.id.0, "a watch event is lost: too many wait, or it is too long");
            return;
        }
        self.outbox.push_back(Message { kind: kind::WATCH_EVENT, request: 0, transaction: 0, payload });
    }

    fn answer(&mut self, message: &Message, answer: Answer) {
        let answer = match answer {
            Ok(payload) if payload.len() > PAYLOAD_MAX => Err(Refusal::TooBig),
            answer => answer,
        };
        let (kind, payload) = match answer {
            Ok(payload) => (message.kind, payload),
            Err(refusal) => (kind::ERROR, format!("{}\0", refusal.name()).into_bytes()),
        };
        self.outbox.push_back(Message {
            kind,
            request: message.request,
            transaction: message.transaction,
            payload,
        });
    }
}

/// Serves a request about the tree. It depends on nothing but the tree, so that a transaction can be
/// done again.
fn execute(tree: &mut Tree, caller: DomainId, message: &Message, touches: &mut Vec<Touch>) -> Answer {
    let home = caller.home();
    let payload = message.payload.as_slice();
    let mut touch = |path: Path, how: Touched| touches.push(Touch { path, how });
    match message.kind {
        kind::DIRECTORY => {
            let names = tree.list(caller, &Path::parse(one_string(payload)?, &home)?)?;
            Ok(names.iter().flat_map(|name| name.bytes().chain([0])).collect())
        }
        kind::READ => {
            let path = Path::parse(one_string(payload)?, &home)?;
            tree.read(caller, &path).map(<[u8]>::to_vec)
        }
        kind::GET_PERMS => {
            let path = Path::parse(one_string(payload)?, &home)?;
            tree.permissions(caller, &path).map(Permissions::to_bytes)
        }
        kind::WRITE => {
            let (path, value) = split_at_zero(payload)?;
            let path = Path::parse(path, &home)?;
            tree.write(caller, &path, value)?;
            touch(path, Touched::Written);
            Ok(ok())
        }
        kind::MKDIR => {
            let path = Path::parse(one_string(payload)?, &home)?;
            let is_new = !tree.contains(&path);
            tree.make_directory(caller, &path)?;
            if is_new {
                touch(path, Touched::Written);
            }
            Ok(ok())
        }
        kind::RM => {
            let path = Path::parse(one_string(payload)?, &home)?;
            if tree.remove(caller, &path)? {
                touch(path, Touched::Removed);
            }
            Ok(ok())
        }
        kind::SET_PERMS => {
            let (path, permissions) = split_at_zero(payload)?;
            let path = Path::parse(path, &home)?;
            tree.set_permissions(caller, &path, Permissions::from_bytes(permissions)?)?;
            touch(path, Touched::PermissionsSet);
            Ok(ok())
        }
        kind::GET_DOMAIN_PATH => {
            let domain = domain_number(one_string(payload)?)?;
            Ok(format!("{}\0", DomainId(domain).home()).into_bytes())
        }
        kind::IS_DOMAIN_INTRODUCED => {
            let domain = domain_number(one_string(payload)?)?;
            let known = [DomainId::CONTROL.0, caller.0, DOMAIN_SELF].contains(&domain);
            Ok(if known { b"T\0".to_vec() } else { b"F\0".to_vec() })
        }
        // Only the control domain may.
        kind::CONTROL | kind::INTRODUCE | kind::RELEASE | kind::RESUME | kind::SET_TARGET => {
            Err(Refusal::Denied)
        }
        // DIRECTORY_PART (20) too: the daemon of the older hosts does not know it.
        _ => Err(Refusal::NoSuchCall),
    }
}

fn ok() -> Vec<u8> {
    b"OK\0".to_vec()
}

/// `<string>|` and nothing after it.
fn one_string(payload: &[u8]) -> Result<&[u8], Refusal> {
    match split_at_zero(payload)? {
        (string, b"") => Ok(string),
        _ => Err(Refusal::Invalid),
    }
}

/// `<string>|<string>|` and nothing after it.
fn two_strings(payload: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let (first, rest) = split_at_zero(payload)?;
    Ok((first, one_string(rest)?))
}

/// `<string>|<rest>`.
fn split_at_zero(payload: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let at = payload.iter().position(|byte| *byte == 0).ok_or(Refusal::Invalid)?;
    Ok((&payload[..at], &payload[at + 1..]))
}

fn domain_number(text: &[u8]) -> Result<u32, Refusal> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(Refusal::Invalid)
}

fn event_payload(path: &[u8], token: &[u8]) -> Vec<u8> {
    [path, b"\0", token, b"\0"].concat()
}
