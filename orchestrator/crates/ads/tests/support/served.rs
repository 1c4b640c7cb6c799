//! A server of `abd serve` in this process, and clients of it.

use ads::{Backend, Client, Denied, Offer, Place, Role, ServeLimits, Server, Standing, identity_in};
use pin::{Fingerprint, Identity};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Offers a backend as it is, to whoever is known: the way there and back, without any rule.
#[derive(Debug)]
pub struct Everything {
    pub backend: Arc<dyn Backend>,
}

impl Offer for Everything {
    fn client(&self, key: Fingerprint) -> Option<Client> {
        Some(Client { name: "anybody".into(), key, role: Role::Admin })
    }

    fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    fn standing(&self, client: &Client) -> Result<Standing, Denied> {
        Ok(Standing {
            client: client.name.clone(),
            role: client.role,
            append_only: false,
            keep_at_least_days: 0,
        })
    }

    fn most(&self, _client: &Client, _key: &str) -> Result<u64, Denied> {
        Ok(64 << 20)
    }

    fn put(&self, _client: &Client, key: &str, bytes: &[u8], only_new: bool) -> Result<bool, Denied> {
        match only_new {
            true => Ok(self.backend.put_new(key, bytes)?),
            false => Ok(self.backend.put(key, bytes).map(|()| true)?),
        }
    }

    fn delete(&self, _client: &Client, key: &str) -> Result<(), Denied> {
        Ok(self.backend.delete(key)?)
    }
}

/// A running server; ends with this value.
pub struct Served {
    pub server: Option<Server>,
    pub key: Fingerprint,
    pub dir: TempDir,
    pub runtime: Runtime,
}

impl Served {
    pub fn start(offer: Arc<dyn Offer>, limits: ServeLimits) -> Self {
        let dir = TempDir::new().unwrap();
        let identity = identity_in(&dir.path().join("server.pem")).unwrap();
        let runtime = Runtime::new().unwrap();
        let listen = ["127.0.0.1:0".parse().unwrap()];
        let server = runtime.block_on(Server::start(offer, &identity, &listen, limits)).unwrap();
        Self { key: server.fingerprint(), server: Some(server), dir, runtime }
    }

    /// The key of the client with this name; made on first use.
    pub fn identity(&self, name: &str) -> Identity {
        identity_in(&self.dir.path().join(format!("{name}.pem"))).unwrap()
    }

    pub fn address(&self, client: &str) -> String {
        let at = self.server.as_ref().unwrap().addresses()[0];
        let file = self.dir.path().join(format!("{client}.pem"));
        format!("abd://{at}?key={}&identity={}", self.key, file.display())
    }

    pub fn place(&self, client: &str) -> Place {
        self.address(client).parse().unwrap()
    }

    pub fn backend(&self, client: &str) -> Arc<dyn Backend> {
        self.place(client).backend().unwrap()
    }

    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }
}
