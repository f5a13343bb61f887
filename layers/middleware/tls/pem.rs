use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::rustls::{
    self, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{ProducesTickets, ServerSessionMemoryCache, WebPkiClientVerifier},
    sign::CertifiedKey,
};

use crate::middleware::tls::{
    CertificateSet, Certificates, ConfigFault, Reload, TlsConfig, TlsConfigError,
};

/// What a TLS server's configuration is read from: PEM files, which [`Reload`] reads again when told to.
///
/// TLS 1.2 and 1.3. Sessions can be resumed.
#[derive(Clone)]
pub struct PemFiles {
    default: Option<Pair>,
    names: Vec<(String, Pair)>,
    clients: Option<Clients>,
    alpn: Vec<Vec<u8>>,
    sessions: usize,
    tickets: Option<Tickets>,
    provider: Option<Arc<CryptoProvider>>,
}

/// Makes what encrypts tickets, with a key of its own.
type Tickets = fn() -> Result<Arc<dyn ProducesTickets>, rustls::Error>;

/// A chain of certificates and the key of the first.
#[derive(Debug, Clone)]
struct Pair {
    chain: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Clone)]
struct Clients {
    authorities: PathBuf,
    required: bool,
}

/// What the files had.
pub(super) struct Contents {
    pub(super) certificates: CertificateSet,
    /// The file of the clients' authorities, byte for byte.
    pub(super) authorities: Option<Vec<u8>>,
}

impl PemFiles {
    /// A chain of certificates, our own first, and its key, for all clients that ask for no other
    /// [name](Self::name).
    pub fn new(chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        let mut files = Self::by_name();
        files.default = Some(Pair::new(chain, key));
        files
    }

    /// Only for [names](Self::name): a client that asks for none of them is refused.
    #[must_use]
    pub fn by_name() -> Self {
        Self {
            default: None,
            names: Vec::new(),
            clients: None,
            alpn: Vec::new(),
            sessions: SESSIONS,
            tickets: None,
            provider: None,
        }
    }

    /// Another pair, for clients that ask for this name: see [`CertificateSet`] for which they are.
    #[must_use]
    pub fn name(
        mut self,
        name: impl Into<String>,
        chain: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.names
            .push((name.into(), Pair::new(chain, key)));
        self
    }

    /// Refuses clients without a certificate that one of the `authorities`, a PEM file, has signed. Default: clients
    /// are not asked for any.
    #[must_use]
    pub fn require_client_certificates(mut self, authorities: impl Into<PathBuf>) -> Self {
        self.clients = Some(Clients {
            authorities: authorities.into(),
            required: true,
        });
        self
    }

    /// Asks clients for a certificate. One that shows none is let in without, one with a bad one is refused.
    #[must_use]
    pub fn request_client_certificates(mut self, authorities: impl Into<PathBuf>) -> Self {
        self.clients = Some(Clients {
            authorities: authorities.into(),
            required: false,
        });
        self
    }

    /// The protocols we speak, the one we like best first. A client that offers others only is refused; one that
    /// offers none is let in. Default: none, and what clients offer is ignored.
    #[must_use]
    pub fn alpn(mut self, protocols: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        self.alpn = protocols
            .into_iter()
            .map(|protocol| protocol.as_ref().to_vec())
            .collect();
        self
    }

    /// How many sessions are kept for clients to resume, two for each of TLS 1.3; zero for none. Each is some hundred
    /// bytes, and its client's certificates if there are any. Default: 4096.
    #[must_use]
    pub fn sessions(mut self, sessions: usize) -> Self {
        self.sessions = sessions;
        self
    }

    /// Lets clients keep their sessions, as tickets, instead of us: `rustls::crypto::ring::Ticketer::new`, say.
    /// Default: we keep them.
    #[must_use]
    pub fn tickets(
        mut self,
        make: fn() -> Result<Arc<dyn ProducesTickets>, rustls::Error>,
    ) -> Self {
        self.tickets = Some(make);
        self
    }

    /// Who does the cryptography. Default: the process's default, see [`CryptoProvider::install_default`].
    #[must_use]
    pub fn provider(mut self, provider: impl Into<Arc<CryptoProvider>>) -> Self {
        self.provider = Some(provider.into());
        self
    }

