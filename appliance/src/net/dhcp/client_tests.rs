//! The state machine against a hand-made server, with time as a number.

use proptest::prelude::*;

use super::super::message::tests::answer;
use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OURS: [u8; 4] = [192, 0, 2, 7];
const SERVER: [u8; 6] = [54, 4, 192, 0, 2, 1];
const MASK: [u8; 6] = [1, 4, 255, 255, 255, 0];

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn lease_time(seconds: u32) -> Vec<u8> {
    [&[51, 4][..], &seconds.to_be_bytes()].concat()
}

fn new() -> Client {
    Client::new(MAC, 0x1234_5678_9abc, Duration::ZERO)
}

/// The message type of the only action, which must be a broadcast.
fn broadcast_kind(actions: &[Action]) -> u8 {
    match actions {
        [Action::Broadcast(bytes)] => bytes[242],
        other => panic!("{other:?}"),
    }
}

impl Client {
    fn answer(&self, kind: u8, options: &[&[u8]]) -> Vec<u8> {
        answer(kind, self.transaction, MAC, OURS, options)
    }
}

/// A client with a lease of `seconds`, got at time 0.
fn bound(seconds: u32) -> Client {
    let mut client = new();
    assert_eq!(broadcast_kind(&client.tick(Duration::ZERO)), 1);
    let offer = client.answer(2, &[&SERVER, &MASK]);
    assert_eq!(broadcast_kind(&client.message(&offer, Duration::ZERO)), 3);
    let ack = client.answer(5, &[&SERVER, &MASK, &lease_time(seconds)]);
    assert_eq!(client.message(&ack, Duration::ZERO), [Action::Probe(OURS.into())]);
    assert!(!client.is_bound());
    assert!(matches!(client.probed(None, Duration::ZERO)[..], [Action::Bind(_)]));
    assert!(client.is_bound() && !client.is_listening());
    client
}

#[test]
fn discover_is_repeated_after_half_a_second_then_ever_slower() {
    let mut client = new();
    let mut now = Duration::ZERO;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        assert_eq!(broadcast_kind(&client.tick(now)), 1);
        assert!(client.tick(now).is_empty(), "nothing before its time");
        let next = client.wake_at().unwrap();
        pauses.push(next - now);
        now = next;
    }
    let expected = [500, 1000, 2000, 4000, 8000, 16_000, 16_000, 16_000, 16_000];
    for (pause, middle) in pauses.iter().zip(expected) {
        assert!(*pause >= ms(middle * 9 / 10) && *pause <= ms(middle * 11 / 10), "{pauses:?}");
    }
    assert_eq!(client.trouble(), &Trouble::Silence);
}

#[test]
fn the_lease_carries_what_the_server_said() {
    let mut client = new();
    client.tick(Duration::ZERO);
    let offer = client.answer(2, &[&SERVER, &MASK, &[3, 4, 192, 0, 2, 1], &[26, 2, 5, 120]]);
    client.message(&offer, Duration::ZERO);
    let ack = client.answer(5, &[&SERVER, &lease_time(600)]);
    client.message(&ack, Duration::ZERO);
    let [Action::Bind(lease)] = &client.probed(None, Duration::ZERO)[..] else { panic!() };
    assert_eq!(lease.cidr, Cidr { address: IpAddr::from(OURS), prefix: 24 });
    assert_eq!((lease.routes.len(), lease.mtu, lease.duration), (1, Some(1400), Some(s(600))));
    assert_eq!(client.wake_at(), Some(s(300)));
}

#[test]
fn answers_for_others_are_ignored() {
    let mut client = new();
    client.tick(Duration::ZERO);
    let other_mac = answer(2, client.transaction, [2, 0, 0, 0, 0, 2], OURS, &[&SERVER]);
    let other_number = answer(2, client.transaction ^ 1, MAC, OURS, &[&SERVER]);
    let early_ack = client.answer(5, &[&SERVER]);
    for foreign in [other_mac, other_number, early_ack, b"junk".to_vec()] {
        assert!(client.message(&foreign, Duration::ZERO).is_empty());
    }
    assert!(client.is_listening() && !client.is_bound());
}

#[test]
fn an_unusable_offer_is_not_taken() {
    let mut client = new();
    client.tick(Duration::ZERO);
    let zero = answer(2, client.transaction, MAC, [0, 0, 0, 0], &[&SERVER]);
    assert!(client.message(&zero, Duration::ZERO).is_empty());
    assert_eq!(client.trouble(), &Trouble::BadOffer(Ipv4Addr::UNSPECIFIED));
    let nameless = client.answer(2, &[]);
    assert!(client.message(&nameless, Duration::ZERO).is_empty());
    assert!(client.wake_at().is_some());
}

#[test]
fn a_request_without_an_answer_goes_back_to_discover() {
    let mut client = new();
    client.tick(Duration::ZERO);
    let offer = client.answer(2, &[&SERVER]);
    let mut kinds = vec![broadcast_kind(&client.message(&offer, Duration::ZERO))];
    for _ in 0..REQUEST_TRIES {
        let now = client.wake_at().unwrap();
        kinds.push(broadcast_kind(&client.tick(now)));
    }
    assert_eq!(kinds, [3, 3, 3, 3, 1]);
}

