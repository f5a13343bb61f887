//! A handshake that we begin.

use std::{error::Error, fmt, io, pin::pin, sync::Arc, time::Duration};

use tokio::time::timeout_at;
use tokio_rustls::{
    TlsConnector, client,
    rustls::{self, ClientConfig, InvalidMessage, pki_types::ServerName},
};

use crate::{
    base::{error::find, io::Io},
    conn::{Conn, Deadline, Spent, spent::Allowance},
    middleware::tls::{
        HandshakeFailure, TlsClientIo, TlsInfo,
        failure::class_of,
        metrics::{Attempt, Metrics},
    },
};

/// What a handshake needs besides its connection.
pub(super) struct Handshake {
    pub(super) config: Arc<ClientConfig>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) within: Duration,
    pub(super) caller: Deadline,
    pub(super) name: ServerName<'static>,
}

impl Handshake {
    pub(super) async fn shake<I: Io>(
        self,
        conn: Conn<I>,
    ) -> Result<Conn<TlsClientIo<I>>, TlsConnectError> {
        let allowed = Allowance::begin(self.within, self.caller);
        let attempt = Attempt::begin(&self.metrics);
        let (io, info) = conn.into_parts();
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let shaking = connector.connect(self.name.clone(), io);
        // It holds the stream, which must not be closed before it is known why.
        let mut shaking = pin!(shaking.into_fallible());
        let shaken = match allowed.instant() {
            None => Ok(shaking.await),
            Some(by) => timeout_at(by, &mut shaking).await,
        };
        let (error, io) = match shaken {
            Ok(Ok(tls)) => {
                let known = self.settled(&tls);
                attempt.succeeded(known.is_resumed());
                info.facts.add(known);
                return Ok(Conn::from_parts(TlsClientIo::new(tls), info));
            }
            Ok(Err((error, io))) => (self.failed(error), Some(io)),
            Err(_) => (self.late(allowed.spent()), None),
        };
        attempt.failed(error.failure);
        info.end_with(error.failure.reason());
        drop(io);
        Err(error)
    }

    fn settled<I>(&self, tls: &client::TlsStream<I>) -> TlsInfo {
        let asked = match &self.name {
            ServerName::DnsName(name) => Some(name.as_ref()),
            _ => None,
        };
        TlsInfo::of_client(tls.get_ref().1, asked)
    }

    fn failed(&self, error: io::Error) -> TlsConnectError {
        TlsConnectError {
            name: self.name.to_str().into(),
            failure: class_of_answer(&error),
            spent: None,
            source: Some(error),
        }
    }

    fn late(&self, spent: Spent) -> TlsConnectError {
        TlsConnectError {
            name: self.name.to_str().into(),
            failure: HandshakeFailure::Late,
            spent: Some(spent),
            source: None,
        }
    }
}

/// Which kind of failure an answer is: what is no record at all comes from who speaks no TLS.
fn class_of_answer(error: &io::Error) -> HandshakeFailure {
    match find::<rustls::Error>(error) {
        Some(rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        )) => HandshakeFailure::NotTls,
        _ => class_of(error),
    }
}

/// A handshake with a server came to nothing. What the stream or rustls says of it is its source.
#[derive(Debug)]
pub struct TlsConnectError {
    name: Box<str>,
    failure: HandshakeFailure,
    spent: Option<Spent>,
    source: Option<io::Error>,
}

impl TlsConnectError {
    /// The name or address that the server was expected to have a certificate for.
    #[must_use]
    pub fn server_name(&self) -> &str {
        &self.name
    }

    /// Why.
    #[must_use]
    pub fn failure(&self) -> HandshakeFailure {
        self.failure
    }

    /// Whose time ran out, if that was it: the layer's limit, or the caller's.
    #[must_use]
    pub fn spent(&self) -> Option<Spent> {
        self.spent
    }

    /// Whether it is certain that nothing of a request has been sent, so that it may be tried again: always.
    #[must_use]
    pub fn is_never_sent(&self) -> bool {
        true
    }
}

impl fmt::Display for TlsConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS handshake with `{}` failed: ", self.name)?;
        match self.spent {
            Some(spent) => write!(f, "not done {spent}"),
            None => f.write_str(self.failure.in_words()),
        }
    }
}

impl Error for TlsConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_ref()
            .map(|error| error as _)
    }
}

impl From<TlsConnectError> for io::Error {
    fn from(error: TlsConnectError) -> Self {
        let kind = match error.failure {
            HandshakeFailure::Vanished => io::ErrorKind::UnexpectedEof,
            HandshakeFailure::Late => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// A host cannot be the name of a TLS server. Nothing was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerNameError {
    name: Box<str>,
}

impl ServerNameError {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into() }
    }

    /// The host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for ServerNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` cannot be the name of a TLS server", self.name)
    }
}

impl Error for ServerNameError {}
