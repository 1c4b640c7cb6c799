//! A connected pool: the typed client together with what this installation knows about the pool.

use crate::config::{PoolConfig, State};
use crate::error::{Context, Error, Kind, Result};
use crate::retry::Waits;
use base64::Engine as _;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use xapi::{Call, Client, Credentials, Endpoint, Fingerprint, Host, Observer, Ref, StringMap, Verdict, Vm};

/// `other_config` key that names the job an object belongs to.
pub const TAG_JOB: &str = "abd:job";
/// `other_config` key that names the installation that made an object.
pub const TAG_OWNER: &str = "abd:owner";
/// `other_config` key of a delegate's own disk: its job.
pub const TAG_DELEGATE: &str = "abd:delegate";
/// `other_config` key of a restored VDI: the restore point it came from.
pub const TAG_RESTORED: &str = "abd:restored";
/// `other_config` key of a VDI that stays between runs: uuid of the live VDI whose changes it lists.
pub const TAG_REFERENCE: &str = "abd:reference";
/// `other_config` key of the same: id of the store that holds the base. Two stores have references of their own.
pub const TAG_STORE: &str = "abd:store";

/// `other_config` key of everything we tag: the object's own uuid. Whoever copies, clones, snapshots or reverts to one
/// of our objects copies its tags, but never its uuid: an object that carries the uuid of another one is not ours.
pub const TAG_SELF: &str = "abd:self";

/// `other_config` key of a template that another one took the place of: that one's uuid, or `removed`.
pub const TAG_RETIRED: &str = "abd:retired";

/// `other_config` key of a template: a number that is written once. The import that brought it in writes one that is
/// higher than those of all templates that were there, unless another import wrote 0 before it. Of two templates the
/// one with the higher number may take the other's place, never the other way round.
pub const TAG_TICKET: &str = "abd:ticket";

/// `other_config` key of a delegate that is kept, halted, for a later job: until when, as RFC 3339 text.
pub const TAG_IDLE: &str = "abd:idle";

/// `other_config` key of a task in the pool that a job started: the installation and the job, with a slash in between.
pub const TAG_TASK: &str = "abd:task";

/// Name under which a pool lists our sessions, followed by the installation's id. A pool drops the oldest of 500
/// sessions of one name: those that a killed process left must not cost another installation its own.
const ORIGINATOR: &str = "abd";

/// A pool we are logged in to.
pub struct Pool {
    /// What was recorded when it was added.
    pub config: PoolConfig,
    /// The session.
    pub client: Client,
    /// Our installation.
    pub owner: String,
    /// How long what makes us wait is waited for.
    pub waits: Waits,
}

impl Pool {
    /// Logs in and checks that it is the pool that was added.
    ///
    /// # Errors
    /// By kind: unreachable, certificate, credentials; [`Kind::Failed`] if another pool answers.
    pub async fn connect(state: &State, config: PoolConfig) -> Result<Self> {
        Self::connect_observed(state, config, None).await
    }

    /// The same, with a session in which every call that changes something is refused before it is sent.
    ///
    /// # Errors
    /// As [`Pool::connect`].
    pub async fn connect_read_only(state: &State, config: PoolConfig) -> Result<Self> {
        Self::connect_observed(state, config, Some(Arc::new(ReadOnly))).await
    }

    async fn connect_observed(
        state: &State,
        config: PoolConfig,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Self> {
        let connected = connect(&config, state.owner(), observer).await;
        let client = connected.context(|| format!("pool '{}'", config.name))?;
        let found = client.learn_pool().await.context(|| format!("pool '{}'", config.name));
        match found {
            Ok((_, record)) if record.uuid.as_str() == config.uuid => {
                let owner = state.owner().to_owned();
                Ok(Self { config, client, owner, waits: Waits::default() })
            }
            other => {
                // The session would end by itself after a day; the first error is the one that counts.
                let _ = client.close().await;
                let (_, record) = other?;
                Err(Error::new(
                    Kind::Failed,
                    format!(
                        "at {} answers pool {}, not '{}' ({})",
                        config.endpoint, record.uuid, config.name, config.uuid
                    ),
                )
                .remedy("if the pool was rebuilt, remove it and add it again"))
            }
        }
    }

    /// The same pool for the calls of one job: the tasks that they start carry the job's tag, so that `abd reconcile`
    /// can end those that a killed job left under way.
    #[must_use]
    pub fn for_job(&self, job: &str) -> Self {
        let tag = StringMap::from([(TAG_TASK.into(), format!("{}/{job}", self.owner))]);
        Self {
            config: self.config.clone(),
            client: self.client.with_task_tags(tag),
            owner: self.owner.clone(),
            waits: self.waits,
        }
    }

    /// The same pool with other limits.
    #[must_use]
    pub fn with_waits(&self, waits: Waits) -> Self {
        let (config, client, owner) = (self.config.clone(), self.client.clone(), self.owner.clone());
        Self { config, client, owner, waits }
    }

    /// Logs out.
    pub async fn close(&self) {
        if let Err(error) = self.client.close().await {
            tracing::warn!(pool = %self.config.name, "cannot log out: {error}");
        }
    }

    /// The address at which delegates reach this machine.
    ///
    /// # Errors
    /// [`Kind::Usage`] where it cannot be found out.
    pub async fn advertised(&self, listening: SocketAddr) -> Result<SocketAddr> {
        let address = match self.config.advertise {
            Some(address) => address,
            None if !listening.ip().is_unspecified() => listening.ip(),
            None => self.route_address().await.ok_or_else(|| {
                Error::new(Kind::Usage, "this machine's own address towards the pool cannot be found out")
                    .remedy("name it with `abd pool set --advertise ADDRESS`")
            })?,
        };
        Ok(SocketAddr::new(address, listening.port()))
    }

    /// The local address that the route to the pool uses. A UDP socket that is connected sends nothing.
    async fn route_address(&self) -> Option<IpAddr> {
        let Endpoint::Https { host, port } = self.client.endpoint().await else { return None };
        let target =
            format!("{}:{port}", if host.contains(':') { format!("[{host}]") } else { host.clone() });
        let any = if host.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_unspecified())
    }

