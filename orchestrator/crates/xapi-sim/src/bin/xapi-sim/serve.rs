//! `xapi-sim serve`.

use clap::{Args, ValueEnum};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use xapi_sim::guest::{Engine, XenKind, XenLab};
use xapi_sim::{Coalesce, Config, Error, Flavour, Simulator, SrSpec, User};

/// Options of `serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Directory of the pool's disks, guests and logs. Every run begins with an empty pool; use a fresh directory.
    #[arg(long)]
    dir: PathBuf,
    /// Where to write ports, socket, certificate fingerprint and password file as JSON [default: DIR/ports.json].
    #[arg(long)]
    port_file: Option<PathBuf>,
    /// The release to imitate: xs-6.5, xs-7.0, xs-7.1, xs-7.2, xs-7.3, xs-7.6, ch-8.0, ch-8.2, xs-8, xcp-8.2, xcp-8.3.
    #[arg(long, default_value = "xcp-8.3")]
    flavour: String,
    /// The user who may log in.
    #[arg(long, default_value = "root")]
    user: String,
    /// One more user, for tests of what roles may do: NAME:PASSWORD:ROLE; roles are pool-admin, pool-operator,
    /// vm-power-admin, vm-admin, vm-operator, read-only; may be repeated.
    #[arg(long = "extra-user", value_name = "NAME:PASSWORD:ROLE")]
    extra_users: Vec<User>,
    /// File with the password, without its line end [default: the password is "password"].
    #[arg(long)]
    password_file: Option<PathBuf>,
    /// Answer JSON-RPC as servers without it do.
    #[arg(long)]
    no_json: bool,
    /// Number of hosts, each with a local storage repository.
    #[arg(long, default_value_t = 1)]
    hosts: usize,
    /// Size of each storage repository in GiB.
    #[arg(long, default_value_t = 4096)]
    sr_gib: u64,
    /// One more storage repository: name=NAME,type=TYPE[,shared=BOOL][,host=N][,capacity=SIZE][,default=BOOL]; types are
    /// ext, file, nfs, smb (thin), lvm, lvmoiscsi, lvmohba (thick), iscsi, udev, iso; may be repeated.
    #[arg(long = "sr", value_name = "SPEC")]
    srs: Vec<SrSpec>,
    /// Shorten chains of deleted snapshots at once (auto), or only when the control port is asked (manual).
    #[arg(long, default_value = "auto")]
    coalesce: Coalesce,
    /// Round the sizes of disks up to whole 2 MiB blocks, as VHD repositories do. Without it sizes are exact.
    #[arg(long)]
    round_sizes: bool,
    /// Seconds a wrong password is left waiting.
    #[arg(long, default_value_t = 5)]
    login_delay: u64,
    /// Milliseconds for which disks stay busy after their guest halted.
    #[arg(long, default_value_t = 0)]
    detach_lag_ms: u64,
    /// What runs clones of the appliance's template.
    #[arg(long, value_enum, default_value_t = Delegates::Qemu)]
    delegates: Delegates,
    /// Directory of a running Xen lab (`scripts/xen-lab --serve` prints it), for delegates that run there.
    #[arg(long, value_name = "DIR", required_if_eq_any([("delegates", "xen-pv"), ("delegates", "xen-pvh"), ("delegates", "xen-hvm")]))]
    xen: Option<PathBuf>,
    /// Bytes per second that the network of each delegate that is a process lets through, in both directions together.
    #[arg(long, value_name = "BYTES")]
    delegate_network_rate: Option<NonZeroU64>,
    /// Log what every disk holds at each snapshot of a VM.
    #[arg(long)]
    snapshot_digests: bool,
    /// Let asynchronous calls wait until `POST /lab/step` runs the next one.
    #[arg(long)]
    step: bool,
    /// Path of the Unix socket [default: DIR/xapi.sock].
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Port of the API over TLS; 0 picks a free one.
    #[arg(long, default_value_t = 0)]
    https_port: u16,
    /// Port of the API in the clear; 0 picks a free one.
    #[arg(long, default_value_t = 0)]
    http_port: u16,
    /// Port of the control interface; 0 picks a free one.
    #[arg(long, default_value_t = 0)]
    lab_port: u16,
}

