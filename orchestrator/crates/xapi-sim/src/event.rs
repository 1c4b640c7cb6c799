//! Events: what changed since a token, waiting where nothing did. Also the legacy register/next form.

use crate::dispatch::unknown;
use crate::failure::{Failure, Outcome};
use crate::generic::present;
use crate::rpc::value::{Record, Value};
use crate::sim::{Args, Context, State};
use crate::store::schema::schema;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The longest a caller may wait, in seconds.
const MAX_WAIT: f64 = 86_400.0;
/// Classes that emit no events.
const SILENT: [&str; 3] = ["session", "event", "user"];

/// One subscription: a class (or `*`) and perhaps one object of it, in lower case as clients may write either.
#[derive(Debug)]
struct Subscription {
    class: String,
    object: Option<String>,
}

impl Subscription {
    fn parse(text: &str) -> Outcome<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [class] => Ok(Self { class: class.to_lowercase(), object: None }),
            [class, object] => Ok(Self { class: class.to_lowercase(), object: Some(object.to_owned()) }),
            _ => Err(Failure::new("EVENT_SUBSCRIPTION_PARSE_FAILURE", [text])),
        }
    }

    fn matches(&self, class: &str, object: &str) -> bool {
        (self.class == "*" || self.class.eq_ignore_ascii_case(class))
            && self.object.as_deref().is_none_or(|wanted| wanted == object)
    }
}

pub(crate) async fn call(context: &Context, name: &str, args: &Args) -> Outcome<Value> {
    match name {
        "from" => from(context, &args.texts(0), args.text(1), args.float(2)).await,
        "inject" => inject(context, args.text(0), args.text(1)),
        "get_current_id" => Ok(context.with(|s| int(s.db.generation()))),
        "register" => register(context, args.texts(0), true),
        "unregister" => register(context, args.texts(0), false),
        "next" => next(context).await,
        _ => Err(unknown("event", name)),
    }
}

fn int(n: u64) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

fn format_token(generation: u64) -> String {
    format!("{generation:020},{:020}", 0)
}

fn parse_token(token: &str) -> Outcome<u64> {
    if token.is_empty() {
        return Ok(0);
    }
    let parsed = token.split_once(',').and_then(|(a, b)| {
        b.parse::<u64>().ok()?;
        a.parse::<u64>().ok()
    });
    parsed.ok_or_else(|| Failure::new("EVENT_FROM_TOKEN_PARSE_FAILURE", [token]))
}

async fn from(context: &Context, classes: &[String], token: &str, timeout: f64) -> Outcome<Value> {
    let subscriptions = classes.iter().map(|c| Subscription::parse(c)).collect::<Outcome<Vec<_>>>()?;
    let mut since = parse_token(token)?;
    let wait = if timeout.is_finite() { timeout.clamp(0.0, MAX_WAIT) } else { MAX_WAIT };
    let deadline = Instant::now() + Duration::from_secs_f64(wait);
    let mut changes = context.sim.changes.subscribe();
    loop {
        changes.borrow_and_update();
        let (events, batch) = context.with(|s| -> Outcome<_> {
            if !s.db.exists("session", &context.session) {
                return Err(Failure::new("SESSION_INVALID", [context.session.clone()]));
            }
            let mut events = collect(s, &subscriptions, since)?;
            let lost = context.sim.faults().lose_events(events.len());
            events.drain(..lost);
            if lost > 0 {
                // A wait that goes on must not find them again.
                since = s.db.generation();
            }
            Ok((!events.is_empty(), batch(s, events)))
        })?;
        if events || timeout_at(deadline, changes.changed()).await.is_err() {
            return Ok(batch);
        }
    }
}

/// An answer of `event.from` in which every event stands twice.
pub(crate) fn doubled(mut answer: Value) -> Value {
    if let Value::Map(members) = &mut answer
        && let Some(Value::List(events)) = members.get_mut("events")
    {
        *events = std::mem::take(events).into_iter().flat_map(|event| [event.clone(), event]).collect();
    }
    answer
}

