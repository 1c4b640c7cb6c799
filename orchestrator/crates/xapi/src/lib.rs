//! A typed client of XAPI, the management interface of XenServer and XCP-ng.
//!
//! Owns the wire: JSON-RPC 2.0 with XML-RPC as the fallback, sessions, pinned TLS, the Unix socket of a
//! control domain, tasks, events, and the HTTP handlers that carry disk contents. Records are structs with
//! the members a caller of ours reads; a host that lacks one of them gives its default, and an enumeration
//! word that we do not know is kept as it came.
//!
//! Promises: a certificate is trusted by its pin and by nothing else. A call that changes something is executed
//! at most once: it is repeated only where the pool turned it away before it looked at it (an ended session, a host
//! that is not the master) or where it was never sent; where that is not known the error says so
//! ([`Error::effect`]). A read is repeated, and waits while the toolstack restarts or another host becomes the
//! master. Every error names the call and says in one sentence what happened. A session reference or a password never appears in an error, in
//! debug output or in what an [`Observer`] sees. Replies, requests, redirects and waits have named limits.
//!
//! Never does: anything about backups, blind retries of changes, background work. Whoever connects must
//! [`close`](Client::close): dropping a client leaves its session to the pool's own expiry.
//!
//! ```no_run
//! # async fn example() -> xapi::Result<()> {
//! use xapi::{Client, Credentials, Endpoint, Options, Vm};
//!
//! let endpoint: Endpoint = "unix:/var/lib/xcp/xapi".parse()?;
//! let client = Client::connect(Options::new(endpoint, Credentials::Local)).await?;
//! for (vm, record) in client.get_all_records::<Vm>().await? {
//!     println!("{vm} {}", record.name_label);
//! }
//! client.close().await
//! # }
//! ```

#![forbid(unsafe_code)]

mod calls;
mod client;
mod endpoint;
mod error;
mod events;
#[doc(hidden)]
pub mod fuzzing;
mod handlers;
mod http;
mod json;
mod login;
mod observer;
mod options;
mod record;
mod records;
mod session;
mod tls;
mod upload;
mod value;
mod vhd;
mod wait;
mod xml;

pub use calls::{MemoryLimits, VbdCreate, VdiCreate, VifCreate};
pub use client::Client;
pub use endpoint::Endpoint;
pub use error::{Effect, Error, Kind, Result};
pub use events::{Change, Event, EventStream, Operation};
pub use observer::{Call, Observer, Verdict};
pub use options::{Credentials, Limits, Options, Protocol, Secret, Timeouts};
pub use record::{Class, FromValue, Ref, StringMap, Uuid};
pub use records::{
    Certificate, DomainType, Host, HostMetrics, Network, OnBoot, Pbd, Pif, PifMetrics, Pool, PowerState,
    Session, Sm, Sr, Task, TaskStatus, Vbd, VbdMode, VbdType, Vdi, VdiType, Vif, Vm, VmGuestMetrics,
};
pub use tls::{Fingerprint, PinLookup, probe};
pub use upload::Upload;
pub use value::{Value, timestamp};
pub use vhd::VhdHead;