    /// Reads the files, and is ready to read them again. It blocks for as long as that takes.
    ///
    /// # Errors
    ///
    /// What is wrong with them: see [`ConfigFault`].
    pub fn load(mut self) -> Result<Reload, TlsConfigError> {
        let provider = match self.provider.take() {
            Some(provider) => provider,
            None => Arc::clone(
                CryptoProvider::get_default()
                    .ok_or_else(|| TlsConfigError::new(ConfigFault::NoProvider))?,
            ),
        };
        let can_be_named = |protocol: &Vec<u8>| (1..=255).contains(&protocol.len());
        if !self.alpn.iter().all(can_be_named) {
            return Err(TlsConfigError::new(ConfigFault::BadProtocol));
        }
        let contents = self.read(&provider)?;
        let certificates = Certificates::new(contents.certificates);
        let config = self.configure(&provider, &certificates, contents.authorities.as_deref())?;
        Ok(Reload::new(
            self,
            provider,
            certificates,
            TlsConfig::new(config),
            contents.authorities,
        ))
    }

    /// All files, with every certificate checked.
    pub(super) fn read(&self, provider: &CryptoProvider) -> Result<Contents, TlsConfigError> {
        let mut certificates = CertificateSet::new();
        if let Some(pair) = &self.default {
            certificates = certificates
                .default_to(pair.read(provider)?)
                .map_err(|error| error.in_file(&pair.chain))?;
        }
        for (name, pair) in &self.names {
            certificates = certificates
                .name(name, pair.read(provider)?)
                .map_err(|error| error.in_file(&pair.chain))?;
        }
        let authorities = match &self.clients {
            Some(clients) => Some(read(&clients.authorities)?),
            None => None,
        };
        Ok(Contents {
            certificates,
            authorities,
        })
    }

    /// A configuration with sessions of its own.
    pub(super) fn configure(
        &self,
        provider: &Arc<CryptoProvider>,
        certificates: &Certificates,
        authorities: Option<&[u8]>,
    ) -> Result<ServerConfig, TlsConfigError> {
        let no_provider =
            |error: rustls::Error| TlsConfigError::new(ConfigFault::Provider).because(error);
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_safe_default_protocol_versions()
            .map_err(no_provider)?;
        let builder = match (&self.clients, authorities) {
            (Some(clients), Some(authorities)) => {
                let roots = Arc::new(clients.roots(authorities)?);
                let mut verifier =
                    WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
                if !clients.required {
                    verifier = verifier.allow_unauthenticated();
                }
                let verifier = verifier
                    .build()
                    .map_err(|error| clients.fault().because(error))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(certificates.clone()));
        config
            .alpn_protocols
            .clone_from(&self.alpn);
        config.session_storage = ServerSessionMemoryCache::new(self.sessions);
        if let Some(make) = self.tickets {
            config.ticketer = make().map_err(no_provider)?;
        }
        Ok(config)
    }
}

impl fmt::Debug for PemFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemFiles")
            .field("default", &self.default)
            .field("names", &self.names)
            .field("clients", &self.clients)
            .finish_non_exhaustive()
    }
}

impl Pair {
    fn new(chain: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self {
            chain: chain.into(),
            key: key.into(),
        }
    }

    fn read(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsConfigError> {
        let chain = certificates(&read(&self.chain)?, &self.chain)?;
        let key = read(&self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| match error {
            pem::Error::NoItemsFound => TlsConfigError::new(ConfigFault::NoKey).in_file(&self.key),
            error => unreadable(&self.key, error),
        })?;
        let key = provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| {
                TlsConfigError::new(ConfigFault::BadKey)
                    .in_file(&self.key)
                    .because(error)
            })?;
        Ok(CertifiedKey::new(chain, key))
    }
}

impl Clients {
    fn roots(&self, pem: &[u8]) -> Result<RootCertStore, TlsConfigError> {
        let mut roots = RootCertStore::empty();
        for authority in certificates(pem, &self.authorities)? {
            roots
                .add(authority)
                .map_err(|error| self.fault().because(error))?;
        }
        Ok(roots)
    }

    fn fault(&self) -> TlsConfigError {
        TlsConfigError::new(ConfigFault::ClientAuthority).in_file(&self.authorities)
    }
}

/// The certificates in a file, which has at least one.
fn certificates(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable(file, error))?;
    if certificates.is_empty() {
        return Err(TlsConfigError::new(ConfigFault::NoCertificate).in_file(file));
    }
    Ok(certificates)
}

fn read(file: &Path) -> Result<Vec<u8>, TlsConfigError> {
    fs::read(file).map_err(|error| {
        TlsConfigError::new(ConfigFault::Unreadable)
            .in_file(file)
            .because(error)
    })
}

fn unreadable(file: &Path, error: pem::Error) -> TlsConfigError {
    TlsConfigError::new(ConfigFault::Unreadable)
        .in_file(file)
        .because(error)
}

/// Two for each client of TLS 1.3, so those of two thousand: rustls keeps 256.
const SESSIONS: usize = 4096;
