//! Inside the process: what PID 1 and its worker do, without a kernel under them.
//!
//! Settings, reports, keys and the job are the appliance's own code. Here stand only what a machine would give: disks
//! by their number, a network that is always configured, the watchdog that ends everything.

use super::{LINK_KEY, Machine, MachineDisk, cable, link_value};
use crate::storage::surface::Surface;
use abd_appliance::init::VERSION;
use abd_appliance::init::lifeline::{DEFAULT_LIMIT, LIMIT_MAX, LIMIT_MIN, Ticker};
use abd_appliance::platform::config::{Mode, NicSettings};
use abd_appliance::platform::memory::{self, Memory};
use abd_appliance::platform::xenstore::{Options, XenStore};
use abd_appliance::platform::{BootConfig, Disk, Reporter, State, console, devices, guest_agent, shutdown};
use abd_appliance::worker::{self, Assignment, Identity, Outside, perform};
use abd_appliance::{Error, net};
use blocks::ByteCount;
use rustix::process::{Signal, set_parent_process_death_signal};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// What kernel and initramfs of the real appliance take from the VM's memory: 84 of 128 MiB are left to its worker.
const SYSTEM_BYTES: u64 = 44 << 20;
/// The pause between looks at the cable while no event comes.
const LINK_WAIT: Duration = Duration::from_secs(60);

