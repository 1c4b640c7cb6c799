//! The pool's events, by `event.from`.
//!
//! A stream asks when it is polled and holds no task: dropping it ends the request. The first answer lists
//! every object of the subscription as it is, the following ones list changes. While one waits the connection
//! is busy, so other calls use another one.
//!
//! A token is a place in one master's history. Another master, or the same one after its toolstack was restarted,
//! may be behind it, and would then say nothing for a long time. So a stream starts over with every new session.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::login::Link;
use crate::observer::Call;
use crate::record::{Class, Ref, expect, expect_record, words};
use crate::value::Value;

/// What a call may take longer than the wait it asks for.
const SLACK: Duration = Duration::from_secs(30);

/// Shortest time between two questions that bring nothing new: a host that answers at once with nothing, or with
/// the same again, must not keep both sides busy.
pub(crate) const QUIET_GAP: Duration = Duration::from_millis(500);

const METHOD: &str = "event.from";

words! {
    /// What happened to an object.
    Operation { Add = "add", Mod = "mod", Del = "del", }
}

/// A change of one object.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Class in lower case, such as `vm`.
    pub class: String,
    /// The object's reference.
    pub reference: String,
    /// What happened.
    pub operation: Operation,
    /// The object after the change; none after its end.
    pub record: Option<Value>,
}

impl Change {
    /// The object, if it is of class `T` and still there.
    pub fn as_record<T: Class>(&self) -> Option<Result<(Ref<T>, T)>> {
        let record = self.record.as_ref().filter(|_| self.class.eq_ignore_ascii_case(T::NAME))?;
        let read = expect_record(METHOD, record);
        Some(read.map(|read| (Ref::from_opaque(self.reference.clone()), read)))
    }
}

/// An item of an [`EventStream`].
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An object is new, different or gone.
    Changed(Change),
    /// The pool lost its history, or another master has another one: forget what you know, everything follows again.
    Resync,
}

/// A subscription.
#[derive(Debug)]
pub struct EventStream {
    client: Client,
    classes: Vec<String>,
    token: String,
    /// The link that gave the token.
    link: Option<u64>,
    pending: VecDeque<Event>,
}

impl Client {
    /// Subscribes to classes (`vm`), objects (`vm/OpaqueRef:...`) or everything (`*`). Nothing is asked
    /// before the first [`next`](EventStream::next).
    pub fn events(&self, classes: &[&str]) -> EventStream {
        let classes = classes.iter().map(|class| (*class).to_owned()).collect();
        EventStream {
            client: self.clone(),
            classes,
            token: String::new(),
            link: None,
            pending: VecDeque::new(),
        }
    }
}

impl EventStream {
    /// The next event, however long it takes. An error does not end the stream: ask again.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(event);
            }
            self.ask(self.client.timeouts().event).await?;
        }
    }

    /// The next event within a time.
    pub(crate) async fn next_within(&mut self, wait: Duration) -> Result<Option<Event>> {
        if self.pending.is_empty() {
            self.ask(wait).await?;
        }
        Ok(self.pending.pop_front())
    }

    /// Asks once; the pool answers when there is something, or with nothing after `wait`.
    async fn ask(&mut self, wait: Duration) -> Result<()> {
        let classes = self.classes.iter().map(|class| Value::from(class.as_str())).collect();
        let params = [Value::Array(classes), self.token.as_str().into(), wait.as_secs_f64().into()];
        let call = Call { method: METHOD, params: &params, mutating: false };
        let asked = Instant::now();
        let client = self.client.clone();
        let (token, pending) = (&mut self.token, &mut self.pending);
        let arguments = |link: &Link| {
            if self.link.replace(link.number).is_some_and(|before| before != link.number) && !token.is_empty()
            {
                token.clear();
                pending.push_back(Event::Resync);
            }
            let [classes, _, wait] = &params;
            vec![link.session.as_str().into(), classes.clone(), token.as_str().into(), wait.clone()]
        };
        let answer = match client.observed(&call, client.over_links(METHOD, arguments, wait + SLACK)).await {
            Ok(answer) => answer,
            Err(error) if matches!(error.code(), "EVENTS_LOST" | "EVENT_FROM_TOKEN_PARSE_FAILURE") => {
                self.token.clear();
                // A host that loses its history every time must not keep us busy.
                sleep_until(asked + QUIET_GAP.min(wait)).await;
                self.pending.push_back(Event::Resync);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let bad = |what: &str| Error::new(Kind::Protocol, METHOD, format!("the pool's answer has no {what}"));
        let token: String = expect(METHOD, answer.get("token").ok_or_else(|| bad("token"))?)?;
        let events = answer.get("events").and_then(Value::as_array).ok_or_else(|| bad("events"))?;
        let changes = events
            .iter()
            .map(|event| change(event).ok_or_else(|| bad("usable event")))
            .collect::<Result<Vec<_>>>()?;
        if changes.is_empty() || token == self.token {
            sleep_until(asked + QUIET_GAP.min(wait)).await;
        }
        self.token = token;
        self.pending.extend(changes.into_iter().map(Event::Changed));
        Ok(())
    }
}

fn change(event: &Value) -> Option<Change> {
    let word = |name| event.get(name).and_then(Value::as_str);
    let record = event.get("snapshot").filter(|record| matches!(record, Value::Struct(_)));
    Some(Change {
        class: word("class")?.to_ascii_lowercase(),
        reference: word("ref")?.to_owned(),
        operation: word("operation")?.into(),
        record: record.cloned(),
    })
}
