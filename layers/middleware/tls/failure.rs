use std::{error::Error, fmt, io};

use tokio_rustls::rustls::{self, AlertDescription, PeerIncompatible};

use crate::{
    base::error::{BoxError, find, is_disconnect},
    conn::{CloseReason, handshakes::Unfinished},
};

labelled! {
    /// Why a handshake came to nothing.
    HandshakeFailure {
        /// It made room for another when too many were under way.
        Evicted = "evicted",
        /// It was begun and not done in time.
        Late = "late",
        /// The connection was told to leave before its peer had said anything.
        Left = "left",
        /// The peer broke the protocol.
        Malformed = "malformed",
        /// The peer speaks none of our protocols (ALPN).
        NoCommonAlpn = "no_common_alpn",
        /// The peer knows none of our cipher suites, key exchanges or signatures.
        NoCommonCipher = "no_common_cipher",
        /// The peer speaks no version of TLS that we do.
        NoCommonVersion = "no_common_version",
        /// It does not begin as TLS does: plain HTTP, say.
        NotTls = "not_tls",
        /// The peer did not say a byte in time.
        Silent = "silent",
        /// The ClientHello is longer than it may be.
        TooLong = "too_long",
        /// We do not accept the peer's certificate, or it has none and must have one.
        TheirCertificate = "their_certificate",
        /// The client asked for a name that the server has no certificate for, or for none, and there is no default.
        UnknownName = "unknown_name",
        /// The peer does not accept our certificate, and said so.
        OurCertificate = "our_certificate",
        /// The peer went away.
        Vanished = "vanished",
        /// Something else.
        Other = "other",
    }
}

impl HandshakeFailure {
    /// Whether it is what scanners and health checks do all day.
    #[must_use]
    pub fn is_a_probe(self) -> bool {
        matches!(
            self,
            Self::Left | Self::NotTls | Self::Silent | Self::Vanished
        )
    }

    /// Whether the peer is still there and should hear of it.
    pub(super) fn has_a_listener(self) -> bool {
        !matches!(
            self,
            Self::Evicted | Self::Late | Self::Left | Self::Silent | Self::Vanished
        )
    }

    /// In an error's text.
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Evicted => "it made room for another",
            Self::Late => "not done in time",
            Self::Left => "told to leave before it began",
            Self::Malformed => "the peer broke the protocol",
            Self::NoCommonAlpn => "no protocol in common",
            Self::NoCommonCipher => "no cipher suite in common",
            Self::NoCommonVersion => "no version in common",
            Self::NotTls => "the peer speaks no TLS",
            Self::Silent => "the peer was silent",
            Self::TooLong => "the ClientHello is too long",
            Self::TheirCertificate => "the peer's certificate is not accepted",
            Self::UnknownName => "there is no certificate for the name that was asked for",
            Self::OurCertificate => "the peer does not accept our certificate",
            Self::Vanished => "the peer went away",
            Self::Other => "something is wrong",
        }
    }

    /// What the connection ends with.
    pub(super) fn reason(self) -> CloseReason {
        match self {
            Self::Evicted => CloseReason::HandshakeLimit,
            Self::Late => CloseReason::Handshake,
            Self::Silent => CloseReason::FirstByte,
            Self::Left => CloseReason::Drain,
            _ => CloseReason::HandshakeFailed,
        }
    }
}

/// A TLS handshake came to nothing. The cause is its source: of what was not done in time an
/// [`Elapsed`](crate::deadline::Elapsed).
#[derive(Debug)]
pub struct HandshakeError {
    failure: HandshakeFailure,
    source: Option<BoxError>,
}

impl HandshakeError {
    /// Why.
    #[must_use]
    pub fn failure(&self) -> HandshakeFailure {
        self.failure
    }

    /// What is behind it, for a log line.
    pub(super) fn cause(&self) -> Option<&(dyn Error + 'static)> {
        self.source()
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TLS handshake failed: {}", self.failure.in_words())
    }
}

