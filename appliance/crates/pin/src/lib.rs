//! TLS in which both sides know the other's key beforehand.
//!
//! Owns: a key pair, and the TLS settings of both ends: TLS 1.3, raw public keys (RFC 7250), no certificate, no
//! authority, no name check. Promises: a client talks only to the one key it was given; a server gets from every
//! connection the peer's proven [`Fingerprint`]. Never: stores a key or opens a connection. A delegate's key lives in
//! memory only; who must be known again later keeps the bytes of [`Identity::generate_kept`].

#![forbid(unsafe_code)]

mod verify;

use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Name put where TLS wants one; nobody checks it, the key is what counts.
pub const SERVER_NAME: &str = "abd.invalid";

/// SHA-256 of a public key's SubjectPublicKeyInfo (DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// A key pair.
pub struct Identity {
    key: Arc<CertifiedKey>,
    fingerprint: Fingerprint,
}

/// Why a key or a TLS setting could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system gave no randomness, or the key could not be made from it.
    #[error("cannot make a TLS key pair: {0}")]
    Key(String),
    /// rustls refused the settings.
    #[error("cannot set up TLS")]
    Settings(#[from] rustls::Error),
    /// Text that is no fingerprint.
    #[error("'{0}' is not a key fingerprint of 64 hexadecimal digits")]
    Fingerprint(String),
}

impl Fingerprint {
    /// Of a SubjectPublicKeyInfo in DER, as [`peer`] and rustls give it.
    pub fn of(spki: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, spki).as_ref());
        Self(bytes)
    }

    /// Wraps 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// 64 lower-case hexadecimal digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::Fingerprint(text.chars().take(80).collect());
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16).ok_or_else(bad)?;
            let low = char::from(pair[1]).to_digit(16).ok_or_else(bad)?;
            *byte = u8::try_from(high * 16 + low).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

/// Never shows the private key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.fingerprint)
    }
}

impl Identity {
    /// Makes a fresh ECDSA P-256 key pair that nobody can know again.
    ///
    /// # Errors
    /// [`Error::Key`] where the system has no randomness.
    pub fn generate() -> Result<Self, Error> {
        Self::generate_kept().map(|(identity, _)| identity)
    }

    /// Makes a fresh key pair, and gives it as PKCS#8 in DER too: a secret, for who must be known again later.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_kept() -> Result<(Self, Vec<u8>), Error> {
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|error| Error::Key(error.to_string()))?;
        let bytes = pkcs8.as_ref().to_vec();
        Ok((Self::from_pkcs8(&bytes)?, bytes))
    }

    /// The key pair that [`generate_kept`](Self::generate_kept) gave.
    ///
    /// # Errors
    /// [`Error::Settings`] for what is no private key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, Error> {
        let key_error = |what: &dyn fmt::Display| Error::Key(what.to_string());
        let private = PrivatePkcs8KeyDer::from(der.to_vec());
        let signing = provider().key_provider.load_private_key(private.into())?;
        let spki = signing.public_key().ok_or_else(|| key_error(&"the key has no public half"))?.to_vec();
        let fingerprint = Fingerprint::of(&spki);
        let key = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], signing));
        Ok(Self { key, fingerprint })
    }

    /// What the other side must know to trust this key.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Settings of a client that talks to the key `server` and nobody else.
    ///
    /// # Errors
    /// [`Error::Settings`] never in practice: the settings are constant.
    pub fn client_config(&self, server: Fingerprint) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify::OneServer { pin: server }))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.key.clone())));
        config.enable_sni = false;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    /// Settings of a server that makes every client prove a key. Which keys may do what is the caller's to
    /// decide, by [`peer`].
    ///
    /// # Errors
    /// [`Error::Settings`] never in practice: the settings are constant.
    pub fn server_config(&self) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verify::AnyClient))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone())));
        // No tickets: a resumed session would skip the proof of the client's key.
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// The proven key of the other end of a finished handshake.
pub fn peer(connection: &rustls::CommonState) -> Option<Fingerprint> {
    connection.peer_certificates()?.first().map(|spki| Fingerprint::of(spki))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, ServerConnection};

    /// Runs a handshake in memory.
    fn handshake(
        client: ClientConfig,
        server: ServerConfig,
    ) -> Result<(ClientConnection, ServerConnection), rustls::Error> {
        let name = ServerName::try_from(SERVER_NAME).expect("a name");
        let mut client = ClientConnection::new(Arc::new(client), name)?;
        let mut server = ServerConnection::new(Arc::new(server))?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).expect("memory");
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                server.read_tls(&mut rest).expect("memory");
                server.process_new_packets()?;
            }
            bytes.clear();
            while server.wants_write() {
                server.write_tls(&mut bytes).expect("memory");
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).expect("memory");
                client.process_new_packets()?;
            }
        }
        Ok((client, server))
    }

    #[test]
    fn both_ends_learn_the_other_key() {
        let (abd, orchestrator) = (Identity::generate().expect("key"), Identity::generate().expect("key"));
        let client = abd.client_config(orchestrator.fingerprint()).expect("client");
        let server = orchestrator.server_config().expect("server");
        let (client, server) = handshake(client, server).expect("handshake");
        assert_eq!(peer(&client), Some(orchestrator.fingerprint()));
        assert_eq!(peer(&server), Some(abd.fingerprint()));
    }

    #[test]
    fn another_server_key_is_refused_by_name() {
        let (abd, real, false_one) = (
            Identity::generate().expect("key"),
            Identity::generate().expect("key"),
            Identity::generate().expect("key"),
        );
        let client = abd.client_config(real.fingerprint()).expect("client");
        let error = handshake(client, false_one.server_config().expect("server")).expect_err("refused");
        assert!(error.to_string().contains(&false_one.fingerprint().to_string()), "{error}");
    }

    #[test]
    fn a_client_without_a_key_is_refused() {
        let server = Identity::generate().expect("key");
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("tls 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verify::OneServer { pin: server.fingerprint() }))
            .with_no_client_auth();
        assert!(handshake(client, server.server_config().expect("server")).is_err());
    }

    #[test]
    fn a_kept_key_is_the_same_key_again_and_what_is_none_is_refused() {
        let (identity, bytes) = Identity::generate_kept().expect("key");
        let again = Identity::from_pkcs8(&bytes).expect("the same");
        assert_eq!(again.fingerprint(), identity.fingerprint());
        let server = again.server_config().expect("server");
        let client =
            Identity::generate().expect("key").client_config(identity.fingerprint()).expect("client");
        handshake(client, server).expect("handshake");
        assert!(Identity::from_pkcs8(&bytes[1..]).is_err() && Identity::from_pkcs8(b"").is_err());
    }

    #[test]
    fn fingerprints_round_trip_as_text() {
        let fingerprint = Fingerprint::of(b"key");
        assert_eq!(fingerprint.to_string().parse::<Fingerprint>().expect("own text"), fingerprint);
        assert!("12".parse::<Fingerprint>().is_err());
    }
}