#[test]
fn a_refusal_starts_again_after_a_pause_and_is_remembered() {
    let mut client = new();
    client.tick(Duration::ZERO);
    let offer = client.answer(2, &[&SERVER]);
    client.message(&offer, Duration::ZERO);
    let nak = client.answer(6, &[&SERVER, &[56, 4, b'b', b'u', b's', b'y']]);
    assert!(client.message(&nak, s(2)).is_empty());
    assert_eq!(client.trouble(), &Trouble::Refused(Some([192, 0, 2, 1].into()), "busy".to_owned()));
    assert_eq!(client.wake_at(), Some(s(3)));
}

#[test]
fn an_address_that_another_machine_has_is_declined() {
    let mut client = new();
    client.tick(Duration::ZERO);
    let offer = client.answer(2, &[&SERVER]);
    client.message(&offer, Duration::ZERO);
    let ack = client.answer(5, &[&SERVER]);
    client.message(&ack, Duration::ZERO);
    let actions = client.probed(Some([2, 0, 0, 0, 0, 9]), s(1));
    assert_eq!(broadcast_kind(&actions), 4);
    assert_eq!(client.trouble(), &Trouble::InUse(OURS.into(), [2, 0, 0, 0, 0, 9]));
    assert!(!client.is_bound());
}

#[test]
fn a_lease_is_renewed_with_its_server_then_with_any_then_given_up() {
    let mut client = bound(800);
    assert!(client.tick(s(399)).is_empty());
    let first = client.tick(s(400));
    assert!(matches!(&first[..], [Action::Unicast(to, _)] if to.octets() == [192, 0, 2, 1]), "{first:?}");
    // Half of the 300 s to T2 is left.
    assert_eq!(client.wake_at(), Some(s(550)));
    assert!(matches!(client.tick(s(550))[..], [Action::Unicast(..)]));
    let broadcast = client.tick(s(700));
    assert_eq!(broadcast_kind(&broadcast), 3);
    assert!(client.is_bound(), "the address is ours until the lease ends");
    let lost = client.tick(s(800));
    assert!(
        matches!(&lost[..], [Action::Unbind(Unbound::Expired), Action::Broadcast(m)] if m[242] == 1),
        "{lost:?}"
    );
    assert!(!client.is_bound() && client.is_listening());
}

#[test]
fn a_renewed_lease_starts_its_time_again() {
    let mut client = bound(800);
    client.tick(s(400));
    let ack = client.answer(5, &[&SERVER, &MASK, &lease_time(100)]);
    assert!(matches!(client.message(&ack, s(401))[..], [Action::Bind(_)]));
    assert_eq!(client.wake_at(), Some(s(451)));
    let stale = client.answer(5, &[&SERVER]);
    assert!(client.message(&stale, s(402)).is_empty(), "a second answer changes nothing");
}

#[test]
fn an_answer_to_renewal_with_another_address_is_not_believed() {
    let mut client = bound(800);
    client.tick(s(400));
    let ack = answer(5, client.transaction, MAC, [192, 0, 2, 8], &[&SERVER]);
    assert!(client.message(&ack, s(401)).is_empty());
    assert!(client.is_bound());
}

#[test]
fn a_lease_taken_back_ends_at_once() {
    let mut client = bound(800);
    client.tick(s(400));
    let nak = client.answer(6, &[&SERVER]);
    assert_eq!(client.message(&nak, s(401)), [Action::Unbind(Unbound::Refused)]);
    assert_eq!(client.wake_at(), Some(s(402)));
}

#[test]
fn an_endless_lease_needs_nothing_and_a_tiny_one_is_stretched() {
    assert_eq!(bound(u32::MAX).wake_at(), None);
    assert_eq!(bound(0).wake_at(), Some(LEASE_MIN / 2));
}

#[test]
fn nonsense_times_fall_back_to_the_usual_ones() {
    let mut client = new();
    client.tick(Duration::ZERO);
    let offer = client.answer(2, &[&SERVER]);
    client.message(&offer, Duration::ZERO);
    let ack = client.answer(5, &[&SERVER, &lease_time(800), &[58, 4, 255, 0, 0, 0], &[59, 4, 0, 0, 0, 0]]);
    client.message(&ack, Duration::ZERO);
    client.probed(None, Duration::ZERO);
    assert_eq!(client.wake_at(), Some(s(400)));
}

#[test]
fn a_server_without_a_mask_gives_the_class_of_old() {
    assert_eq!(class_prefix([10, 0, 0, 1].into()), 8);
    assert_eq!(class_prefix([172, 16, 0, 1].into()), 16);
    assert_eq!(class_prefix([192, 168, 0, 1].into()), 24);
}

proptest! {
    /// Whatever a server says and whenever: no panic, no address beyond its lease, no busy loop.
    #[test]
    fn any_conversation_is_survived(seed: u64, steps in proptest::collection::vec(
        (0u8..8, 0u64..5_000, proptest::collection::vec(any::<u8>(), 0..40)), 1..80)) {
        let mut client = Client::new(MAC, seed, Duration::ZERO);
        let mut now = Duration::ZERO;
        for (what, pause_ms, options) in steps {
            now += ms(pause_ms);
            let message = client.answer(what, &[&SERVER, &options]);
            let mut actions = client.tick(now);
            actions.extend(client.message(&message, now));
            if actions.iter().any(|a| matches!(a, Action::Probe(_))) {
                actions.extend(client.probed((what % 2 == 0).then_some([9; 6]), now));
            }
            prop_assert!(actions.len() <= 4);
            if let Some(wake) = client.wake_at() {
                // At most one more thing is due right now.
                let _ = client.tick(wake);
                prop_assert!(client.wake_at().is_none_or(|next| next > wake));
            }
        }
    }
}
