//! What was found of one delegate that was started only to look: for programs as it is, for people as text, and as
//! findings with what to do.

use crate::error::Kind;
use crate::preflight::{Code, Finding, Object, ObjectKind, WIDTH, wrap};
use crate::printable::printable;
use crate::report::DelegateSummary;
use blocks::ByteCount;
use serde::{Serialize, Serializer};
use wire::{Diagnosis, Failure, Speed};

/// A delegate that claims its order later than this after the start of its kernel makes every job wait.
const LATE_MS: u32 = 30_000;
/// Slower disks and networks make a job of a 100 GiB disk last three hours and more.
const SLOW: ByteCount = ByteCount::new(10 << 20);
/// Below this many bytes a speed says nothing.
const SAID: ByteCount = ByteCount::new(1 << 20);
/// Every question to the store takes as long as the way there and back.
const FAR_US: u64 = 50_000;
/// As where the pool's clock is compared.
const CLOCK_MS: u64 = 60_000;
/// What must be left of a delegate's memory when it works.
const SPARE: ByteCount = ByteCount::new(16 << 20);

/// What was found on one host.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DelegateCheck {
    /// The pool's name in the configuration.
    pub pool: String,
    /// The host's name.
    pub host: String,
    /// Its uuid.
    pub host_uuid: String,
    /// Uuid of the job that it was; empty where it did not begin.
    pub job: String,
    /// From the first call to the last.
    pub elapsed_ms: u64,
    /// How far the delegate came, as it said through XenStore.
    pub states: Vec<Reached>,
    /// Its addresses, separated by spaces; empty where it has none.
    pub addresses: String,
    /// Its cards, in the order of their numbers.
    pub cards: Vec<CardCheck>,
    /// What it measured, where it came so far.
    #[serde(flatten)]
    pub measures: Option<Measures>,
    /// A short code for why it came no further.
    pub code: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
    /// What could not be removed from the pool.
    pub leftovers: Vec<String>,
    /// For the exit code; none where all is well.
    #[serde(skip)]
    pub kind: Option<Kind>,
}

/// A state of a delegate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// Its name.
    pub state: String,
    /// Milliseconds after the pool was asked to start the delegate, as the pool's events told it.
    pub at_ms: u64,
}

/// A card of a delegate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CardCheck {
    /// XAPI's position of the VIF.
    pub number: u32,
    /// The network's name.
    pub network: String,
    /// Its addresses, separated by spaces; empty where it has none.
    pub addresses: String,
}

/// What a delegate measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measures {
    /// What it says of itself.
    #[serde(flatten)]
    pub delegate: DelegateSummary,
    /// Its clock.
    #[serde(flatten)]
    pub clock: Clock,
    /// The rest.
    #[serde(flatten, serialize_with = "diagnosis")]
    pub told: Diagnosis,
}

/// A delegate's clock beside ours. The difference includes the way of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Clock {
    /// Milliseconds by which it is ahead of this machine's; behind where negative.
    pub clock_ahead_ms: i64,
}

impl Clock {
    /// From milliseconds since 1970 by its clock and by ours.
    pub fn of(its: u64, ours: u64) -> Self {
        let ahead = i128::from(its) - i128::from(ours);
        Self { clock_ahead_ms: i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX }) }
    }

    fn text(self) -> String {
        let ms = self.clock_ahead_ms.unsigned_abs();
        let way = if self.clock_ahead_ms < 0 { "behind" } else { "ahead of" };
        format!("{}.{} s {way} this machine's", ms / 1000, ms % 1000 / 100)
    }
}

/// What was measured, with members of their own for what could not be.
fn diagnosis<S: Serializer>(told: &Diagnosis, serializer: S) -> Result<S::Ok, S::Error> {
    fn or_failure<T: Serialize>(result: &Result<T, Failure>) -> serde_json::Value {
        let value = match result {
            Ok(value) => serde_json::to_value(value),
            Err(failure) => serde_json::to_value(failure),
        };
        value.unwrap_or_default()
    }
    let speed = |result: &Result<Speed, Failure>| {
        let mut value = or_failure(result);
        if let (Ok(speed), Some(members)) = (result, value.as_object_mut()) {
            members.insert("bytes_per_second".into(), speed.per_second().map(ByteCount::get).into());
        }
        value
    };
    serde_json::json!({
        "processors": told.processors, "milestones": told.milestones,
        "connect": or_failure(&told.connect), "round_trip_us": or_failure(&told.round_trip_us),
        "read": speed(&told.read), "send": speed(&told.send),
    })
    .serialize(serializer)
}