    /// Finds one VM by uuid or name. Templates, snapshots and control domains are no candidates.
    ///
    /// # Errors
    /// [`Kind::NotFound`] where none or several match, naming the candidates.
    pub async fn find_vm(&self, wanted: &str, all: &BTreeMap<Ref<Vm>, Vm>) -> Result<(Ref<Vm>, Vm)> {
        let candidates: Vec<_> = all
            .iter()
            .filter(|(_, vm)| !vm.is_a_template && !vm.is_a_snapshot && !vm.is_control_domain)
            .filter(|(_, vm)| vm.uuid.as_str() == wanted || vm.name_label == wanted)
            .collect();
        match candidates.as_slice() {
            [(reference, vm)] => Ok(((*reference).clone(), (*vm).clone())),
            [] => Err(Error::new(
                Kind::NotFound,
                format!("no VM in pool '{}' is named '{wanted}'", self.config.name),
            )
            .remedy("give its name or uuid as `xe vm-list` or XenCenter shows it")),
            several => {
                let uuids: Vec<_> = several.iter().map(|(_, vm)| vm.uuid.to_string()).collect();
                Err(Error::new(
                    Kind::NotFound,
                    format!("{} VMs in pool '{}' are named '{wanted}'", several.len(), self.config.name),
                )
                .remedy(format!("name one by its uuid: {}", uuids.join(", "))))
            }
        }
    }

    /// The hosts, for names in messages.
    ///
    /// # Errors
    /// What the pool says.
    pub async fn hosts(&self) -> Result<BTreeMap<Ref<Host>, Host>> {
        self.client.get_all_records::<Host>().await.context(|| "list hosts".into())
    }
}

/// Refuses what changes something: for commands that only look.
struct ReadOnly;

impl Observer for ReadOnly {
    fn before(&self, call: &Call<'_>) -> Verdict {
        match call.mutating {
            false => Verdict::Proceed,
            true => Verdict::Refuse("this command changes nothing".into()),
        }
    }
}

/// Opens a session with the recorded certificates, at another recorded member where the known address is silent.
async fn connect(config: &PoolConfig, owner: &str, observer: Option<Arc<dyn Observer>>) -> Result<Client> {
    let endpoint = parse_endpoint(&config.endpoint)?;
    let credentials = match endpoint {
        Endpoint::Unix(_) => Credentials::Local,
        _ => Credentials::Password { user: config.user.clone(), password: config.password()? },
    };
    let mut options = options(endpoint, credentials, &config.certificates, observer)?;
    options.originator = format!("{ORIGINATOR}-{owner}");
    if matches!(options.endpoint, Endpoint::Https { .. }) {
        // The addresses are ours, written by `pool add`; one that is none is found out by its use.
        options.members = config.certificates.keys().filter_map(|address| address.parse().ok()).collect();
    }
    Ok(Client::connect(options).await?)
}

/// Opens a session with the given certificates.
///
/// # Errors
/// By kind, as [`Pool::connect`].
pub async fn connect_with(
    endpoint: Endpoint,
    credentials: Credentials,
    certificates: &BTreeMap<String, String>,
    observer: Option<Arc<dyn Observer>>,
) -> Result<Client> {
    Ok(Client::connect(options(endpoint, credentials, certificates, observer)?).await?)
}

fn options(
    endpoint: Endpoint,
    credentials: Credentials,
    certificates: &BTreeMap<String, String>,
    observer: Option<Arc<dyn Observer>>,
) -> Result<xapi::Options> {
    let mut pins = BTreeMap::new();
    for (address, text) in certificates {
        let fingerprint: Fingerprint = text.parse().map_err(|_| {
            Error::new(
                Kind::Usage,
                format!("the recorded certificate of {address} is not a fingerprint: '{text}'"),
            )
            .remedy("remove the pool and add it again")
        })?;
        pins.insert(address.clone(), fingerprint);
    }
    let mut options = xapi::Options::new(endpoint, credentials);
    options.pins = Arc::new(pins);
    options.observer = observer;
    Ok(options)
}

/// The bytes of the first certificate in PEM text.
pub(crate) fn pem_to_der(pem: &str) -> Option<Vec<u8>> {
    let body = pem.split_once("-----BEGIN CERTIFICATE-----")?.1.split_once("-----END CERTIFICATE-----")?.0;
    let packed: String = body.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(packed).ok()
}

/// Reads an endpoint.
///
/// # Errors
/// [`Kind::Usage`] with the forms that are understood.
pub fn parse_endpoint(text: &str) -> Result<Endpoint> {
    text.parse().map_err(|_| {
        Error::new(Kind::Usage, format!("'{text}' is not the address of a pool"))
            .remedy("write https://HOST, https://HOST:PORT or unix:/var/lib/xcp/xapi")
    })
}
