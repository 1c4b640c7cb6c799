//! Sessions: login, logout, expiry. The reference of a session is a secret and never leaves in a log.

use crate::dispatch::unknown;
use crate::failure::{Failure, Outcome};
use crate::rbac;
use crate::rpc::value::Value;
use crate::sim::{Args, Context, State, now};
use crate::store::db::Db;

/// Sessions per originator and per user; the oldest go first.
const MAX_SESSIONS: usize = 500;
/// Idle time after which a session is gone, in seconds.
const IDLE_LIMIT: u64 = 86_400;

pub(crate) async fn call(context: &Context, name: &str, args: &Args) -> Outcome<Value> {
    match name {
        "login_with_password" => {
            login(context, args.text(0), args.text(1), args.text(3)).await.map(Value::Text)
        }
        "logout" => {
            context.with(|s| s.db.remove("session", &context.session));
            Ok(Value::void())
        }
        "change_password" => change_password(context, args.text(0), args.text(1)),
        _ => Err(unknown("session", name)),
    }
}

/// Makes a session, or refuses after the deliberate delay. Callers on the Unix socket are root already.
pub(crate) async fn login(
    context: &Context,
    user: &str,
    password: &str,
    originator: &str,
) -> Outcome<String> {
    let config = &context.sim.config;
    let superuser = context.trusted || (user == config.user && password == *context.sim.password());
    let known = config.extra_users.iter().find(|known| known.name == user && known.password == password);
    if !superuser && known.is_none() {
        tokio::time::sleep(config.login_delay).await;
        let text = "Authentication failure";
        return Err(Failure::new("SESSION_AUTHENTICATION_FAILED", [user, text]));
    }
    let granted = match known {
        Some(known) if !superuser => Some(rbac::permissions(&context.sim.methods, known.role)),
        _ => None,
    };
    Ok(context.with(|s| open(s, user, originator, granted)))
}

/// Makes a session; `granted` is what a user may do who is not the superuser.
fn open(state: &mut State, user: &str, originator: &str, granted: Option<Vec<String>>) -> String {
    let mut record = Db::blank("session");
    let host = state.db.refs("host").into_iter().next().unwrap_or_default();
    let name = if user.is_empty() { "root" } else { user };
    record.insert("this_host".into(), Value::text(host));
    record.insert("last_active".into(), now());
    record.insert("validation_time".into(), now());
    record.insert("is_local_superuser".into(), Value::Bool(granted.is_none()));
    record.insert("rbac_permissions".into(), Value::texts(granted.unwrap_or_default()));
    record.insert("auth_user_name".into(), Value::text(name));
    record.insert("originator".into(), Value::text(originator));
    record.insert("client_certificate".into(), Value::Bool(false));
    let reference = state.db.create("session", record);
    for (field, value) in [("originator", originator), ("auth_user_name", name)] {
        drop_oldest(state, field, value);
    }
    reference
}

fn drop_oldest(state: &mut State, field: &str, value: &str) {
    let mut same = state.db.find("session", field, value);
    same.sort_by_key(|r| state.db.row("session", r).map_or(0, |row| row.created));
    let surplus = same.len().saturating_sub(MAX_SESSIONS);
    for oldest in &same[..surplus] {
        state.db.remove("session", oldest);
    }
}

/// Checks the session of a call and marks it active.
pub(crate) fn check(context: &Context) -> Outcome<()> {
    let session = &context.session;
    context.with(|s| {
        let invalid = || Failure::new("SESSION_INVALID", [session.clone()]);
        let row = s.db.row("session", session).ok_or_else(invalid)?;
        let last = row.record.get("last_active").and_then(Value::as_text).unwrap_or_default().to_owned();
        if last.as_str() < idle_since().as_str() {
            s.db.remove("session", session);
            return Err(invalid());
        }
        s.db.put("session", session, "last_active", now());
        Ok(())
    })
}

fn idle_since() -> String {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|d| d.as_secs().saturating_sub(IDLE_LIMIT))
        .unwrap_or_default();
    crate::rpc::value::format_date(seconds)
}

fn change_password(context: &Context, old: &str, new: &str) -> Outcome<Value> {
    let mut password = context.sim.password();
    if *password != old {
        return Err(Failure::new("CHANGE_PASSWORD_REJECTED", ["Authentication failure"]));
    }
    *password = new.to_owned();
    Ok(Value::void())
}