impl DelegateCheck {
    /// Of a host about which nothing is known yet.
    pub fn of(pool: &str, host: &str, host_uuid: &str) -> Self {
        Self {
            pool: pool.to_owned(),
            host: host.to_owned(),
            host_uuid: host_uuid.to_owned(),
            ..Self::default()
        }
    }

    /// Whether everything was measured and nothing is left in the pool.
    pub fn is_sound(&self) -> bool {
        self.error.is_none() && self.failures().is_empty()
    }

    /// The measurements that failed: what they are of, and why.
    fn failures(&self) -> Vec<(&'static str, &Failure)> {
        let Some(Measures { told, .. }) = &self.measures else { return Vec::new() };
        let failures = [
            ("open another connection", told.connect.as_ref().err()),
            ("ask the service", told.round_trip_us.as_ref().err()),
            ("read its own disk", told.read.as_ref().err()),
            ("send to the service", told.send.as_ref().err()),
        ];
        failures.into_iter().filter_map(|(what, failure)| Some((what, failure?))).collect()
    }

    /// What it means for jobs, with what to do.
    pub fn findings(&self) -> Vec<Finding> {
        let object = || Object::new(ObjectKind::Host, &self.host, &self.host_uuid);
        let name = &self.host;
        let mut findings = Vec::new();
        if let Some(error) = &self.error {
            let code = self.code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default();
            let remedy = self.remedy.clone().unwrap_or_else(|| {
                "look at its console in XenCenter while it runs, and at the pool's log; `abd -vv` says more".into()
            });
            let message = format!("a delegate on host '{name}' failed{code}: {error}");
            let finding = Finding::error(Code::Delegate, object(), message, remedy);
            findings.push(Finding { kind: self.kind.unwrap_or(Kind::Failed), ..finding });
        }
        for (what, failure) in self.failures() {
            let message =
                format!("a delegate on host '{name}' could not {what} ({}): {failure}", failure.code);
            let remedy = wire::advice(&failure.code).unwrap_or("look at its console in XenCenter");
            findings.push(Finding::error(Code::Delegate, object(), message, remedy));
        }
        if let Some(measures) = &self.measures {
            findings.extend(self.slow(measures).into_iter().map(|(what, remedy)| {
                Finding::warning(Code::DelegateSlow, object(), format!("on host '{name}' {what}"), remedy)
            }));
            findings.extend(self.odd(measures).into_iter().map(|(code, what, remedy)| {
                Finding::warning(code, object(), format!("a delegate on host '{name}' {what}"), remedy)
            }));
        }
        if findings.is_empty() {
            let message = format!("a delegate on host '{name}' works, and is gone again");
            findings.push(Finding::ok(Code::Delegate, object(), message));
        }
        for finding in &mut findings {
            finding.pool = Some(self.pool.clone());
        }
        findings
    }

    fn slow(&self, measures: &Measures) -> Vec<(String, &'static str)> {
        let Measures { delegate, told, .. } = measures;
        let mut slow = Vec::new();
        if delegate.claim_ms > LATE_MS {
            let what = format!(
                "a delegate has its order only {} after its kernel's start, {} of it before user space",
                seconds(delegate.claim_ms.into()),
                seconds(delegate.boot_ms.into())
            );
            slow.push((
                what,
                "look at the load of the host, and at the milestones in `--json` for what it waited for",
            ));
        }
        let speeds = [
            (&told.read, "reading the delegate's own disk", "look at that storage, its path and its load"),
            (
                &told.send,
                "sending to this machine",
                "look at the network between, and at the load of both sides",
            ),
        ];
        for (speed, what, remedy) in speeds {
            if let Some(rate) = said(speed).filter(|rate| *rate < SLOW) {
                slow.push((format!("{what} gives {rate} per second"), remedy));
            }
        }
        if let Some(micros) = told.round_trip_us.as_ref().ok().filter(|micros| **micros > FAR_US) {
            let what = format!("a call to this machine takes {} at best", millis(*micros));
            slow.push((what, "run the jobs from a machine that is nearer to the pool"));
        }
        slow
    }