impl Error for HandshakeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|error| error as _)
    }
}

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> Self {
        let kind = match error.failure {
            HandshakeFailure::Vanished => io::ErrorKind::UnexpectedEof,
            HandshakeFailure::Late | HandshakeFailure::Silent => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// A handshake that failed, and what is left of its connection.
pub(super) struct Failed<I> {
    pub(super) error: HandshakeError,
    pub(super) reason: CloseReason,
    /// The stream, if the handshake had it.
    pub(super) io: Option<I>,
    /// What is still to be said to the peer.
    pub(super) alert: Vec<u8>,
}

impl<I> Failed<I> {
    pub(super) fn new(failure: HandshakeFailure, source: impl Into<BoxError>) -> Self {
        let mut failed = Self::from(failure);
        failed.error.source = Some(source.into());
        failed
    }

    pub(super) fn with_io(mut self, io: I) -> Self {
        self.io = Some(io);
        self
    }

    /// Ended from outside.
    pub(super) fn unfinished(unfinished: Unfinished) -> Self {
        let reason = unfinished.reason();
        let (failure, source) = match unfinished {
            Unfinished::Evicted => (HandshakeFailure::Evicted, None),
            Unfinished::Left(_) => (HandshakeFailure::Left, None),
            Unfinished::Elapsed(elapsed) if reason == CloseReason::FirstByte => {
                (HandshakeFailure::Silent, Some(elapsed.into()))
            }
            Unfinished::Elapsed(elapsed) => (HandshakeFailure::Late, Some(elapsed.into())),
        };
        let mut failed = Self::from(failure);
        failed.error.source = source;
        failed.reason = reason;
        failed
    }
}

impl<I> From<HandshakeFailure> for Failed<I> {
    fn from(failure: HandshakeFailure) -> Self {
        Self {
            error: HandshakeError {
                failure,
                source: None,
            },
            reason: failure.reason(),
            io: None,
            alert: Vec::new(),
        }
    }
}

/// Which kind of failure an error of the stream, or of rustls inside it, is.
pub(super) fn class_of(error: &io::Error) -> HandshakeFailure {
    match find::<rustls::Error>(error) {
        Some(error) => class_of_tls(error),
        None if is_disconnect(error) => HandshakeFailure::Vanished,
        None => HandshakeFailure::Other,
    }
}

fn class_of_tls(error: &rustls::Error) -> HandshakeFailure {
    use rustls::Error as E;
    match error {
        E::InappropriateMessage { .. }
        | E::InappropriateHandshakeMessage { .. }
        | E::InvalidMessage(_)
        | E::PeerMisbehaved(_)
        | E::DecryptError
        | E::PeerSentOversizedRecord => HandshakeFailure::Malformed,
        E::NoCertificatesPresented
        | E::InvalidCertificate(_)
        | E::InvalidCertRevocationList(_)
        | E::UnsupportedNameType => HandshakeFailure::TheirCertificate,
        E::NoApplicationProtocol => HandshakeFailure::NoCommonAlpn,
        E::PeerIncompatible(what) => class_of_incompatible(what),
        E::AlertReceived(alert) => class_of_alert(*alert),
        // The only word that rustls has for it.
        E::General(text) if text == NO_CERTIFICATE => HandshakeFailure::UnknownName,
        _ => HandshakeFailure::Other,
    }
}

fn class_of_incompatible(what: &PeerIncompatible) -> HandshakeFailure {
    match what {
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::SupportedVersionsExtensionRequired
        // What rustls misses first in a hello of TLS 1.1.
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
            HandshakeFailure::NoCommonVersion
        }
        _ => HandshakeFailure::NoCommonCipher,
    }
}

/// What the other end says as it gives up (RFC 8446, section 6.2).
fn class_of_alert(alert: AlertDescription) -> HandshakeFailure {
    use AlertDescription as A;
    match alert {
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::BadCertificateStatusResponse
        | A::BadCertificateHashValue
        | A::CertificateRequired => HandshakeFailure::OurCertificate,
        A::UnrecognisedName => HandshakeFailure::UnknownName,
        A::CloseNotify | A::UserCanceled => HandshakeFailure::Vanished,
        A::ProtocolVersion => HandshakeFailure::NoCommonVersion,
        A::HandshakeFailure | A::InsufficientSecurity => HandshakeFailure::NoCommonCipher,
        A::NoApplicationProtocol => HandshakeFailure::NoCommonAlpn,
        _ => HandshakeFailure::Other,
    }
}

/// What rustls says when a resolver has no certificate; a test of ours fails when that changes.
const NO_CERTIFICATE: &str = "no server certificate chain resolved";
