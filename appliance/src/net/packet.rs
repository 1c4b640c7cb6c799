//! Packet sockets: one EtherType of one card, without link-layer header.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, recv, sendto, socket};

use super::card::Card;
use crate::sys;

/// Everybody on the link.
pub(super) const BROADCAST_MAC: [u8; 6] = [0xff; 6];

/// Opens a socket that gets the packets of one EtherType from one card.
pub(super) fn open(card: &Card, ether_type: u16) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Protocol 0: nothing arrives before the socket is bound to card and type.
    let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
    bind(socket.as_raw_fd(), &sys::link_address(card.index_signed()?, ether_type, [0; 6]))?;
    Ok(socket)
}

/// Sends one packet.
pub(super) fn send(
    socket: &OwnedFd,
    card: &Card,
    ether_type: u16,
    to: [u8; 6],
    packet: &[u8],
) -> io::Result<()> {
    let address = sys::link_address(card.index_signed()?, ether_type, to);
    match sendto(socket.as_raw_fd(), packet, &address, MsgFlags::empty()) {
        Ok(_) => Ok(()),
        // The card has no room or no link just now: the same as a lost packet, which everybody must bear.
        Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENETDOWN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Bytes of the next packet, `None` after `wait`.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8], wait: Duration) -> io::Result<Option<usize>> {
    // A millisecond more, so that the time has really passed when poll returns.
    let timeout = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, timeout)? == 0 {
        return Ok(None);
    }
    match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
        Ok(size) => Ok(Some(size)),
        // ENETDOWN is told once when the card goes down.
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
