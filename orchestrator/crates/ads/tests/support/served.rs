//! A server of `abd serve` in this process, and clients of it.

use ads::{
    Backend, Client, Denied, Guard, Offer, Place, Role, ServeLimits, Server, Standing, Store, identity_in,
};
use pin::{Fingerprint, Identity};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

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

/// A store behind its guard, and who is known there.
pub struct Vault {
    pub served: Served,
    /// The store itself, as a program on the server's machine opens it.
    pub store: Arc<Store>,
    pub backend: Arc<dyn Backend>,
    pub known: Arc<Mutex<Vec<Client>>>,
}

impl Vault {
    pub fn on(backend: Arc<dyn Backend>, append_only: bool, limits: ServeLimits) -> Self {
        drop(Store::init_on(backend.clone()).unwrap());
        Self::over(backend, append_only, limits)
    }

    /// The same over a store that is there, perhaps behind another server.
    pub fn over(backend: Arc<dyn Backend>, append_only: bool, limits: ServeLimits) -> Self {
        let store = Arc::new(Store::open_on(backend.clone()).unwrap());
        let known: Arc<Mutex<Vec<Client>>> = Arc::default();
        let table = known.clone();
        let find = move |key| table.lock().unwrap().iter().find(|client| client.key == key).cloned();
        let guard = Guard::new(store.clone(), Arc::new(find), append_only);
        Self { served: Served::start(Arc::new(guard), limits), store, backend, known }
    }

    pub fn start() -> Self {
        Self::on(Arc::new(super::memory::Memory::default()), false, ServeLimits::default())
    }

    /// Makes a client known and gives its way to the store.
    pub fn client(&self, name: &str, role: Role) -> Arc<dyn Backend> {
        let key = self.served.identity(name).fingerprint();
        self.known.lock().unwrap().push(Client { name: name.into(), key, role });
        self.served.backend(name)
    }

    /// The same, with the store opened.
    pub fn open(&self, name: &str, role: Role) -> Arc<Store> {
        Arc::new(Store::open_on(self.client(name, role)).unwrap())
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

    /// A connection on which anything may be said.
    pub fn raw(&self, client: &str) -> TlsStream<TcpStream> {
        let config = self.identity(client).client_config(self.key).unwrap();
        let at = self.server.as_ref().unwrap().addresses()[0];
        self.runtime.block_on(async {
            let stream = TcpStream::connect(at).await.unwrap();
            let name = ServerName::try_from(pin::SERVER_NAME).unwrap();
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
        })
    }

    pub fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }
}
