//! Why a job failed.

use crate::platform::devices;
use blocks::{BlockIndex, ByteCount, ByteOffset};
use seal::{BlockId, TreeId};
use std::io;

/// Anything that ends a job after the network is up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No TLS key pair.
    #[error("make this appliance's TLS key")]
    Key(#[from] pin::Error),
    /// No runtime, or a thread cannot be started.
    #[error("start the job's {what}")]
    Start {
        /// What could not be started.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Whoever listens at the orchestrator's address is not the orchestrator.
    #[error("the orchestrator's address answers with another TLS key than XenStore names: {reason}")]
    TlsPin {
        /// Address and keys.
        reason: String,
    },
    /// The orchestrator does not answer.
    #[error("the orchestrator did not answer {call} for {seconds} s: {reason}")]
    Unreachable {
        /// What was asked.
        call: String,
        /// For how long it was tried after the first failure.
        seconds: u64,
        /// The last failure, and what is wrong with the network.
        reason: String,
        /// How far it came.
        reach: Reach,
    },
    /// The orchestrator refused a call.
    #[error("the orchestrator refused {call}: {failure}")]
    Refused {
        /// What was asked.
        call: String,
        /// HTTP status.
        status: u16,
        /// Its reason.
        failure: wire::Failure,
    },
    /// The answer is not the message that belongs there.
    #[error("the orchestrator's answer to {call} cannot be used")]
    Answer {
        /// What was asked.
        call: String,
        /// What is wrong with it.
        source: wire::Error,
    },
    /// The answer is larger than any answer may be.
    #[error("the orchestrator's answer to {call} is over {limit} bytes")]
    AnswerSize {
        /// What was asked.
        call: String,
        /// The limit.
        limit: usize,
    },
    /// The answer has another number of parts than the question.
    #[error("the orchestrator's answer to {call} has {found} entries, {expected} were asked for")]
    AnswerCount {
        /// What was asked.
        call: &'static str,
        /// Parts of the question.
        expected: usize,
        /// Parts of the answer.
        found: usize,
    },
    /// The orchestrator asked to stop.
    #[error("the orchestrator asked to stop")]
    Stopped,
    /// The order cannot be carried out as it stands.
    #[error("the order is refused: {reason}")]
    Order {
        /// Which check failed.
        reason: String,
    },
    /// A disk of the order cannot be used.
    #[error(transparent)]
    Disk(#[from] devices::Error),
    /// A disk cannot be read.
    #[error("the disk at userdevice {userdevice}")]
    Read {
        /// Position in the order's list of disks.
        disk: u16,
        /// XAPI's position of the disk.
        userdevice: u16,
        /// What it says.
        source: diskio::Error,
    },
    /// The changed-block bitmap does not belong to the disk.
    #[error("bitmap of the disk at userdevice {userdevice}")]
    Bitmap {
        /// XAPI's position of the disk.
        userdevice: u16,
        /// What is wrong with it.
        source: blocks::BitmapError,
    },
    /// The base does not belong to the disk.
    #[error("base of the disk at userdevice {userdevice}")]
    Base {
        /// XAPI's position of the disk.
        userdevice: u16,
        /// What is wrong with it.
        source: seal::TreeError,
    },
    /// Bytes of a tree, or our own sealing, are not what they should be.
    #[error(transparent)]
    Seal(#[from] seal::Error),
    /// A node that its parent names is not in the answer.
    #[error("the orchestrator has no node {index} of level {level} of the tree of disk {disk}")]
    MissingNode {
        /// Position in the order's list of disks.
        disk: u16,
        /// Level of the node.
        level: u8,
        /// Its index.
        index: u64,
    },
    /// The store sealed another tree than we built.
    #[error("the store calls the disk at userdevice {userdevice} {store}, it is {ours}")]
    TreeId {
        /// XAPI's position of the disk.
        userdevice: u16,
        /// The store's id.
        store: TreeId,
        /// Ours.
        ours: TreeId,
    },
    /// A block from the store is not the one that the tree names.
    #[error("block {block} of {device} ({offset}), id {id}")]
    Damaged {
        /// Name of the device.
        device: String,
        /// The block's position.
        block: BlockIndex,
        /// The same in bytes.
        offset: ByteOffset,
        /// The id that the tree names.
        id: BlockId,
        /// What is wrong with it.
        source: Box<seal::Error>,
    },
    /// A disk cannot be written.
    #[error("write {device} at {offset}, {size}")]
    Write {
        /// Name of the device.
        device: String,
        /// Where.
        offset: ByteOffset,
        /// How much.
        size: ByteCount,
        /// What the kernel said.
        source: io::Error,
    },
    /// A disk cannot be opened for writing, or what was written does not get onto it.
    #[error("{operation} {device}")]
    Target {
        /// Name of the device.
        device: String,
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another part of the job failed first; that error is the one that is reported.
    #[error("another part of the job failed first")]
    Aborted,
}

/// How far the way to the orchestrator went when a call failed. Later ones are further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// This network leads nowhere near it.
    NoRoute,
    /// Nobody answered.
    Silent,
    /// The machine answered that nothing listens there, or a firewall did.
    Refused,
    /// Somebody listens who does not speak TLS.
    NoTls,
    /// There was a connection.
    Lost,
}

impl Reach {
    /// How far a failed connection attempt came.
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Reach::Refused,
            io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::AddrNotAvailable => Reach::NoRoute,
            io::ErrorKind::TimedOut => Reach::Silent,
            _ => Reach::Lost,
        }
    }

    fn code(self) -> &'static str {
        match self {
            Reach::NoRoute => "no-route",
            Reach::Silent => "port-blocked",
            Reach::Refused => "port-refused",
            Reach::NoTls => "no-tls",
            Reach::Lost => "unreachable",
        }
    }
}

impl Error {
    /// The disk of the order that cannot be read, where it is that.
    pub(crate) fn disk(&self) -> Option<u16> {
        match self {
            Error::Read { disk, .. } => Some(*disk),
            _ => None,
        }
    }

    /// Short code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Key(_) => "no-key",
            Error::Start { .. } => "no-resources",
            Error::TlsPin { .. } => "tls-pin",
            Error::Unreachable { reach, .. } => reach.code(),
            Error::Refused { failure, .. } => refusal_code(&failure.code),
            Error::Answer { .. } | Error::AnswerSize { .. } | Error::AnswerCount { .. } => "bad-answer",
            Error::Stopped => "stopped",
            Error::Order { .. } | Error::Base { .. } => "order-refused",
            Error::Disk(error) => error.code(),
            Error::Read { .. } => "read-error",
            Error::Bitmap { .. } => "bad-bitmap",
            Error::Seal(_) => "seal-error",
            Error::MissingNode { .. } => "missing-node",
            Error::TreeId { .. } => "tree-differs",
            Error::Damaged { .. } => "damaged-block",
            Error::Write { .. } | Error::Target { .. } => "write-error",
            Error::Aborted => "aborted",
        }
    }
}

/// The codes of PROTOCOL.md, which keep their names on the way through.
fn refusal_code(code: &str) -> &'static str {
    const KNOWN: [&str; 10] = [
        "unknown-key",
        "wrong-job",
        "protocol-version",
        "bad-message",
        "not-in-order",
        "bad-pack",
        "store-full",
        "store-error",
        "missing-block",
        "job-over",
    ];
    KNOWN.into_iter().find(|known| *known == code).unwrap_or("refused")
}
