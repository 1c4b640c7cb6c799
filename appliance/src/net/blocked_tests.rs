//! A first call whose way ends in a firewall: the machine behind the cable is there, and answers nothing on the port.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use blocks::ByteCount;

use super::cable_tests::{FAR, LIMIT, Lab, OURS, SERVER, V4};
use super::card::Card;
use super::frame::{ETHER_ARP, ETHER_IPV4};
use super::nic::switch_on_loopback;
use super::packet::{self, BROADCAST_MAC};
use crate::platform::config::{Cidr, Mode};
use crate::platform::{Disk, State, devices, memory};
use crate::worker::{Assignment, Error, Identity, Outside, perform};

const PORT: u16 = 8443;
/// A third of it is how long the first call is tried; the second try would begin later.
const WATCHDOG: Duration = Duration::from_secs(1);

/// A machine without disks on a network where nothing is wrong.
struct Bare;

impl Outside for Bare {
    fn state(&self, _: State) {}

    fn tick(&self) {}

    fn set_watchdog(&self, _: Duration) {}

    fn milestone(&self, _: &str) {}

    fn line(&self, text: &str) {
        println!("{text}");
    }

    fn network_trouble(&self) -> Option<String> {
        None
    }

    fn source(&self, _: u16, _: ByteCount) -> Result<Disk, devices::Error> {
        Err(devices::Error::NoOwn { seen: "none".to_owned() })
    }

    fn target(&self, _: u16, _: ByteCount) -> Result<Disk, devices::Error> {
        Err(devices::Error::NoOwn { seen: "none".to_owned() })
    }

    fn memory(&self) -> memory::Memory {
        memory::now()
    }

    fn boot_time(&self) -> Duration {
        Duration::ZERO
    }
}

/// The machine at the other end: says who it is, takes every packet, and answers none.
fn drop_everything(card: &Card, syns: &AtomicU64, is_over: &AtomicBool) {
    let arp = packet::open(card, ETHER_ARP).unwrap();
    let ipv4 = packet::open(card, ETHER_IPV4).unwrap();
    let mut buffer = [0u8; 2048];
    let pause = Duration::from_millis(10);
    while !is_over.load(Ordering::Relaxed) {
        if let Some(size) = packet::receive(&arp, &mut buffer, pause).unwrap()
            && size >= 28
            && buffer[6..8] == [0, 1]
            && buffer[24..28] == SERVER
        {
            // The answer: operation 2, our MAC and address, then those of who asked.
            let mut answer = vec![0, 1, 8, 0, 6, 4, 0, 2];
            answer.extend_from_slice(&card.mac);
            answer.extend_from_slice(&SERVER);
            answer.extend_from_slice(&buffer[8..18]);
            packet::send(&arp, card, ETHER_ARP, BROADCAST_MAC, &answer).unwrap();
        }
        if let Some(size) = packet::receive(&ipv4, &mut buffer, pause).unwrap() {
            // TCP to the port, with SYN and without ACK.
            let is_tcp = size >= 40 && buffer[9] == 6 && buffer[16..20] == SERVER;
            if is_tcp && buffer[22..24] == PORT.to_be_bytes() && buffer[33] & 0x12 == 0x02 {
                syns.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn first_call(address: [u8; 4]) -> Error {
    let identity = Identity::generate().unwrap();
    let assignment = Assignment {
        job: "00000000-0000-4000-8000-000000000000".to_owned(),
        addresses: vec![SocketAddr::new(IpAddr::from(address), PORT)],
        orchestrator_key: [7; 32],
        watchdog: WATCHDOG,
    };
    perform(&assignment, &identity, Arc::new(Bare)).unwrap_err()
}

#[test]
fn a_port_that_a_firewall_drops_is_blocked_and_an_absent_machine_has_no_route() {
    let Some(lab) = Lab::new() else { return };
    switch_on_loopback();
    let mode =
        Mode::Static { addresses: vec![Cidr { address: OURS.into(), prefix: 24 }], gateways: Vec::new() };
    let (network, _) = lab.start(mode, None, false);
    network.wait_ready(V4, LIMIT).unwrap();
    let (syns, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let far = lab.far();
    assert_eq!(far.mac, FAR.2);
    let machine = {
        let (syns, is_over) = (Arc::clone(&syns), Arc::clone(&is_over));
        thread::spawn(move || drop_everything(&far, &syns, &is_over))
    };
    // Threads are in the network namespace of the thread that starts them.
    let absent = thread::spawn(|| first_call([192, 0, 2, 99]));
    let error = first_call(SERVER);
    is_over.store(true, Ordering::Relaxed);
    machine.join().unwrap();
    assert_eq!(error.code(), "port-blocked", "{error}");
    assert!(error.to_string().contains("192.0.2.1:8443: no answer within 5 s"), "{error}");
    assert!(syns.load(Ordering::Relaxed) > 0, "the packets went there");
    assert!(wire::advice(error.code()).is_some_and(|advice| advice.contains("firewall")));
    let absent = absent.join().unwrap();
    assert_eq!(absent.code(), "no-route", "{absent}");
}
