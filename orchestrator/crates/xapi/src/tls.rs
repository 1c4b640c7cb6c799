//! Trust in a pool's certificate: by its fingerprint, by nothing else.
//!
//! Pools sign their own certificates, so names, dates and issuers prove nothing. The pin is the SHA-256 of
//! the DER certificate; the handshake proves that the server holds its key. Old hosts made certificates of
//! X.509 version 1, which a general verifier refuses to parse, so the public key is taken out here.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use ring::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, PeerMisbehaved, SignatureScheme};

use crate::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::http::Http;

/// SHA-256 of a DER certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate in DER.
    pub fn of_certificate(der: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(bytes)
    }
}

/// 64 lower-case hex digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// 64 hex digits; colons between them are ignored, as `openssl x509 -fingerprint -sha256` prints them.
impl FromStr for Fingerprint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad =
            || Error::new(Kind::Input, "", format!("{text:?} is not a SHA-256 fingerprint of 64 hex digits"));
        let digits: Vec<u32> = text
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16))
            .collect::<Option<_>>()
            .ok_or_else(bad)?;
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return Err(bad());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::try_from(pair[0] * 16 + pair[1]).expect("two hex digits make a byte");
        }
        Ok(Self(bytes))
    }
}

/// The pins a caller knows, by [`Endpoint::address`]. A pool's members each have their own certificate.
pub trait PinLookup: Send + Sync {
    /// The pin of `host:port`.
    fn pin(&self, address: &str) -> Option<Fingerprint>;
}

impl PinLookup for BTreeMap<String, Fingerprint> {
    fn pin(&self, address: &str) -> Option<Fingerprint> {
        self.get(address).copied()
    }
}

impl<F: Fn(&str) -> Option<Fingerprint> + Send + Sync> PinLookup for F {
    fn pin(&self, address: &str) -> Option<Fingerprint> {
        self(address)
    }
}

/// Asks a server for its certificate and trusts nothing. Show the result to a person, then pin it.
pub async fn probe(endpoint: &Endpoint) -> Result<Fingerprint> {
    let Endpoint::Https { .. } = endpoint else {
        return Err(Error::new(
            Kind::Input,
            "probe",
            format!("{endpoint} has no certificate, it is on this machine"),
        ));
    };
    let http = Http::new(endpoint.clone(), None, std::time::Duration::from_secs(10))?;
    match http.touch().await {
        Err(error) => match error.kind() {
            Kind::TlsUntrusted { found, .. } => Ok(*found),
            _ => Err(error),
        },
        // A connection without a pin never gets through.
        Ok(()) => Err(Error::new(Kind::Protocol, "probe", format!("{endpoint} showed no certificate"))),
    }
}

/// The certificate check of one endpoint, and why it last failed.
#[derive(Debug)]
pub(crate) struct Pinned {
    address: String,
    pin: Option<Fingerprint>,
    algorithms: WebPkiSupportedAlgorithms,
    refusal: Mutex<Option<Kind>>,
}