    fn odd(&self, measures: &Measures) -> Vec<(Code, String, &'static str)> {
        let Measures { delegate, clock, .. } = measures;
        let mut odd = Vec::new();
        if clock.clock_ahead_ms.unsigned_abs() > CLOCK_MS {
            let what = format!("has a clock that is {}", clock.text());
            odd.push((Code::DelegateClock, what, "set up NTP on the host and on this machine"));
        }
        if !delegate.engine.starts_with("io_uring") {
            let what = format!("reads disks the slow way: {}", delegate.engine);
            odd.push((
                Code::DelegateEngine,
                what,
                "import the template that belongs to this version; report it if it stays so",
            ));
        }
        if delegate.available_low < SPARE.get() {
            let what = format!("had only {} of memory left", ByteCount::new(delegate.available_low));
            odd.push((Code::DelegateMemory, what, "give delegates more with --delegate-memory"));
        }
        odd
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut lines =
            vec![format!("delegate on host '{}' of pool '{}'", printable(&self.host), printable(&self.pool))];
        let mut row = |name: &str, text: String| {
            let mut heads = std::iter::once(name).chain(std::iter::repeat(""));
            lines.extend(
                wrap(&text, WIDTH - 14)
                    .into_iter()
                    .map(|line| format!("  {:<10}  {line}", heads.next().unwrap_or_default())),
            );
        };
        if !self.states.is_empty() {
            let states = self.states.iter().map(|one| format!("{} {}", one.state, seconds(one.at_ms)));
            row("reached", states.collect::<Vec<_>>().join(", "));
        }
        match self.cards.as_slice() {
            cards @ [_, _, ..] => {
                for CardCheck { number, network, addresses } in cards {
                    let addresses = if addresses.is_empty() { "no address" } else { addresses };
                    row(&format!("card {number}"), format!("{addresses} on network '{network}'"));
                }
            }
            _ if self.addresses.is_empty() => {}
            _ => row("address", self.addresses.clone()),
        }
        if let Some(Measures { delegate, clock, told }) = &self.measures {
            let (boot, claim) = (seconds(delegate.boot_ms.into()), seconds(delegate.claim_ms.into()));
            row("boot", format!("user space {boot} after the kernel's start, order {claim}"));
            row(
                "connect",
                match (&told.connect, &told.round_trip_us) {
                    (Ok(connect), trip) => {
                        let trip = trip.as_ref().map_or_else(
                            |failure| format!("no calls ({})", failure.code),
                            |micros| format!("a call {}", millis(*micros)),
                        );
                        let (tcp, tls) = (millis(connect.tcp_us), millis(connect.tls_us));
                        format!("{}: TCP {tcp}, TLS {tls}, {trip}", connect.address)
                    }
                    (Err(failure), _) => format!("FAILED ({}): {failure}", failure.code),
                },
            );
            row("own disk", speed(&told.read, "read"));
            row("send", speed(&told.send, "sent"));
            row("clock", clock.text());
            let bytes = ByteCount::new;
            row(
                "memory",
                format!(
                    "{} seen, {} free at the lowest, worker's peak {}",
                    bytes(delegate.memory),
                    bytes(delegate.available_low),
                    bytes(delegate.worker_peak)
                ),
            );
            let count = match told.processors {
                1 => "1 processor".to_owned(),
                count => format!("{count} processors"),
            };
            row(
                "engine",
                format!("{}, {count}, {} of its time used", delegate.engine, seconds(delegate.cpu_ms)),
            );
        }
        if let Some(error) = &self.error {
            let at = self.states.iter().rev().find(|one| one.state != wire::State::Failed.name());
            let at = at.map_or_else(|| "its start".to_owned(), |one| format!("'{}'", one.state));
            let code = self.code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default();
            row("FAILED", format!("after {at}{code}: {error}"));
        }
        for leftover in &self.leftovers {
            row("left", leftover.clone());
        }
        lines.join("\n")
    }
}

/// A speed that was measured over enough to say something.
fn said(speed: &Result<Speed, Failure>) -> Option<ByteCount> {
    let speed = speed.as_ref().ok()?;
    // What took ten seconds and is little is slow, too.
    (speed.bytes >= SAID || speed.micros > 5_000_000).then(|| speed.per_second()).flatten()
}

fn speed(speed: &Result<Speed, Failure>, did: &str) -> String {
    match speed {
        Ok(speed) => {
            let rate = speed.per_second().map(|rate| format!(" at {rate}/s")).unwrap_or_default();
            format!("{} {did}{rate}, the slowest piece {}", speed.bytes, millis(speed.slowest_us))
        }
        Err(failure) => format!("FAILED ({}): {failure}", failure.code),
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

fn millis(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