fn batch(state: &State, events: Vec<Value>) -> Value {
    let counts = schema().classes.iter().map(|class| {
        let count = state.db.refs(&class.name).len();
        (class.name.to_lowercase(), Value::Count(i32::try_from(count).unwrap_or(i32::MAX)))
    });
    let members = [
        ("events".to_owned(), Value::List(events)),
        ("valid_ref_counts".to_owned(), Value::Map(counts.collect())),
        ("token".to_owned(), Value::text(format_token(state.db.generation()))),
    ];
    Value::Map(members.into_iter().collect())
}

/// One event per object: added, else modified, else deleted after `since`.
fn collect(state: &State, subscriptions: &[Subscription], since: u64) -> Outcome<Vec<Value>> {
    if since != 0 && since < state.db.forgotten() {
        return Err(Failure::bare("EVENTS_LOST"));
    }
    let wanted = |class: &str, object: &str| {
        !SILENT.contains(&class) && subscriptions.iter().any(|s| s.matches(class, object))
    };
    let (mut added, mut changed, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for (class, table) in state.db.tables() {
        for (reference, row) in table.iter().filter(|(r, row)| row.modified > since && wanted(class, r)) {
            let snapshot = present(state, class, reference, &row.record);
            let (list, operation) =
                if row.created > since { (&mut added, "add") } else { (&mut changed, "mod") };
            list.push((row.modified, event(row.modified, class, operation, reference, Some(snapshot))));
        }
    }
    for gone in state.db.deletions().filter(|d| d.deleted > since && d.created <= since) {
        if wanted(&gone.class, &gone.reference) {
            removed.push((gone.deleted, event(gone.deleted, &gone.class, "del", &gone.reference, None)));
        }
    }
    let mut all = Vec::new();
    for mut list in [added, changed, removed] {
        list.sort_by_key(|(generation, _)| *generation);
        all.extend(list.into_iter().map(|(_, event)| event));
    }
    Ok(all)
}

fn event(id: u64, class: &str, operation: &str, reference: &str, snapshot: Option<Record>) -> Value {
    let mut members: Record = [
        ("id", id.to_string()),
        ("timestamp", "0.0".to_owned()),
        ("class", class.to_lowercase()),
        ("operation", operation.to_owned()),
        ("ref", reference.to_owned()),
    ]
    .into_iter()
    .map(|(name, text)| (name.to_owned(), Value::Text(text)))
    .collect();
    if let Some(snapshot) = snapshot {
        members.insert("snapshot".into(), Value::Map(snapshot));
    }
    Value::Map(members)
}

fn inject(context: &Context, class: &str, reference: &str) -> Outcome<Value> {
    let exact =
        schema().classes.iter().find(|c| c.name.eq_ignore_ascii_case(class)).map_or(class, |c| &c.name);
    context.with(|s| {
        let before = s.db.generation();
        s.db.touch(exact, reference)?;
        Ok(Value::text(format_token(before)))
    })
}

fn register(context: &Context, classes: Vec<String>, add: bool) -> Outcome<Value> {
    context.with(|s| {
        let now = s.db.generation();
        let entry = s.registrations.entry(context.session.clone()).or_insert((Vec::new(), now));
        entry.0.retain(|c| !classes.contains(c));
        if add {
            entry.0.extend(classes);
        }
        Ok(Value::void())
    })
}

async fn next(context: &Context) -> Outcome<Value> {
    let mut changes = context.sim.changes.subscribe();
    loop {
        changes.borrow_and_update();
        let events = context.with(|s| {
            let missing = || Failure::new("SESSION_NOT_REGISTERED", [context.session.clone()]);
            let (classes, since) = s.registrations.get(&context.session).cloned().ok_or_else(missing)?;
            let subscriptions =
                classes.iter().map(|c| Subscription::parse(c)).collect::<Outcome<Vec<_>>>()?;
            let events = collect(s, &subscriptions, since)?;
            let now = s.db.generation();
            s.registrations.insert(context.session.clone(), (classes, now));
            Ok(events)
        })?;
        if !events.is_empty() || changes.changed().await.is_err() {
            return Ok(Value::List(events));
        }
    }
}
