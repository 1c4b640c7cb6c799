//! What the queue promises, by example and for random runs.

use super::*;
use proptest::prelude::*;

fn limits() -> Limits {
    Limits {
        max_jobs: 3,
        max_jobs_per_pool: None,
        max_jobs_per_host: 2,
        max_jobs_per_sr: 1,
        delegate_memory_budget: None,
    }
}

fn needs(storage: &[&str], hosts: &[&str]) -> Needs {
    Needs {
        pool: "p".into(),
        storage: storage.iter().map(|sr| (*sr).to_owned()).collect(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        memory: ByteCount::new(128),
        fixed_address: false,
    }
}

fn started(queue: &mut Queue) -> Vec<Ticket> {
    std::iter::from_fn(|| queue.start_next()).map(|grant| grant.ticket).collect()
}

#[test]
fn a_blocked_job_is_overtaken_only_by_jobs_that_need_something_else() {
    let mut queue = Queue::new(limits());
    let mut push = |storage: &[&str]| queue.push(needs(storage, &["h"])).expect("possible");
    let (first, blocked, same, other) = (push(&["a"]), push(&["a", "b"]), push(&["a"]), push(&["b"]));
    assert_eq!(started(&mut queue), [first, other], "nobody waits for b yet");
    queue.release(other);
    assert_eq!(started(&mut queue), [], "a is busy");
    queue.release(first);
    assert_eq!(started(&mut queue), [blocked]);
    queue.release(blocked);
    assert_eq!(started(&mut queue), [same]);
}

#[test]
fn delegates_with_a_fixed_address_run_one_after_the_other_in_each_pool() {
    let mut queue = Queue::new(limits());
    let mut push = |pool: &str| {
        let needs = Needs { pool: pool.into(), fixed_address: true, ..needs(&[], &[]) };
        queue.push(needs).expect("possible")
    };
    let (first, second, elsewhere) = (push("p"), push("p"), push("q"));
    let dhcp = queue.push(needs(&[], &[])).expect("possible");
    assert_eq!(started(&mut queue), [first, elsewhere, dhcp]);
    queue.release(first);
    assert_eq!(started(&mut queue), [second]);
}

#[test]
fn one_busy_storage_repository_holds_up_nobody_else() {
    let mut queue = Queue::new(limits());
    let mut push = |storage: &str| queue.push(needs(&[storage], &[])).expect("possible");
    let slow = [push("a"), push("a"), push("a"), push("a")];
    let (b, c) = (push("b"), push("c"));
    assert_eq!(started(&mut queue), [slow[0], b, c]);
}

#[test]
fn a_job_that_waits_for_two_things_in_turn_gets_both() {
    let mut queue = Queue { patience: 3, ..Queue::new(Limits { max_jobs_per_host: 1, ..limits() }) };
    let push = |queue: &mut Queue, storage: &[&str], hosts: &[&str]| {
        queue.push(needs(storage, hosts)).expect("possible")
    };
    let mut storage = push(&mut queue, &["a"], &[]);
    let patient = push(&mut queue, &["a"], &["h"]);
    let mut host = push(&mut queue, &[], &["h"]);
    assert_eq!(started(&mut queue), [storage, host]);
    for turn in 0.. {
        // Whichever of the two becomes free, somebody who needs nothing else is there to take it.
        let next = push(&mut queue, &["a"], &[]);
        queue.release(std::mem::replace(&mut storage, next));
        let mut now = started(&mut queue);
        let next = push(&mut queue, &[], &["h"]);
        queue.release(std::mem::replace(&mut host, next));
        now.extend(started(&mut queue));
        if now.contains(&patient) {
            break;
        }
        assert!(turn < 4, "starved");
    }
}

#[test]
fn the_best_host_with_room_is_granted() {
    let mut queue = Queue::new(Limits { max_jobs: 9, max_jobs_per_sr: 9, ..limits() });
    for _ in 0..5 {
        queue.push(needs(&["a"], &["own", "other"])).expect("possible");
    }
    let hosts: Vec<_> = std::iter::from_fn(|| queue.start_next()).filter_map(|grant| grant.host).collect();
    assert_eq!(hosts, ["own", "own", "other", "other"]);
    assert_eq!((queue.running_count(), queue.waiting_count()), (4, 1));
}

#[test]
fn a_large_delegate_is_not_starved_by_small_ones() {
    let budget = Some(ByteCount::new(300));
    let mut queue = Queue::new(Limits { max_jobs: 9, delegate_memory_budget: budget, ..limits() });
    let mut push = |memory: u64| {
        queue.push(Needs { memory: ByteCount::new(memory), ..needs(&[], &[]) }).expect("possible")
    };
    let (small, large, late) = (push(100), push(300), push(100));
    assert_eq!(started(&mut queue), [small]);
    queue.release(small);
    assert_eq!(started(&mut queue), [large]);
    queue.release(large);
    assert_eq!(started(&mut queue), [late]);
}

#[test]
fn a_job_that_never_fits_is_refused_at_once() {
    let mut queue = Queue::new(Limits { delegate_memory_budget: Some(ByteCount::new(127)), ..limits() });
    assert_eq!(queue.push(needs(&["a"], &["h"])), None);
    assert_eq!(queue.waiting_count(), 0);
}

#[test]
fn jobs_that_have_not_started_can_be_taken_back() {
    let mut queue = Queue::new(limits());
    let first = queue.push(needs(&["a"], &["h"])).expect("possible");
    let second = queue.push(needs(&["a"], &["h"])).expect("possible");
    assert_eq!(started(&mut queue), [first]);
    assert_eq!(queue.drain(), [second]);
    queue.release(first);
    queue.release(first);
    assert_eq!(started(&mut queue), []);
    assert_eq!(queue.running_count(), 0);
}

/// Small, so that random runs get there.
const PATIENCE_IN_TESTS: u32 = 2;

/// What the test believes runs, kept apart from the queue's own books.
#[derive(Default)]
struct Model {
    jobs: BTreeMap<Ticket, Needs>,
    running: BTreeMap<Ticket, Option<String>>,
    waiting: Vec<Ticket>,
    /// How often each waiting job was overtaken.
    overtaken: BTreeMap<Ticket, u32>,
    /// The head of the queue once it is out of patience, and which of the jobs that ran then still run.
    head: Option<(Ticket, BTreeSet<Ticket>)>,
}

impl Model {
    fn count(&self, counts: impl Fn(&Needs, Option<&str>) -> bool) -> u32 {
        let running =
            self.running.iter().filter(|(ticket, host)| counts(&self.jobs[ticket], host.as_deref()));
        u32::try_from(running.count()).expect("few")
    }

    fn is_host_full(&self, limits: &Limits, host: &str) -> bool {
        self.count(|_, used| used == Some(host)) >= limits.max_jobs_per_host
    }

    fn is_storage_full(&self, limits: &Limits, sr: &str) -> bool {
        self.count(|needs, _| needs.storage.contains(sr)) >= limits.max_jobs_per_sr
    }

    fn memory(&self) -> u64 {
        self.running.keys().map(|ticket| self.jobs[ticket].memory.get()).sum()
    }

    /// `later` started although `earlier` still waits: it must use nothing that `earlier` waits for.
    fn check_overtaken(&self, limits: &Limits, earlier: &Needs, later: &Needs, host: Option<&str>) {
        for sr in earlier.storage.iter().filter(|sr| self.is_storage_full(limits, sr)) {
            assert!(!later.storage.contains(sr), "overtaken on {sr}");
        }
        let budget = limits.delegate_memory_budget.map_or(u64::MAX, ByteCount::get);
        assert!(self.memory() + earlier.memory.get() <= budget, "overtaken on memory");
        let pool = self.count(|needs, _| needs.pool == earlier.pool);
        if limits.max_jobs_per_pool.is_some_and(|limit| pool >= limit) {
            assert_ne!(earlier.pool, later.pool, "overtaken on a pool");
        }
        let addresses = self.count(|needs, _| needs.pool == earlier.pool && needs.fixed_address);
        if earlier.fixed_address && addresses > 0 {
            assert!(earlier.pool != later.pool || !later.fixed_address, "overtaken on an address");
        }
        if !earlier.hosts.is_empty() && earlier.hosts.iter().all(|host| self.is_host_full(limits, host)) {
            assert!(earlier.hosts.iter().all(|full| Some(full.as_str()) != host), "overtaken on {host:?}");
        }
    }

    fn start(&mut self, limits: &Limits, grant: Grant) {
        let place = self.waiting.iter().position(|ticket| *ticket == grant.ticket).expect("it waited");
        for earlier in &self.waiting[..place] {
            *self.overtaken.entry(*earlier).or_default() += 1;
            let (earlier, later) = (&self.jobs[earlier], &self.jobs[&grant.ticket]);
            self.check_overtaken(limits, earlier, later, grant.host.as_deref());
        }
        let needs = &self.jobs[&grant.ticket];
        match &grant.host {
            Some(host) => assert!(needs.hosts.contains(host)),
            None => assert!(needs.hosts.is_empty()),
        }
        self.waiting.remove(place);
        self.running.insert(grant.ticket, grant.host);
        self.check_limits(limits);
    }

    fn check_limits(&self, limits: &Limits) {
        assert!(self.running.len() <= usize::try_from(limits.max_jobs).expect("few"));
        assert!(self.memory() <= limits.delegate_memory_budget.map_or(u64::MAX, ByteCount::get));
        for name in 0..4 {
            let name = name.to_string();
            let pool = self.count(|needs, _| needs.pool == name);
            assert!(limits.max_jobs_per_pool.is_none_or(|limit| pool <= limit));
            assert!(self.count(|needs, _| needs.pool == name && needs.fixed_address) <= 1);
            assert!(self.count(|needs, _| needs.storage.contains(&name)) <= limits.max_jobs_per_sr);
            assert!(self.count(|_, host| host == Some(&name)) <= limits.max_jobs_per_host);
        }
    }

    /// After everything that may start has started.
    fn check_head(&mut self) {
        assert!(self.waiting.is_empty() || !self.running.is_empty(), "jobs wait and nothing runs");
        let head = self.waiting.first().copied();
        let tired =
            head.filter(|head| self.overtaken.get(head).is_some_and(|count| *count >= PATIENCE_IN_TESTS));
        let Some(head) = tired else { return self.head = None };
        match &mut self.head {
            Some((known, before)) if *known == head => {
                before.retain(|ticket| self.running.contains_key(ticket));
                assert!(!before.is_empty(), "the head is starved: what ran before it has ended");
            }
            _ => self.head = Some((head, self.running.keys().copied().collect())),
        }
    }
}

fn any_needs() -> impl Strategy<Value = Needs> {
    let some = |most| proptest::collection::btree_set(0..4u8, 0..=most);
    (0..2u8, some(3), some(3), 1..=4u64, any::<bool>()).prop_map(|(pool, storage, hosts, memory, fixed)| {
        Needs {
            pool: pool.to_string(),
            storage: storage.iter().map(ToString::to_string).collect(),
            hosts: hosts.iter().rev().map(ToString::to_string).collect(),
            memory: ByteCount::new(memory),
            fixed_address: fixed,
        }
    })
}

fn any_limits() -> impl Strategy<Value = Limits> {
    (1..6u32, proptest::option::of(1..4u32), 1..3u32, 1..3u32, proptest::option::of(4..9u64)).prop_map(
        |(max_jobs, max_jobs_per_pool, max_jobs_per_host, max_jobs_per_sr, budget)| Limits {
            max_jobs,
            max_jobs_per_pool,
            max_jobs_per_host,
            max_jobs_per_sr,
            delegate_memory_budget: budget.map(ByteCount::new),
        },
    )
}

/// A job arrives, or one of those that run ends.
#[derive(Clone, Debug)]
enum Step {
    Arrive(Needs),
    End(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![any_needs().prop_map(Step::Arrive), any::<usize>().prop_map(Step::End)]
}

proptest! {
    #[test]
    fn limits_hold_order_is_fair_and_nobody_starves(
        limits in any_limits(),
        steps in proptest::collection::vec(any_step(), 1..80),
    ) {
        let mut queue = Queue { patience: PATIENCE_IN_TESTS, ..Queue::new(limits) };
        let mut model = Model::default();
        let count = steps.iter().filter(|step| matches!(step, Step::Arrive(_))).count();
        // After the last step everything that runs ends, one by one, until nothing waits.
        let rest = std::iter::repeat_n(Step::End(0), count);
        for step in steps.into_iter().chain(rest) {
            match step {
                Step::Arrive(needs) => {
                    let ticket = queue.push(needs.clone()).expect("each fits alone");
                    model.jobs.insert(ticket, needs);
                    model.waiting.push(ticket);
                }
                Step::End(_) if model.running.is_empty() => {}
                Step::End(which) => {
                    let ticket = *model.running.keys().nth(which % model.running.len()).expect("runs");
                    model.running.remove(&ticket);
                    queue.release(ticket);
                }
            }
            while let Some(grant) = queue.start_next() {
                model.start(&limits, grant);
            }
            model.check_head();
        }
        prop_assert_eq!((queue.running_count(), queue.waiting_count()), (0, 0));
        prop_assert!(model.waiting.is_empty());
    }
}
