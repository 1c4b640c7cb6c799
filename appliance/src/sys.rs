//! The only unsafe code of the appliance outside `diskio`: one operation per function, each safe for every argument.

#![allow(unsafe_code)]

use std::mem::size_of;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{LinkAddr, SockaddrLike};

/// Signals that mean the program itself is broken.
const FATAL: [Signal; 6] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGABRT, Signal::SIGSYS];

/// Address of a link-layer endpoint for packet sockets: interface, EtherType (host byte order), destination.
pub(crate) fn link_address(interface_index: i32, ether_type: u16, mac: [u8; 6]) -> LinkAddr {
    let mut address = [0u8; 8];
    address[..6].copy_from_slice(&mac);
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ether_type.to_be(),
        sll_ifindex: interface_index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: address,
    };
    // SAFETY: the pointer is to a live, fully initialised sockaddr_ll of exactly the stated length; it is only read.
    let address = unsafe {
        LinkAddr::from_raw(
            std::ptr::from_ref(&raw).cast(),
            Some(size_of::<libc::sockaddr_ll>() as libc::socklen_t),
        )
    };
    address.expect("family and length are those of sockaddr_ll")
}

extern "C" fn power_off_at_once(_signal: libc::c_int) {
    const LAST: &[u8] = b"abd: PID 1 crashed, powering off\n";
    // Async-signal-safe: system calls only. A result could not be used any more.
    let _ = nix::unistd::write(std::io::stderr(), LAST);
    // For the serial port to send it.
    std::thread::sleep(std::time::Duration::from_millis(100));
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

/// Makes a crash of this process power the machine off, instead of leaving the kernel without PID 1.
///
/// Only PID 1 calls it: anywhere else the handler would have no right to power off and the fault would repeat.
pub(crate) fn power_off_on_fatal_signals() {
    let action = SigAction::new(
        SigHandler::Handler(power_off_at_once),
        SaFlags::SA_ONSTACK | SaFlags::SA_RESETHAND,
        SigSet::empty(),
    );
    for signal in FATAL {
        // SAFETY: the handler only makes system calls that are async-signal-safe and touches no memory of the program.
        let installed = unsafe { sigaction(signal, &action) };
        // Fails only for signals that cannot be caught; none of FATAL is.
        let _ = installed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_address_keeps_interface_protocol_and_mac() {
        let address = link_address(7, 0x0800, [2, 0, 0, 0, 0, 9]);
        assert_eq!(address.ifindex(), 7);
        assert_eq!(address.protocol(), 0x0800u16.to_be());
        assert_eq!(address.addr(), Some([2, 0, 0, 0, 0, 9]));
    }
}
