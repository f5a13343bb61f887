use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use tokio_rustls::rustls::{
    self, InconsistentKeys,
    client::verify_server_name,
    pki_types::{DnsName, ServerName, UnixTime},
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::middleware::tls::{ConfigFault, TlsConfigError, x509};

/// Certificates by the name that a client asks for: exact names, `*.` and a name, and a default.
///
/// An exact name goes before a wildcard, which stands for one label (RFC 6125, section 6.4.3): `*.example.org` is
/// `a.example.org`, and neither `a.b.example.org` nor `example.org`. Case does not matter. A client that asks for none of
/// them, or for no name at all, gets the default; without one it is refused.
#[derive(Clone, Default)]
pub struct CertificateSet {
    default: Option<Arc<CertifiedKey>>,
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what is behind the `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
}

impl CertificateSet {
    /// Without any: every client is refused.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The certificate of clients that ask for no name that is here. Default: none.
    ///
    /// # Errors
    ///
    /// The key is not that of the certificate, which is broken, or not valid at this time.
    pub fn default_to(
        mut self,
        certificate: impl Into<Arc<CertifiedKey>>,
    ) -> Result<Self, TlsConfigError> {
        let certificate = certificate.into();
        check(&certificate)?;
        self.default = Some(certificate);
        Ok(self)
    }

    /// The certificate of clients that ask for `name`, or if that begins with `*.`, for one more label instead.
    ///
    /// # Errors
    ///
    /// The name is none, the certificate is not for it, the key is not that of the certificate, which is broken, or
    /// not valid at this time.
    pub fn name(
        mut self,
        name: &str,
        certificate: impl Into<Arc<CertifiedKey>>,
    ) -> Result<Self, TlsConfigError> {
        let certificate = certificate.into();
        let (behind, exact, map) = match name.strip_prefix("*.") {
            // A name that only a wildcard is valid for.
            Some(behind) => (behind, format!("any.{behind}"), &mut self.wildcard),
            None => (name, name.to_owned(), &mut self.exact),
        };
        let exact = DnsName::try_from(exact)
            .ok()
            .filter(|_| !behind.is_empty())
            .ok_or_else(|| TlsConfigError::new(ConfigFault::BadName).for_name(name))?;
        check(&certificate).map_err(|error| error.for_name(name))?;
        check_name(&certificate, exact).map_err(|error| error.for_name(name))?;
        map.insert(canonical(behind), certificate);
        Ok(self)
    }

    fn find(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let named = name.and_then(|name| {
            let name = canonical(name);
            self.exact.get(&name).or_else(|| {
                let (_, behind) = name.split_once('.')?;
                self.wildcard.get(behind)
            })
        });
        named.or(self.default.as_ref())
    }
}

impl fmt::Debug for CertificateSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateSet")
            .field("default", &self.default.is_some())
            .field("names", &self.exact.len())
            .field("wildcards", &self.wildcard.len())
            .finish()
    }
}

/// A [`CertificateSet`] in use, to be swapped while the server runs; clones share it.
///
/// It is what [`with_cert_resolver`](rustls::ConfigBuilder) takes. Sessions outlive a swap, as the configuration stays.
#[derive(Debug, Clone)]
pub struct Certificates {
    set: Arc<RwLock<Arc<CertificateSet>>>,
}

impl Certificates {
    /// Begins with this set.
    #[must_use]
    pub fn new(set: CertificateSet) -> Self {
        Self {
            set: Arc::new(RwLock::new(Arc::new(set))),
        }
    }

    /// Takes another set. New handshakes see all of it, or all of the old one.
    pub fn swap(&self, set: CertificateSet) {
        let set = Arc::new(set);
        let current = self.set.write();
        *current.unwrap_or_else(PoisonError::into_inner) = set;
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let set = self.set.read();
        let set = Arc::clone(&set.unwrap_or_else(PoisonError::into_inner));
        set.find(hello.server_name()).cloned()
    }
}

/// Whether the certificate can serve at all, as far as that can be judged here.
fn check(certificate: &CertifiedKey) -> Result<(), TlsConfigError> {
    let fault = match certificate.keys_match() {
        // Some keys, in hardware say, cannot tell.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => None,
        Err(rustls::Error::InconsistentKeys(_)) => Some(ConfigFault::KeyMismatch),
        Err(rustls::Error::NoCertificatesPresented) => Some(ConfigFault::NoCertificate),
        Err(error) => {
            return Err(TlsConfigError::new(ConfigFault::BadCertificate).because(error));
        }
    };
    let validity = certificate
        .cert
        .first()
        .and_then(|own| x509::validity(own));
    let now = UnixTime::now().as_secs();
    let fault = fault.or(match validity {
        Some((_, until)) if until < now => Some(ConfigFault::Expired),
        Some((from, _)) if now < from => Some(ConfigFault::NotYetValid),
        _ => None,
    });
    fault.map_or(Ok(()), |fault| Err(TlsConfigError::new(fault)))
}

fn check_name(certificate: &CertifiedKey, name: DnsName<'_>) -> Result<(), TlsConfigError> {
    let checked = certificate
        .end_entity_cert()
        .and_then(ParsedCertificate::try_from)
        .and_then(|own| verify_server_name(&own, &ServerName::DnsName(name.to_owned())));
    checked.map_err(|error| TlsConfigError::new(ConfigFault::WrongName).because(error))
}

/// Names are compared in lower case, without the final dot of a full one.
fn canonical(name: &str) -> String {
    name.strip_suffix('.')
        .unwrap_or(name)
        .to_ascii_lowercase()
}
