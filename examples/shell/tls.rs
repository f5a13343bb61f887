//! Where TLS finds what it needs.

use std::path::PathBuf;

use tokio_rustls::rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tower_net::{
    error::BoxError,
    tls::{PemFiles, TlsConfig},
};

/// What was asked for.
pub(crate) struct Tls {
    /// A certificate and its key; without, one is made.
    pair: Option<(PathBuf, PathBuf)>,
    alpn: Vec<String>,
    client_ca: Option<String>,
}

impl Tls {
    pub(super) fn of(pair: Option<(PathBuf, PathBuf)>) -> Self {
        Self {
            pair,
            alpn: Vec::new(),
            client_ca: None,
        }
    }

    /// A certificate that is made at the start.
    pub(crate) fn own() -> Self {
        Self::of(None)
    }

    pub(super) fn with(mut self, alpn: Vec<String>, client_ca: Option<String>) -> Self {
        self.alpn = alpn;
        self.client_ca = client_ca;
        self
    }

    /// Agrees on these, the best one first, unless the flags say otherwise.
    pub(crate) fn alpn_or(mut self, protocols: &[&str]) -> Self {
        if self.alpn.is_empty() {
            self.alpn = protocols
                .iter()
                .map(|name| (*name).to_owned())
                .collect();
        }
        self
    }

    pub(crate) fn config(self) -> Result<TlsConfig, BoxError> {
        let Some((certificate, key)) = self.pair else {
            return self.made();
        };
        let mut pem = PemFiles::new(certificate, key)
            .provider(ring::default_provider())
            .alpn(&self.alpn);
        if let Some(authorities) = &self.client_ca {
            pem = pem.require_client_certificates(authorities);
        }
        Ok(pem.load()?.config())
    }

    /// With a certificate for `localhost` that nobody vouches for but itself.
    fn made(self) -> Result<TlsConfig, BoxError> {
        if self.client_ca.is_some() {
            return Err("--client-ca needs --tls CERT,KEY".into());
        }
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names)?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], PrivateKeyDer::Pkcs8(key))?;
        config.alpn_protocols = self
            .alpn
            .into_iter()
            .map(String::into_bytes)
            .collect();
        Ok(TlsConfig::new(config))
    }
}