/// Ways to run a delegate.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Delegates {
    /// Boot the template's own disk in an emulated machine.
    Qemu,
    /// Run the appliance's worker as a process: fast, but without kernel, firmware and network set-up.
    Process,
    /// A paravirtualised domain on a real Xen: the image's kernel and initramfs.
    XenPv,
    /// The same kernel in a PVH domain.
    XenPvh,
    /// A domain with firmware on a real Xen, which boots the template's own disk.
    XenHvm,
}

impl Delegates {
    fn on_xen(self) -> Option<XenKind> {
        match self {
            Self::Qemu | Self::Process => None,
            Self::XenPv => Some(XenKind::Pv),
            Self::XenPvh => Some(XenKind::Pvh),
            Self::XenHvm => Some(XenKind::Hvm),
        }
    }
}

impl ServeArgs {
    fn config(&self) -> Result<Config, Error> {
        let flavour = Flavour::by_name(&self.flavour)?;
        let mut config = Config::new(&self.dir);
        if let Some(path) = &self.password_file {
            let text = std::fs::read_to_string(path).map_err(|source| Error::File {
                action: "read",
                path: path.clone(),
                source,
            })?;
            config.password = text.trim_end_matches(['\r', '\n']).to_owned();
        }
        config.json = flavour.json && !self.no_json;
        config.flavour = flavour;
        config.user.clone_from(&self.user);
        config.extra_users.clone_from(&self.extra_users);
        config.hosts = self.hosts;
        config.sr_capacity = self.sr_gib << 30;
        config.srs.clone_from(&self.srs);
        config.coalesce = self.coalesce;
        config.round_sizes = self.round_sizes;
        config.login_delay = Duration::from_secs(self.login_delay);
        config.detach_lag = Duration::from_millis(self.detach_lag_ms);
        if matches!(self.delegates, Delegates::Process) {
            let found = std::env::current_exe();
            let program = found.map_err(|source| Error::File {
                action: "find",
                path: PathBuf::from("this program"),
                source,
            })?;
            config.delegates = Engine::Process { program, network_rate: self.delegate_network_rate };
        }
        if let (Some(kind), Some(directory)) = (self.delegates.on_xen(), &self.xen) {
            config.delegates = Engine::Xen { kind, lab: XenLab::at(directory) };
        }
        config.snapshot_digests = self.snapshot_digests;
        config.step = self.step;
        config.socket.clone_from(&self.socket);
        config.ports = [self.https_port, self.http_port, self.lab_port];
        Ok(config)
    }
}

/// Runs a pool until a signal or the control port ends it.
pub(crate) fn run(args: ServeArgs) -> Result<(), Error> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let config = args.config()?;
    let port_file = args.port_file.clone().unwrap_or_else(|| args.dir.join("ports.json"));
    let failed =
        |action| move |source| Error::File { action, path: PathBuf::from("the async runtime"), source };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed("start"))?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed("watch signals for"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("watch signals for"))?;
        let simulator = Simulator::start(config).await?;
        write_ports(&simulator, &port_file)?;
        tokio::select! {
            () = simulator.wait_for_shutdown_request() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        simulator.shutdown().await;
        Ok(())
    })
}

/// The file appears complete or not at all: scripts wait for it.
fn write_ports(simulator: &Simulator, path: &std::path::Path) -> Result<(), Error> {
    let failed = |source| Error::File { action: "write", path: path.to_owned(), source };
    let text = serde_json::to_string_pretty(simulator.ports()).expect("ports are plain members");
    let partial = path.with_extension("partial");
    std::fs::write(&partial, &text).map_err(failed)?;
    std::fs::rename(&partial, path).map_err(failed)?;
    println!("{text}");
    Ok(())
}
