//! TLS, accepted in the connection's own future: a slow handshake is nobody else's. Around a connector it is
//! [`TlsConnectLayer`], which the rest of this page is not about.
//!
//! **Where it goes**: below the meter, the limits and the PROXY header, so that a peer is counted before it costs a
//! handshake; above [`DeadlineLayer`](crate::deadline::DeadlineLayer), whose first byte is then the first of plain
//! text.
//!
//! ```no_run
//! use tower::ServiceBuilder;
//! use tower_net::tls::{PemFiles, TlsAcceptLayer};
//!
//! let files = PemFiles::new("cert.pem", "key.pem").alpn(["h2", "http/1.1"]);
//! let reload = files.load()?;
//! let stack = ServiceBuilder::new().layer(TlsAcceptLayer::new(reload.config()));
//!
//! // Later, on a signal: a pair that is bad is refused, and the last good one stays.
//! if let Err(error) = reload.reload() {
//!     eprintln!("kept the old certificates: {error}");
//! }
//! # drop(stack);
//! # Ok::<(), tower_net::tls::TlsConfigError>(())
//! ```
//!
//! | what | bound |
//! |---|---|
//! | handshakes under way | 256, see [`Handshakes`](crate::Handshakes); apart from the connections that are established |
//! | their time | 10 s each, shared with a PROXY header above |
//! | the ClientHello | 16 KiB, refused by the length it announces; until then 2 KiB of it are held |
//! | sessions to resume | 4096, see [`PemFiles::sessions`]; a configuration of your own: 256 |
//! | encrypted and not yet written | 64 KiB a connection, before a write waits |
//! | a goodbye to a peer that was refused | 1 s and 64 KiB |
//!
//! No crypto provider is forced: the [`rustls::ServerConfig`] has one, [`PemFiles`] takes the process's default.
//!
//! # Failures
//!
//! Each handshake that was begun ends with one outcome, see [`HandshakeFailure`], counted in
//! `tower_net_handshakes_total`. Probes (a peer that vanished, was silent, or speaks no TLS) are logged at `DEBUG`,
//! the rest at `INFO`. Who speaks something else on this port, plain HTTP say, is closed in order: what it sent is
//! read first, so that it sees an end and no reset.
//!
//! # Readiness
//!
//! The inner service's; the one that was ready when the connection came is called after the handshake. The first
//! time, it also checks that the runtime can keep time.
//!
//! # Errors
//!
//! [`HandshakeError`], or [`TooManyHandshakes`](crate::TooManyHandshakes) of a connection that was reset at once; of
//! a runtime without a time driver [`NoTimer`](crate::error::NoTimer).
//!
//! # On drop
//!
//! Dropping the future in a handshake closes the stream and frees its place. A [`TlsIo`] that is dropped closes the
//! stream below it without a `close_notify`: shut it down, or [`linger`](crate::io::linger), for an end in order.

/// An enum whose every variant has a fixed name for metrics and logs.
macro_rules! labelled {
    ($(#[$docs:meta])* $enum:ident { $( $(#[$doc:meta])* $name:ident = $label:literal, )* }) => {
        $(#[$docs])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $enum {
            $( $(#[$doc])* $name, )*
        }

        impl $enum {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The fixed name in metrics and logs.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $( Self::$name => $label, )*
                }
            }
        }

        impl std::fmt::Display for $enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.label())
            }
        }
    };
}

mod accept;
mod certificates;
mod config;
mod connect;
mod failure;
mod handshake;
mod info;
mod metrics;
mod pem;
mod reload;
mod stream;
mod x509;

pub use tokio_rustls::rustls;

pub use self::{
    accept::{TlsAccept, TlsAcceptFuture, TlsAcceptLayer},
    certificates::{CertificateSet, Certificates},
    config::{ConfigFault, TlsConfig, TlsConfigError},
    connect::{TlsConnect, TlsConnectFuture, TlsConnectLayer},
    failure::{HandshakeError, HandshakeFailure},
    handshake::{ServerNameError, TlsConnectError},
    info::{TlsInfo, TlsVersion},
    pem::PemFiles,
    reload::Reload,
    stream::{TlsClientIo, TlsIo},
};
pub use crate::base::client_hello::HelloError;
