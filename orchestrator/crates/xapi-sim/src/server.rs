//! A running simulator: its sockets, its state, its end.

use crate::config::Config;
use crate::http::{listen, routes};
use crate::sim::{Context, Sim};
use crate::store::seed::seed;
use crate::{Error, lab};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::AbortHandle;

/// Where a simulator can be reached; also the contents of the ports file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ports {
    /// API over TLS.
    pub https: u16,
    /// API in the clear.
    pub http: u16,
    /// The lab's control port, plain HTTP.
    pub lab: u16,
    /// API without a password.
    pub socket: PathBuf,
    /// SHA-256 of the TLS certificate, colon-separated upper-case hexadecimal.
    pub fingerprint: String,
    /// The user who may log in.
    pub user: String,
    /// A file with that user's password.
    pub password_file: PathBuf,
}

/// A running simulator. Dropping it stops the sockets at once; [`Simulator::shutdown`] also ends the guests.
#[derive(Debug)]
pub struct Simulator {
    sim: Arc<Sim>,
    ports: Ports,
    tasks: Vec<AbortHandle>,
}

impl Simulator {
    /// Starts a simulator with an empty pool.
    pub async fn start(mut config: Config) -> Result<Self, Error> {
        std::fs::create_dir_all(&config.dir).map_err(Error::file("create", &config.dir))?;
        // Guests run in directories of their own, so every path they get must be absolute.
        let dir = config.dir.canonicalize().map_err(Error::file("find", &config.dir))?;
        config.dir.clone_from(&dir);
        let password_file = dir.join("password");
        std::fs::write(&password_file, &config.password).map_err(Error::file("write", &password_file))?;
        let identity = listen::identity()?;
        let socket = config.socket.clone().unwrap_or_else(|| dir.join("xapi.sock"));
        let [https_port, http_port, lab_port] = config.ports;
        let user = config.user.clone();
        let sim = Arc::new(Sim::new(config));
        sim.with(|s| seed(s, &sim.config).map(|()| lab::fate::set_addresses(s)))?;
        sim.set_certificate(identity.pem);

        let hosts: Vec<_> = (0..sim.config.hosts.max(1)).map(lab::fate::host_address).collect();
        let (https, https_port) = listen::bind(&hosts, https_port).await?;
        let (http, http_port) = listen::bind(&hosts, http_port).await?;
        let (control, lab_port) = listen::bind(&hosts[..1], lab_port).await?;
        let local = listen::bind_unix(&socket)?;
        let api = |host: usize, trusted: bool| {
            let sim = sim.clone();
            move |stream| routes::serve(sim.clone(), stream, routes::Entry { host, trusted })
        };
        let mut tasks = vec![listen::spawn(local, api(0, true))];
        for (host, listener) in https.into_iter().enumerate() {
            let tls = listen::TlsListener { listener, acceptor: identity.acceptor.clone() };
            tasks.push(listen::spawn(tls, api(host, false)));
        }
        tasks.extend(http.into_iter().enumerate().map(|(host, l)| listen::spawn(l, api(host, false))));
        for listener in control {
            let sim = sim.clone();
            tasks.push(listen::spawn(listener, move |stream| lab::serve(sim.clone(), stream)));
        }
        let ports = Ports {
            https: https_port,
            http: http_port,
            lab: lab_port,
            socket,
            fingerprint: identity.fingerprint,
            user,
            password_file,
        };
        Ok(Self { sim, ports, tasks })
    }

    /// Where it listens.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Waits until somebody asks for the end on the control port.
    pub async fn wait_for_shutdown_request(&self) {
        self.sim.stop.notified().await;
    }

    /// Ends all guests, then the sockets.
    pub async fn shutdown(self) {
        let domains: Vec<_> = self.sim.with(|s| s.domains.values().cloned().collect());
        let context = Context::own(&self.sim);
        for domain in domains {
            domain.kill().await;
            crate::domain::halt(&context, &domain).await;
        }
        // Removing the socket file is tidiness; the next start replaces it anyway.
        let _ = std::fs::remove_file(&self.ports.socket);
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}