impl Pinned {
    /// TLS settings that accept this pin only; without one they accept nothing and remember what was shown.
    pub(crate) fn config(address: String, pin: Option<Fingerprint>) -> Result<(Arc<Self>, ClientConfig)> {
        let provider: CryptoProvider = rustls::crypto::ring::default_provider();
        let algorithms = provider.signature_verification_algorithms;
        let pinned = Arc::new(Self { address, pin, algorithms, refusal: Mutex::new(None) });
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::new(Kind::Input, "connect", "TLS cannot be set up").with_source(error))?
            .dangerous()
            .with_custom_certificate_verifier(pinned.clone())
            .with_no_client_auth();
        Ok((pinned, config))
    }

    /// Why the last handshake was refused, once.
    pub(crate) fn take_refusal(&self) -> Option<Kind> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn judge(&self, certificate: &[u8]) -> Option<Kind> {
        let found = Fingerprint::of_certificate(certificate);
        let address = self.address.clone();
        match self.pin {
            Some(expected) if expected == found => None,
            Some(expected) => Some(Kind::TlsChanged { address, expected, found }),
            None => Some(Kind::TlsUntrusted { address, found }),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &[u8],
        signed: &DigitallySignedStruct,
        tls13: bool,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let scheme = signed.scheme;
        let pkcs1 = [
            SignatureScheme::RSA_PKCS1_SHA256,
            SignatureScheme::RSA_PKCS1_SHA384,
            SignatureScheme::RSA_PKCS1_SHA512,
        ];
        let candidates =
            self.algorithms.mapping.iter().find(|(known, _)| *known == scheme).map(|(_, list)| *list);
        let candidates = match candidates {
            Some(list) if !(tls13 && pkcs1.contains(&scheme)) => list,
            _ => return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()),
        };
        // In TLS 1.3 a scheme names its curve, which is the first candidate.
        let candidates = if tls13 { &candidates[..candidates.len().min(1)] } else { candidates };
        let key = PublicKey::of_certificate(certificate).ok_or(CertificateError::BadEncoding)?;
        let fits =
            candidates.iter().find(|candidate| candidate.public_key_alg_id().as_ref() == key.algorithm);
        let verified = fits.is_some_and(|algorithm| {
            algorithm.verify_signature(key.bits, message, signed.signature()).is_ok()
        });
        match verified {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        match self.judge(end_entity) {
            None => Ok(ServerCertVerified::assertion()),
            Some(refusal) => {
                *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, cert, dss, false)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, cert, dss, true)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The key of a certificate: content of its AlgorithmIdentifier, and the key's own bytes.
#[derive(Debug, PartialEq, Eq)]
struct PublicKey<'a> {
    algorithm: &'a [u8],
    bits: &'a [u8],
}

impl<'a> PublicKey<'a> {
    /// Certificate ::= SEQUENCE { tbs SEQUENCE { [0] version?, serial, signature, issuer, validity, subject,
    /// subjectPublicKeyInfo SEQUENCE { algorithm SEQUENCE, key BIT STRING } ... } ... } (RFC 5280, 4.1).
    fn of_certificate(der: &'a [u8]) -> Option<Self> {
        const SEQUENCE: u8 = 0x30;
        const VERSION: u8 = 0xa0;
        const BIT_STRING: u8 = 0x03;
        let (tag, certificate, _) = element(der)?;
        let (inner, mut rest, _) = element(certificate)?;
        if (tag, inner) != (SEQUENCE, SEQUENCE) {
            return None;
        }
        if rest.first() == Some(&VERSION) {
            rest = element(rest)?.2;
        }
        // serial, signature, issuer, validity, subject
        for _ in 0..5 {
            rest = element(rest)?.2;
        }
        let (SEQUENCE, info, _) = element(rest)? else { return None };
        let (SEQUENCE, algorithm, key) = element(info)? else { return None };
        let (BIT_STRING, bits, _) = element(key)? else { return None };
        // The first byte counts unused bits: none in a key.
        let bits = bits.strip_prefix(&[0])?;
        Some(Self { algorithm, bits })
    }
}

/// Splits a DER element: tag, content, what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fingerprints_are_read_with_and_without_colons() {
        let plain = "00ff".repeat(16);
        let parsed: Fingerprint = plain.parse().expect("hex");
        assert_eq!(parsed.to_string(), plain);
        let colons: Vec<String> =
            plain.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).to_uppercase()).collect();
        assert_eq!(colons.join(":").parse::<Fingerprint>().expect("hex"), parsed);
        assert!("00ff".parse::<Fingerprint>().is_err());
        assert!("x".repeat(64).parse::<Fingerprint>().is_err());
    }

    #[test]
    fn the_key_is_found_in_a_certificate() {
        let made = rcgen::generate_simple_self_signed(["pool".to_owned()]).expect("certificate");
        let key = PublicKey::of_certificate(made.cert.der()).expect("a key");
        assert_eq!(key.bits, made.signing_key.public_key_raw());
        assert_eq!(PublicKey::of_certificate(&made.cert.der()[..100]), None);
    }

    #[test]
    fn the_key_is_found_in_a_version_1_certificate() {
        // openssl x509 -req without extensions; the key's SHA-256 as `openssl rsa -RSAPublicKey_out` gives it.
        let key =
            PublicKey::of_certificate(include_bytes!("../tests/fixtures/v1-certificate.der")).expect("a key");
        let digest = Fingerprint::of_certificate(key.bits).to_string();
        assert_eq!(digest, include_str!("../tests/fixtures/v1-certificate.key-sha256").trim());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = PublicKey::of_certificate(&bytes);
        }
    }
}
