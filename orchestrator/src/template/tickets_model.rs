//! Imports at the same moment, call by call, in every order: what the tickets promise holds in each state on the way,
//! so also where an import is killed there. The decisions are the product's own; only the pool and the order are made here.

use super::super::census::judge;
use super::*;
use crate::template::VERSION;
use std::collections::HashSet;

/// Imports that go call by call. Further ones are made at once between any two calls of these: every order of the calls of
/// three is a million states, which take half a minute.
const BY_CALL: usize = 2;

/// A template of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Here {
    uuid: &'static str,
    exists: bool,
    is_uploaded: bool,
    ticket: Option<u64>,
    successor: Option<usize>,
    /// Whether delegates at work were made of it, so that nobody removes it.
    is_used: bool,
}

/// The next call of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Upload,
    LookForTicket,
    Take(u64),
    LookForUnfinished,
    Void,
    LookForWinner,
    LookForReplaced(usize),
    Mark(usize),
    /// Away with the mark that was seen there, for ours.
    Unmark(usize),
    MarkAgain(usize),
    LookForSwept,
    Remove,
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Import {
    own: usize,
    step: Step,
    /// What the step is still to be done to.
    queue: Vec<usize>,
    /// Which of these had another mark when they were looked at.
    marked: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    pool: Vec<Here>,
    imports: Vec<Import>,
}

/// Who may take whose place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Tickets,
    /// Each import replaces all others; where marks lead in a circle, the uuid decides. Right only with a pause.
    MarksAlone,
}

fn sr() -> Ref<Sr> {
    Ref::from_opaque("sr")
}

impl World {
    /// As many imports into a pool with one template, which an import without tickets or with one has left there.
    fn new(imports: usize, old_ticket: Option<u64>) -> Self {
        let here = |uuid, exists, ticket| Here {
            uuid,
            exists,
            is_uploaded: exists,
            ticket,
            successor: None,
            is_used: false,
        };
        let mut pool = vec![here("m", true, old_ticket)];
        // Before and after the old one's uuid.
        pool.extend(["z", "a", "q"].into_iter().take(imports).map(|uuid| here(uuid, false, None)));
        let import = |own| Import { own, step: Step::Upload, queue: Vec::new(), marked: Vec::new() };
        Self { pool, imports: (1..=imports).map(import).collect() }
    }

    /// What a look sees, and which template of the pool is which.
    fn look(&self) -> (Vec<Found>, Vec<usize>) {
        let places: Vec<usize> = (0..self.pool.len()).filter(|at| self.pool[*at].exists).collect();
        let found = places.iter().map(|at| {
            let here = &self.pool[*at];
            Found {
                template: Template {
                    reference: Ref::from_opaque(here.uuid),
                    uuid: here.uuid.into(),
                    version: VERSION.into(),
                    digest: "d".into(),
                },
                state: if here.is_uploaded { State::Live } else { State::Importing },
                successor: here.successor.map(|at| self.pool[at].uuid.to_owned()),
                ticket: here.ticket,
                is_replaced: false,
                disks: Vec::new(),
                storage: vec![sr()],
                users: usize::from(here.is_used),
                is_busy: false,
            }
        });
        let mut found: Vec<Found> = found.collect();
        judge(&mut found);
        (found, places)
    }

