use std::fmt;

use tokio_rustls::rustls::{
    ClientConnection, CommonState, HandshakeKind, ProtocolVersion, ServerConnection,
    pki_types::CertificateDer,
};
use tracing::Span;

use crate::{conn::ConnInfo, middleware::tls::x509};

impl ConnInfo {
    /// What a TLS handshake settled; `None` of a connection that is not encrypted, or not yet.
    #[must_use]
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.facts.get()
    }
}

/// What a TLS handshake settled. See [`ConnInfo::tls`].
#[derive(Debug, Clone)]
pub struct TlsInfo {
    server_name: Option<Box<str>>,
    alpn: Option<Box<[u8]>>,
    version: TlsVersion,
    cipher_suite: &'static str,
    resumed: bool,
    peer_chain: Box<[CertificateDer<'static>]>,
    is_client: bool,
}

impl TlsInfo {
    /// Of a handshake that a client began with us.
    pub(super) fn of(session: &ServerConnection) -> Self {
        Self::settled(session, session.server_name(), false)
    }

    /// Of a handshake that we began, with a server of this name.
    pub(super) fn of_client(session: &ClientConnection, server_name: Option<&str>) -> Self {
        Self::settled(session, server_name, true)
    }

    fn settled(session: &CommonState, server_name: Option<&str>, is_client: bool) -> Self {
        let chain = session
            .peer_certificates()
            .unwrap_or_default();
        let suite = session.negotiated_cipher_suite();
        Self {
            server_name: server_name.map(Box::from),
            alpn: session.alpn_protocol().map(Box::from),
            version: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_2) => TlsVersion::Tls12,
                _ => TlsVersion::Tls13,
            },
            cipher_suite: suite
                .and_then(|suite| suite.suite().as_str())
                .unwrap_or("unknown"),
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
            peer_chain: chain.into(),
            is_client,
        }
    }

    /// The host that the client wanted to reach (SNI), in lower case. On a connection of ours it is what we asked for;
    /// none if that was an address.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// The protocol that was agreed on (ALPN).
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        self.alpn.as_deref()
    }

    /// The version that was agreed on.
    #[must_use]
    pub fn version(&self) -> TlsVersion {
        self.version
    }

    /// The cipher suite, by its name at IANA (in TLS 1.3 with `TLS13_` in front).
    #[must_use]
    pub fn cipher_suite(&self) -> &'static str {
        self.cipher_suite
    }

    /// Whether it took up an earlier session, whose certificates then hold, and no new ones were shown.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// The client's certificates in DER, its own first; none unless it was asked for one and it was accepted.
    #[must_use]
    pub fn client_certificates(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let chain = if self.is_client {
            &[]
        } else {
            &*self.peer_chain
        };
        chain
            .iter()
            .map(|certificate| certificate.as_ref())
    }

    /// The server's certificates in DER, its own first, of a connection that we opened; none of one that was accepted.
    #[must_use]
    pub fn server_certificates(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let chain = if self.is_client {
            &*self.peer_chain
        } else {
            &[]
        };
        chain
            .iter()
            .map(|certificate| certificate.as_ref())
    }

    /// Whom the client's certificate names, as RFC 4514 writes it: `CN=alice,O=Example`.
    ///
    /// For people and logs. What decides on access should rather read the certificate itself with a parser of its
    /// choice: the alternative names are there.
    #[must_use]
    pub fn client_subject(&self) -> Option<String> {
        let own = self.client_certificates().next()?;
        x509::subject(own)
    }

    /// Adds to the connection's span what it has fields for.
    pub(super) fn record(&self, span: &Span) {
        if span.is_disabled() {
            return;
        }
        span.record("tls", self.version.label());
        if let Some(alpn) = &self.alpn {
            span.record("alpn", &*String::from_utf8_lossy(alpn));
        }
        if let Some(name) = &self.server_name {
            span.record("sni", &**name);
        }
    }
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl TlsVersion {
    /// The fixed name in logs: `TLSv1.3`, as OpenSSL has it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Tls12 => "TLSv1.2",
            Self::Tls13 => "TLSv1.3",
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
