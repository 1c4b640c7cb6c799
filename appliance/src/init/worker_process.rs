//! The worker process: from a fresh process to a job with XenStore, settings and network.

use std::net::IpAddr;
use std::panic;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use super::VERSION;
use super::lifeline::Ticker;
use super::supervisor::BOOT_MS;
use crate::net::{Changes, Network};
use crate::platform::xenstore::transport::{self, Bus};
use crate::platform::xenstore::{Options, XenStore};
use crate::platform::{
    BootConfig, Disks, ExitReason, Milestones, Reporter, State, WorkerEnv, clock, console, guest_agent,
    memory, shutdown,
};
use crate::{Error, chain, worker};

/// How long XenStore may take to appear: the lab's port waits for its driver and for the simulator behind it.
const XENSTORE_WAIT: Duration = Duration::from_secs(15);
/// How often a change of addresses is looked for while nothing else wakes the thread.
const ADDRESS_WAIT: Duration = Duration::from_secs(3600);

/// Runs the job. The exit status tells only whether it worked; the reason stands in XenStore.
pub(super) fn run() -> ExitCode {
    // PID 1 blocks signals for its own purposes; a process inherits that.
    let _ = SigSet::empty().thread_set_mask();
    // If memory runs out, this process goes and PID 1 tells the tale.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    console::open_active();
    let ticker = match Ticker::from_stdin() {
        Ok(ticker) => ticker,
        Err(error) => {
            console::line(&format!("no pipe to PID 1: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let for_hook = ticker.clone();
    panic::set_hook(Box::new(move |what| {
        // It says "panicked at", the place, and on a second line why.
        let text = format!("the worker {what}").replace('\n', " ");
        for_hook.error("panic", &text);
        console::line(&text);
    }));
    let outcome = job(&ticker);
    let memory = memory::now();
    console::line(&format!(
        "memory: {} KiB in all, {} KiB left, worker's peak {} KiB",
        memory.total_kib, memory.available_kib, memory.worker_peak_kib
    ));
    console::line(&format!(
        "processors: {}, worker's time {} ms of {} ms since the kernel started",
        thread::available_parallelism().map_or(1, usize::from),
        clock::cpu_time().as_millis(),
        clock::uptime().as_millis(),
    ));
    match outcome {
        ExitReason::Finished => ExitCode::SUCCESS,
        ExitReason::Failed => ExitCode::FAILURE,
    }
}

fn job(ticker: &Ticker) -> ExitReason {
    let milestones = Milestones::default();
    let boot_ms = std::env::var(BOOT_MS).ok().and_then(|ms| ms.parse().ok()).unwrap_or(0);
    milestones.note("user space", Duration::from_millis(boot_ms));
    let (xenstore, bus) = match open_xenstore() {
        Ok(opened) => opened,
        Err(error) => {
            let error = Error::from(error);
            // PID 1 says it on the console and tries once more to leave it in XenStore.
            ticker.error(error.code(), &chain(&error));
            return ExitReason::Failed;
        }
    };
    milestones.mark("XenStore connected");
    let reporter = Reporter::new(xenstore.clone(), ticker.clone());
    match prepare(xenstore, bus, &reporter, ticker, milestones, u128::from(boot_ms)) {
        Ok((env, identity)) => worker::run(env, identity),
        Err(error) => {
            reporter.fail(&error);
            ExitReason::Failed
        }
    }
}

fn open_xenstore() -> Result<(XenStore, Bus), crate::platform::xenstore::Error> {
    transport::open(Path::new("/"), XENSTORE_WAIT, Options::default())
}

fn prepare(
    xenstore: XenStore,
    bus: Bus,
    reporter: &Reporter,
    ticker: &Ticker,
    milestones: Milestones,
    boot_ms: u128,
) -> Result<(WorkerEnv, worker::Identity), Error> {
    reporter.agent(VERSION);
    reporter.boot_ms(boot_ms);
    reporter.state(State::Booted);
    if bus == Bus::Lab {
        start_shutdown_watch(xenstore.clone());
    }
    if let Err(error) = guest_agent::announce(&xenstore, VERSION) {
        console::line(&format!("the pool will not see a guest agent: {}", chain(&error)));
    }
    let config = BootConfig::read(&xenstore)?;
    milestones.mark(&format!("settings read, job {}", config.job));
    ticker.tick();
    let identity = worker::announce(reporter)?;
    let network = Network::up(&config, milestones.clone())?;
    ticker.tick();
    let changes = network.changes();
    let published = publish_addresses(&xenstore, reporter, &network);
    reporter.state(State::Network);
    follow_addresses(xenstore.clone(), reporter.clone(), network.clone(), changes, published);
    let env = WorkerEnv {
        xenstore,
        reporter: reporter.clone(),
        config,
        ticker: ticker.clone(),
        network,
        disks: Disks::default(),
        milestones,
    };
    Ok((env, identity))
}

fn start_shutdown_watch(xenstore: XenStore) {
    let started = shutdown::watch(xenstore, |word| {
        console::line(&format!("the pool asks for {word}"));
        if let Err(error) = kill(Pid::from_raw(1), Signal::SIGTERM) {
            console::line(&format!("cannot signal PID 1: {error}"));
        }
    });
    if let Err(error) = started {
        console::line(&format!("shutdown requests will not be seen: {error}"));
    }
}

fn publish_addresses(xenstore: &XenStore, reporter: &Reporter, network: &Network) -> Vec<IpAddr> {
    let addresses: Vec<IpAddr> = network.addresses();
    let by_nic = network.addresses_by_nic();
    reporter.address(&addresses, &by_nic);
    for (nic, addresses) in &by_nic {
        if let Err(error) = guest_agent::addresses(xenstore, *nic, addresses) {
            console::line(&format!("the pool will not see our address: {}", chain(&error)));
        }
    }
    let list: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    console::line(&format!("addresses: {}", list.join(" ")));
    addresses
}

/// Publishes addresses again whenever they change.
fn follow_addresses(
    xenstore: XenStore,
    reporter: Reporter,
    network: Network,
    mut changes: Changes,
    mut published: Vec<IpAddr>,
) {
    let body = move || {
        loop {
            changes.wait(ADDRESS_WAIT);
            if network.addresses() != published {
                published = publish_addresses(&xenstore, &reporter, &network);
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("addresses".to_owned()).spawn(body) {
        console::line(&format!("changes of addresses will not be published: {error}"));
    }
}
