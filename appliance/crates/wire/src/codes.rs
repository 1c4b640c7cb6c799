//! The codes that an ABD leaves in [`crate::KEY_ERROR_CODE`] and [`crate::Failure::code`], and what helps.
//!
//! One table for both sides: the appliance shows it on its console, the orchestrator beside the failure of a job.

/// What helps where nothing can be said but that the program or the machine under it is at fault.
const REPORT: &str = "run it again; if it stays so, report it with what stands on the delegate's console";
/// What helps against another version on the other side.
const TEMPLATE: &str = "import the template that belongs to this version: abd template import FILE.xva";

/// Code and what to do, in the order of a delegate's life.
const CODES: &[(&str, &str)] = &[
    // The machine and its settings.
    ("xenstore", "look at the host's xenstored and its load; a restart of the delegate is a new run"),
    ("bad-config", TEMPLATE),
    ("version", TEMPLATE),
    ("bad-address", "correct --delegate-address and --delegate-gateway, or --advertise of `abd pool add`"),
    ("no-key", REPORT),
    ("no-resources", "give the delegate more memory with --delegate-memory"),
    ("out-of-memory", "give the delegate more memory with --delegate-memory"),
    ("worker-died", REPORT),
    ("panic", REPORT),
    ("watchdog", "see whether storage or network stood still; a longer time is set with --watchdog"),
    ("shutdown", "somebody shut the delegate's VM down, or its host: see the pool's log, then run it again"),
    // The network.
    (
        "no-nic",
        "check the network given by `abd pool add --network`: the delegate's VIF on it did not come up on this host",
    ),
    (
        "no-link",
        "plug the cable of this host's adapter, or see to its switch port; else name another network with `abd pool add --network`",
    ),
    (
        "no-dhcp-lease",
        "check the network given by `abd pool add --network` and its VLAN, let a DHCP server serve it, or give addresses with --delegate-address",
    ),
    (
        "address-in-use",
        "find the machine with that MAC address, and free the address or take another; a DHCP server must not give it out",
    ),
    ("no-ipv6-address", "let a router advertise a prefix there, or give addresses with --delegate-address"),
    ("network", REPORT),
    (
        "no-route",
        "give a gateway with --delegate-gateway or by DHCP, or name an address of this machine in the delegate's network with `abd pool add --advertise`",
    ),
    (
        "port-blocked",
        "open the port in the firewalls between the delegate's network and this machine, or name a fixed one with `abd pool add --listen`",
    ),
    (
        "port-refused",
        "see that the address given by `abd pool add --advertise` is this machine's, and that its firewall lets the port in",
    ),
    (
        "no-tls",
        "see what stands between: a proxy or another program answers at the address that `abd pool add --advertise` names",
    ),
    (
        "tls-pin",
        "see what stands between: something with another key answers at the address that `abd pool add --advertise` names",
    ),
    (
        "unreachable",
        "let the delegate's network reach this machine, or name another address with `abd pool add --advertise`",
    ),
    // The order and its answers.
    ("protocol-version", TEMPLATE),
    ("order-refused", REPORT),
    ("bad-answer", REPORT),
    ("unknown-key", "see that the pool's events arrive: `abd -vv` shows them; then run it again"),
    ("wrong-job", REPORT),
    ("bad-message", REPORT),
    ("cut-message", REPORT),
    ("not-in-order", REPORT),
    ("job-over", "run it again: the orchestrator had given the job up"),
    ("stopped", "run it again when it suits"),
    ("aborted", REPORT),
    ("refused", REPORT),
    // Disks.
    ("disk-missing", "look at the host's storage: a disk of the delegate did not come up"),
    ("disk-empty", "look at the host's storage: a disk of the delegate has no backend"),
    ("disk-size", "run it again: the disk was resized meanwhile"),
    ("disk-writable", REPORT),
    ("disk-read-only", REPORT),
    ("disk-unknown", REPORT),
    (
        "read-error",
        "look after the storage of this disk: it cannot be read there. With --skip-bad-blocks the rest is saved",
    ),
    ("write-error", "look after the storage that is restored to"),
    ("bad-bitmap", "run it with --full once, and report it"),
    // The store.
    ("bad-pack", "run it again; if it stays so, look at the memory of this machine and of the host"),
    ("store-full", "make room in the store's file system and run again; nothing was committed"),
    ("store-error", "check the store's directory, its file system and its mount"),
    ("missing-block", "run `abd verify --read-data` to see what is damaged"),
    ("missing-node", "run `abd verify --read-data` to see what is damaged"),
    ("damaged-block", "run `abd verify --read-data` to see what is damaged"),
    ("seal-error", "run it again; if it stays so, look at the memory of the host"),
    ("tree-differs", "run it again; if it stays so, look at the memory of this machine and of the host"),
];

/// What to do about a failure with this code; none for one that is not ours.
pub fn advice(code: &str) -> Option<&'static str> {
    CODES.iter().find(|(known, _)| *known == code).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_words_each_is_there_once_and_the_protocol_names_all() {
        let protocol = include_str!("../PROTOCOL.md");
        let words: BTreeSet<_> = CODES.iter().map(|(code, _)| *code).collect();
        assert_eq!(words.len(), CODES.len());
        for (code, advice) in CODES {
            assert!(
                code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
                "{code}"
            );
            assert!(protocol.contains(&format!("`{code}`")), "{code} is not in PROTOCOL.md");
            assert!(!advice.is_empty() && !advice.ends_with('.'), "{code}");
        }
        assert_eq!(advice("no such code"), None);
    }
}
