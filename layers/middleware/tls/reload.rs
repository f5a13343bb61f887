use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use metrics::{Counter, counter};
use tokio_rustls::rustls::crypto::CryptoProvider;

use crate::middleware::tls::{Certificates, ConfigFault, PemFiles, TlsConfig, TlsConfigError};

/// Reads [`PemFiles`] again, on a signal say, and puts what they have into use; clones share it.
///
/// All files are read and checked before anything is put into use: if one is bad (it cannot be read, a key is not that of
/// its certificate, a certificate has expired or is for another name), everything stays as it is. That also covers a
/// pair of which one half is written and the other not yet: reload again once both are.
#[derive(Clone)]
pub struct Reload {
    shared: Arc<Shared>,
}

struct Shared {
    files: PemFiles,
    provider: Arc<CryptoProvider>,
    certificates: Certificates,
    config: TlsConfig,
    /// The clients' authorities in use. Held during a reload, so that two never mix.
    authorities: Mutex<Option<Vec<u8>>>,
    done: Counter,
    refused: [Counter; FAULTS],
}

impl Reload {
    pub(super) fn new(
        files: PemFiles,
        provider: Arc<CryptoProvider>,
        certificates: Certificates,
        config: TlsConfig,
        authorities: Option<Vec<u8>>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                files,
                provider,
                certificates,
                config,
                authorities: Mutex::new(authorities),
                done: outcome("ok"),
                refused: std::array::from_fn(|at| outcome(ConfigFault::ALL[at].label())),
            }),
        }
    }

    /// What is in use, for [`TlsAcceptLayer`](crate::tls::TlsAcceptLayer).
    #[must_use]
    pub fn config(&self) -> TlsConfig {
        self.shared.config.clone()
    }

    /// Reads the files and puts them into use, for handshakes that begin from then on. No connection is dropped.
    ///
    /// Clients can go on resuming their sessions, unless the file of their authorities has changed: then sessions
    /// start anew, as one that began under an authority that is gone would otherwise get round it.
    ///
    /// It blocks for as long as reading some small files takes.
    ///
    /// # Errors
    ///
    /// What is wrong with the files. What was in use stays in use.
    pub fn reload(&self) -> Result<(), TlsConfigError> {
        let reloaded = self.shared.reload();
        match &reloaded {
            Ok(()) => self.shared.done.increment(1),
            Err(error) => self.shared.refused[error.fault() as usize].increment(1),
        }
        reloaded
    }
}

impl Shared {
    fn reload(&self) -> Result<(), TlsConfigError> {
        let authorities = self.authorities.lock();
        let mut authorities = authorities.unwrap_or_else(PoisonError::into_inner);
        let contents = self.files.read(&self.provider)?;
        if contents.authorities == *authorities {
            self.certificates
                .swap(contents.certificates);
            return Ok(());
        }
        let config = self.files.configure(
            &self.provider,
            &self.certificates,
            contents.authorities.as_deref(),
        )?;
        self.certificates
            .swap(contents.certificates);
        self.config.swap(config);
        *authorities = contents.authorities;
        Ok(())
    }
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload")
            .field("files", &self.shared.files)
            .finish_non_exhaustive()
    }
}

fn outcome(outcome: &'static str) -> Counter {
    counter!("tower_net_tls_reloads_total", "outcome" => outcome)
}

const FAULTS: usize = ConfigFault::ALL.len();