    fn places<'a>(&self, chosen: impl Iterator<Item = &'a Found>) -> Vec<usize> {
        let place = |found: &Found| self.pool.iter().position(|here| here.uuid == found.template.uuid);
        chosen.filter_map(place).collect()
    }

    /// Makes one call of an import.
    fn advance(&mut self, number: usize, rule: Rule) {
        let Import { own, step, mut queue, mut marked } = self.imports[number].clone();
        let (found, _) = self.look();
        let own_found = found.iter().find(|one| one.template.uuid == self.pool[own].uuid);
        let next_step = match step {
            Step::Upload => {
                (self.pool[own].exists, self.pool[own].is_uploaded) = (true, true);
                if rule == Rule::Tickets { Step::LookForTicket } else { Step::LookForWinner }
            }
            Step::LookForTicket => match own_found {
                Some(own) if own.ticket.is_none() => Step::Take(next(&found)),
                _ => Step::LookForUnfinished,
            },
            Step::Take(ticket) => {
                self.write(own, ticket);
                Step::LookForUnfinished
            }
            Step::LookForUnfinished => {
                queue = self.places(unfinished(&found));
                if queue.is_empty() { Step::LookForWinner } else { Step::Void }
            }
            Step::Void => {
                self.write(queue.remove(0), VOID);
                if queue.is_empty() { Step::LookForWinner } else { Step::Void }
            }
            Step::LookForWinner => match rule {
                Rule::Tickets => match self.places(winner(&found, &sr()).into_iter()).first() {
                    Some(winner) => Step::LookForReplaced(*winner),
                    None => Step::LookForSwept,
                },
                Rule::MarksAlone if own_found.is_some_and(|own| own.is_replaced) => Step::LookForSwept,
                Rule::MarksAlone => Step::LookForReplaced(own),
            },
            Step::LookForReplaced(winner) => {
                let best = found.iter().find(|one| one.template.uuid == self.pool[winner].uuid);
                let others = found.iter().filter(|one| {
                    let may = match (rule, best) {
                        (Rule::MarksAlone, _) => true,
                        (Rule::Tickets, Some(best)) => outranks(best, one),
                        (Rule::Tickets, None) => false,
                    };
                    let is_to_mark = match (rule, best) {
                        (Rule::Tickets, Some(best)) => is_to_mark(&found, one, best),
                        _ => !one.is_replaced,
                    };
                    may && one.template.uuid != self.pool[winner].uuid
                        && one.state != State::Importing
                        && is_to_mark
                });
                let others: Vec<&Found> = others.collect();
                marked = self.places(others.iter().copied().filter(|one| one.successor.is_some()));
                queue = self.places(others.into_iter());
                if queue.is_empty() { Step::LookForSwept } else { Step::Mark(winner) }
            }
            Step::Mark(winner) if marked.contains(&queue[0]) && self.pool[queue[0]].successor.is_some() => {
                Step::Unmark(winner)
            }
            Step::Unmark(winner) => {
                self.pool[queue[0]].successor = None;
                Step::MarkAgain(winner)
            }
            // The pool refuses a second mark.
            Step::Mark(winner) | Step::MarkAgain(winner) => {
                self.pool[queue.remove(0)].successor.get_or_insert(winner);
                if queue.is_empty() { Step::LookForSwept } else { Step::Mark(winner) }
            }
            Step::LookForSwept => {
                marked.clear();
                queue = self.places(found.iter().filter(|one| one.is_replaced && one.users == 0));
                if queue.is_empty() { Step::Done } else { Step::Remove }
            }
            Step::Remove => {
                self.pool[queue.remove(0)].exists = false;
                if queue.is_empty() { Step::Done } else { Step::Remove }
            }
            Step::Done => Step::Done,
        };
        self.imports[number] = Import { own, step: next_step, queue, marked };
    }

    /// The pool refuses a second one.
    fn write(&mut self, at: usize, ticket: u64) {
        self.pool[at].ticket.get_or_insert(ticket);
    }

    /// What is wrong in this state.
    fn fault(&self, is_one_left: bool) -> Option<&'static str> {
        let left = self.pool.iter().filter(|here| here.exists && here.is_uploaded);
        let highest =
            self.pool.iter().filter(|here| here.ticket.is_some()).max_by_key(|here| (here.ticket, here.uuid));
        if left.clone().count() == 0 {
            return Some("every template is gone");
        }
        if highest.is_some_and(|here| !here.exists) {
            return Some("the newest is gone");
        }
        let is_over = self.imports.iter().all(|import| import.step == Step::Done);
        if is_one_left && is_over && left.count() > 1 {
            return Some("more than one is left");
        }
        None
    }
}

/// Goes through every order of the calls; gives how many states there are, or the first fault. `is_one_left`: whether at
/// the end there may be no other.
fn search(start: World, rule: Rule, is_one_left: bool) -> Result<usize, (&'static str, World)> {
    let (mut seen, mut open) = (HashSet::from([start.clone()]), vec![start]);
    while let Some(world) = open.pop() {
        if let Some(fault) = world.fault(is_one_left) {
            return Err((fault, world));
        }
        for number in 0..world.imports.len() {
            let mut then = world.clone();
            then.advance(number, rule);
            while number >= BY_CALL && then.imports[number].step != Step::Done {
                then.advance(number, rule);
            }
            if seen.insert(then.clone()) {
                open.push(then);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn no_order_of_the_calls_of_two_imports_removes_both_or_the_newest() {
    for old_ticket in [None, Some(VOID), Some(7)] {
        let states = search(World::new(2, old_ticket), Rule::Tickets, true);
        let states = states.unwrap_or_else(|(fault, world)| panic!("{fault}: {world:#?}"));
        assert!(states > 200, "{states} states are not every order");
    }
}

/// Of three a lower one can be left, whose mark names one that was replaced in turn: the next import removes it.
#[test]
fn nor_does_a_third_import_between_any_of_them() {
    let states = search(World::new(3, Some(1)), Rule::Tickets, false);
    let states = states.unwrap_or_else(|(fault, world)| panic!("{fault}: {world:#?}"));
    assert!(states > 500, "{states} states are not every order");
}

#[test]
fn one_in_use_stays_replaced_when_the_one_that_took_its_place_is_replaced_in_turn() {
    let mut world = World::new(2, Some(1));
    world.pool[0].is_used = true;
    for number in 0..2 {
        while world.imports[number].step != Step::Done {
            world.advance(number, Rule::Tickets);
        }
        let (found, _) = world.look();
        let standing: Vec<&str> =
            found.iter().filter(|one| !one.is_replaced).map(|one| one.template.uuid.as_str()).collect();
        assert_eq!(standing, [["z"], ["a"]][number]);
        assert_eq!(found.len(), 2, "the one in use is there, the one between is not");
    }
}

/// The search finds what it looks for.
#[test]
fn marks_without_tickets_remove_every_template_in_some_order() {
    let (fault, _) = search(World::new(2, None), Rule::MarksAlone, false).expect_err("a fault");
    assert_eq!(fault, "every template is gone");
}