/// Runs a delegate on the machine that `machine` describes (JSON), with XenStore on standard input. Its end is the
/// machine's power-off: the outcome stands in XenStore.
pub fn run(machine: &str) -> ExitCode {
    // The simulator's end is this process's; should it have ended before this line, XenStore is closed.
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("this process would outlive the simulator: {error}");
        return ExitCode::FAILURE;
    }
    match start(machine) {
        Ok(delegate) => {
            delegate.live();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the delegate does not start: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Delegate {
    machine: Machine,
    began: Instant,
    store: XenStore,
    reporter: Reporter,
}

fn start(machine: &str) -> io::Result<Delegate> {
    let began = Instant::now();
    let machine: Machine = serde_json::from_str(machine)?;
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let store = XenStore::over(stream.try_clone()?, stream, Options::default())?;
    let reporter = Reporter::new(store.clone(), Ticker::default());
    let for_hook = reporter.clone();
    std::panic::set_hook(Box::new(move |what| {
        for_hook.failed("panic", &format!("the worker {what}").replace('\n', " "));
        power_off();
    }));
    Ok(Delegate { machine, began, store, reporter })
}

/// The end, from any thread.
fn power_off() -> ! {
    std::process::exit(0)
}

impl Delegate {
    fn live(self) {
        let reporter = self.reporter.clone();
        match self.job() {
            Ok(()) => reporter.finished(),
            Err(error) => reporter.fail(&error),
        }
    }

    /// The steps of the worker process in the appliance, in its order.
    fn job(self) -> Result<(), Error> {
        let Self { machine, began, store, reporter } = self;
        reporter.agent(VERSION);
        reporter.boot_ms(began.elapsed().as_millis());
        reporter.state(State::Booted);
        let life = Arc::new(Life::new());
        life.clone().watch(reporter.clone()).map_err(start_error("watchdog"))?;
        let for_watch = reporter.clone();
        shutdown::watch(store.clone(), move |_| {
            let message = "the appliance was asked to shut down before the job was done";
            for_watch.failed("shutdown", message);
            power_off();
        })
        .map_err(start_error("watch for shutdown requests"))?;
        guest_agent::announce(&store, VERSION)?;
        let config = BootConfig::read(&store)?;
        let identity = worker::announce(&reporter)?;
        let link = connect(&machine, &store)?;
        let by_nic = addresses(&config, &machine.nics)?;
        let all: Vec<IpAddr> = by_nic.iter().flat_map(|(_, addresses)| addresses).copied().collect();
        reporter.address(&all, &by_nic);
        for (nic, addresses) in &by_nic {
            guest_agent::addresses(&store, *nic, addresses)?;
        }
        reporter.state(State::Network);
        let outside = Surroundings { machine, began, reporter, life, link };
        work(&config, &identity, outside)
    }
}

fn start_error(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| worker::Error::Start { what, source }.into()
}

fn work(config: &BootConfig, identity: &Identity, outside: Surroundings) -> Result<(), Error> {
    let nics = &outside.machine.nics;
    let targets: Vec<SocketAddr> = config.urls.iter().map(|url| on_this_machine(*url, nics)).collect();
    let assignment = Assignment {
        job: config.job.clone(),
        addresses: cable::lay(&targets, outside.link.clone(), outside.machine.network_rate)
            .map_err(start_error("cable"))?,
        orchestrator_key: config.orchestrator_key,
        watchdog: config.watchdog.unwrap_or(worker::DEFAULT_WATCHDOG),
    };
    Ok(perform(&assignment, identity, Arc::new(outside))?)
}

/// What each card of the settings has: its fixed addresses, or the one that QEMU's user network gives.
fn addresses(config: &BootConfig, nics: &[u8]) -> Result<Vec<(u32, Vec<IpAddr>)>, net::Error> {
    let card = |settings: &NicSettings| {
        let number = settings.index;
        let Some(nic) = nics.iter().find(|nic| u32::from(**nic) == number) else {
            return Err(net::Error::NoCard { number, waited: Duration::ZERO, seen: format!("{nics:?}") });
        };
        let addresses = match &settings.mode {
            Mode::Dhcp => vec![Ipv4Addr::new(10, 0, nic.saturating_add(2), 15).into()],
            Mode::Static { addresses, .. } => addresses.iter().map(|cidr| cidr.address).collect(),
        };
        Ok((number, addresses))
    };
    config.nics.iter().map(card).collect()
}

/// QEMU's user network shows a guest the host's loopback under addresses of its own, others on each card.
fn on_this_machine(address: SocketAddr, nics: &[u8]) -> SocketAddr {
    let is_host = |nic: &u8| match address.ip() {
        IpAddr::V4(ip) => ip == Ipv4Addr::new(10, 0, nic.saturating_add(2), 2),
        IpAddr::V6(ip) => ip == Ipv6Addr::new(0xfec0, 0, 0, u16::from(*nic), 0, 0, 0, 2),
    };
    if !nics.iter().any(is_host) {
        return address;
    }
    let loopback = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    SocketAddr::new(loopback, address.port())
}

/// The state of the cable, followed by a thread. A cable that is out from the start is what a real appliance finds
/// after it has waited for one; nothing is waited for here.
fn connect(machine: &Machine, store: &XenStore) -> Result<watch::Receiver<bool>, Error> {
    if machine.nics.is_empty() {
        let error = net::Error::NoCard { number: 0, waited: Duration::ZERO, seen: "none".to_owned() };
        return Err(error.into());
    }
    let is_up =
        |store: &XenStore| store.read_optional(LINK_KEY).map(|v| v.as_deref() != Some(link_value(false)));
    if !is_up(store)? {
        return Err(net::Error::NoLink { card: "eth0".to_owned() }.into());
    }
    let (plug, link) = watch::channel(true);
    let (store, watch) = (store.clone(), store.watch(LINK_KEY)?);
    let body = move || {
        while watch.is_alive() {
            if watch.next(LINK_WAIT).is_none() {
                continue;
            }
            // Without XenStore the simulator is gone, and this process with it.
            let Ok(up) = is_up(&store) else { return };
            if plug.send_replace(up) != up {
                console::line(if up { "eth0: link is up" } else { "eth0: link is down" });
            }
        }
    };
    std::thread::Builder::new()
        .name("link".to_owned())
        .spawn(body)
        .map_err(start_error("watch for the link"))?;
    Ok(link)
}

/// The watchdog: when the last sign of life was, and how long it may be ago.
struct Life {
    state: Mutex<(Instant, Duration)>,
    changed: Condvar,
}

impl Life {
    fn new() -> Self {
        Self { state: Mutex::new((Instant::now(), DEFAULT_LIMIT)), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, (Instant, Duration)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        self.lock().0 = Instant::now();
    }

    fn set_limit(&self, limit: Duration) {
        *self.lock() = (Instant::now(), limit.clamp(LIMIT_MIN, LIMIT_MAX));
        self.changed.notify_all();
    }

    /// Waits until there was no sign of life for too long; answers how long that is.
    fn wait_for_silence(&self) -> Duration {
        let mut state = self.lock();
        loop {
            let (last, limit) = *state;
            let left = limit.saturating_sub(last.elapsed());
            if left.is_zero() {
                return limit;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends this process, in a thread of its own, once it is silent for too long.
    fn watch(self: Arc<Self>, reporter: Reporter) -> io::Result<()> {
        let body = move || {
            let seconds = self.wait_for_silence().as_secs();
            reporter
                .failed("watchdog", &format!("no progress for {seconds} s: the appliance stopped itself"));
            power_off();
        };
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(body).map(drop)
    }
}

/// The machine around the job.
struct Surroundings {
    machine: Machine,
    began: Instant,
    reporter: Reporter,
    life: Arc<Life>,
    link: watch::Receiver<bool>,
}

impl Surroundings {
    fn disk(&self, userdevice: u16, expected: ByteCount) -> Result<(&MachineDisk, Disk), devices::Error> {
        let (userdevice, name) = (u32::from(userdevice), format!("xvd{userdevice}"));
        let found = self.machine.disks.iter().find(|disk| u32::from(disk.userdevice) == userdevice);
        let Some(found) = found else {
            let seen: Vec<String> =
                self.machine.disks.iter().map(|d| format!("xvd{}", d.userdevice)).collect();
            return Err(devices::Error::Missing {
                userdevice,
                number: devices::xenstore_number(userdevice).unwrap_or_default(),
                waited: Duration::ZERO,
                seen: if seen.is_empty() { "none".to_owned() } else { seen.join(" ") },
            });
        };
        let size = std::fs::metadata(&found.path)
            .map_err(|source| devices::Error::Sysfs { path: found.path.clone(), source })?
            .len();
        let size = ByteCount::new(size);
        if size != expected {
            return Err(devices::Error::Size { userdevice, name, expected, found: size });
        }
        let disk = Disk { userdevice, name, node: found.path.clone(), size, read_only: found.read_only };
        Ok((found, disk))
    }
}

impl Outside for Surroundings {
    fn state(&self, state: State) {
        self.reporter.state(state);
    }

    fn tick(&self) {
        self.life.tick();
    }

    fn set_watchdog(&self, limit: Duration) {
        self.life.set_limit(limit);
    }

    fn milestone(&self, name: &str) {
        console::line(name);
    }

    fn line(&self, text: &str) {
        console::line(text);
    }

    fn network_trouble(&self) -> Option<String> {
        let is_up = *self.link.borrow();
        (!is_up).then(|| "no link on eth0: cable not connected".to_owned())
    }

    fn source(&self, userdevice: u16, size: ByteCount) -> Result<Disk, devices::Error> {
        let (found, disk) = self.disk(userdevice, size)?;
        if !found.read_only {
            return Err(devices::Error::Writable { userdevice: disk.userdevice, name: disk.name });
        }
        Ok(disk)
    }

    fn target(&self, userdevice: u16, size: ByteCount) -> Result<Disk, devices::Error> {
        let (found, disk) = self.disk(userdevice, size)?;
        if found.read_only {
            return Err(devices::Error::ReadOnly { userdevice: disk.userdevice, name: disk.name });
        }
        Ok(disk)
    }

    fn own_disk(&self) -> Result<Disk, devices::Error> {
        let own =
            self.machine.disks.iter().find(|disk| u32::from(disk.userdevice) == devices::OWN_USERDEVICE);
        let Some(own) = own else {
            return Err(devices::Error::NoOwn { seen: "none".to_owned() });
        };
        let size = std::fs::metadata(&own.path)
            .map_err(|source| devices::Error::Sysfs { path: own.path.clone(), source })?
            .len();
        self.disk(own.userdevice, ByteCount::new(size)).map(|(_, disk)| disk)
    }

    fn seam(&self, userdevice: u16) -> Option<Box<dyn diskio::Seam>> {
        let disk = self.machine.disks.iter().find(|disk| disk.userdevice == userdevice)?;
        (disk.surface != Surface::default()).then(|| Box::new(disk.surface.clone()) as Box<dyn diskio::Seam>)
    }

    fn memory(&self) -> Memory {
        Memory {
            total_kib: self.machine.memory / 1024,
            available_kib: self.machine.memory.saturating_sub(SYSTEM_BYTES) / 1024,
            ..memory::now()
        }
    }

    fn boot_time(&self) -> Duration {
        self.began.elapsed()
    }

    fn uptime(&self) -> Duration {
        self.began.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silence_ends_a_life() {
        let life = Arc::new(Life::new());
        let waiting = life.clone();
        let end = std::thread::spawn(move || waiting.wait_for_silence());
        life.tick();
        assert!(!end.is_finished());
        // Shorter than any limit an order can set, so that the test need not wait for one.
        *life.lock() = (Instant::now(), Duration::from_millis(1));
        life.changed.notify_all();
        assert_eq!(end.join().unwrap(), Duration::from_millis(1));
        life.set_limit(Duration::ZERO);
        assert_eq!(life.lock().1, LIMIT_MIN);
    }

    #[test]
    fn the_host_is_reached_by_the_addresses_of_the_user_network() {
        let mapped = |text: &str| on_this_machine(text.parse().unwrap(), &[0, 1]).to_string();
        assert_eq!(mapped("10.0.2.2:8443"), "127.0.0.1:8443");
        assert_eq!(mapped("[fec0::2]:8443"), "[::1]:8443");
        assert_eq!(mapped("10.0.3.2:8443"), "127.0.0.1:8443");
        assert_eq!(mapped("[fec0:0:0:1::2]:8443"), "[::1]:8443");
        for elsewhere in ["192.0.2.7:1", "10.0.4.2:1", "[fec0:0:0:2::2]:1"] {
            assert_eq!(mapped(elsewhere), elsewhere, "no card leads there");
        }
    }
}
