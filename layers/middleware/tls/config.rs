use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use tokio_rustls::rustls::ServerConfig;

use crate::base::error::BoxError;

/// The configuration that new handshakes begin with, to be swapped while the server runs; clones share it.
///
/// A swap drops no connection: those that are established keep what they began with, and so does a handshake
/// under way.
#[derive(Clone)]
pub struct TlsConfig {
    current: Arc<RwLock<Arc<ServerConfig>>>,
}

impl TlsConfig {
    /// Begins with this one.
    #[must_use]
    pub fn new(config: impl Into<Arc<ServerConfig>>) -> Self {
        Self {
            current: Arc::new(RwLock::new(config.into())),
        }
    }

    /// What a handshake that begins now gets.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        let current = self.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes another configuration, just as it is. Sessions of clients are not resumed, unless the two share their
    /// store or ticketer.
    pub fn swap(&self, config: impl Into<Arc<ServerConfig>>) {
        let config = config.into();
        let current = self.current.write();
        *current.unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// As [`swap`](Self::swap), with the present store of sessions and ticketer, so that clients can go on resuming.
    ///
    /// Only for a configuration that asks for the same client certificates: a session that is resumed counts as
    /// checked by whoever it began with, and rustls does not check again.
    pub fn swap_keeping_sessions(&self, mut config: ServerConfig) {
        let current = self.current();
        config.session_storage = Arc::clone(&current.session_storage);
        config.ticketer = Arc::clone(&current.ticketer);
        self.swap(config);
    }
}

impl From<Arc<ServerConfig>> for TlsConfig {
    fn from(config: Arc<ServerConfig>) -> Self {
        Self::new(config)
    }
}

impl From<ServerConfig> for TlsConfig {
    fn from(config: ServerConfig) -> Self {
        Self::new(config)
    }
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .finish_non_exhaustive()
    }
}

labelled! {
    /// What is wrong with a certificate, its key, or what else a configuration is made of.
    ConfigFault {
        /// The private key cannot be used: of a kind that the crypto provider does not know, or broken.
        BadKey = "bad_key",
        /// The name is neither a host name nor `*.` and one.
        BadName = "bad_name",
        /// A protocol has a name that ALPN cannot say: empty, or longer than 255 bytes.
        BadProtocol = "bad_protocol",
        /// The certificate is broken.
        BadCertificate = "bad_certificate",
        /// The certificates that clients' are to be checked with cannot be used.
        ClientAuthority = "client_authority",
        /// The certificate has expired.
        Expired = "expired",
        /// The key is not that of the certificate.
        KeyMismatch = "key_mismatch",
        /// There is no certificate in the file.
        NoCertificate = "no_certificate",
        /// There is no private key in the file.
        NoKey = "no_key",
        /// The process has no default crypto provider, and none was given.
        NoProvider = "no_provider",
        /// The certificate is not valid yet.
        NotYetValid = "not_yet_valid",
        /// The crypto provider cannot do what is asked of it.
        Provider = "provider",
        /// The file cannot be read, or is not PEM.
        Unreadable = "unreadable",
        /// The certificate is not for the name that it is to be used for.
        WrongName = "wrong_name",
    }
}

/// A configuration cannot be made, and which file or name is to blame.
#[derive(Debug)]
pub struct TlsConfigError {
    fault: ConfigFault,
    file: Option<PathBuf>,
    name: Option<String>,
    source: Option<BoxError>,
}

impl TlsConfigError {
    pub(super) fn new(fault: ConfigFault) -> Self {
        Self {
            fault,
            file: None,
            name: None,
            source: None,
        }
    }

    pub(super) fn in_file(mut self, file: &Path) -> Self {
        self.file
            .get_or_insert_with(|| file.into());
        self
    }

    pub(super) fn for_name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    pub(super) fn because(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What is wrong.
    #[must_use]
    pub fn fault(&self) -> ConfigFault {
        self.fault
    }

    /// The file it is in.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

impl fmt::Display for TlsConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.fault {
            ConfigFault::BadKey => "private key cannot be used",
            ConfigFault::BadName => "no host name",
            ConfigFault::BadProtocol => "protocol with a name that is not of 1 to 255 bytes",
            ConfigFault::BadCertificate => "certificate is broken",
            ConfigFault::ClientAuthority => "certificates of client authorities cannot be used",
            ConfigFault::Expired => "certificate has expired",
            ConfigFault::KeyMismatch => "private key is not that of the certificate",
            ConfigFault::NoCertificate => "no certificate",
            ConfigFault::NoKey => "no private key",
            ConfigFault::NoProvider => {
                "no crypto provider was given, and the process has no default"
            }
            ConfigFault::NotYetValid => "certificate is not valid yet",
            ConfigFault::Provider => "crypto provider cannot do what is asked of it",
            ConfigFault::Unreadable => "cannot be read",
            ConfigFault::WrongName => "certificate is not for this name",
        })?;
        if let Some(name) = &self.name {
            write!(f, ", for `{name}`")?;
        }
        match &self.file {
            Some(file) => write!(f, ", in {}", file.display()),
            None => Ok(()),
        }
    }
}

impl Error for TlsConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|error| error as _)
    }
}

impl From<TlsConfigError> for io::Error {
    fn from(error: TlsConfigError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}
