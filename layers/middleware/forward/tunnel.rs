//! What is known of a tunnel, while it runs and after it has ended.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::conn::{Addr, ConnInfo};

/// The two ends of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Side {
    /// Whose connection was accepted.
    Client,
    /// To whom we have connected.
    Upstream,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Client, Self::Upstream];

    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }

    /// The fixed name in logs and errors.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// What is known of a tunnel: figures that are live while it runs, and its report once it has ended. Clones share them.
///
/// Whoever has the [`ConnInfo`] of the client has it by [`ConnInfo::tunnel`], from the moment that the upstream is
/// connected: a layer above [`Forward`](super::Forward), or whoever keeps the info for a list of connections.
#[derive(Debug, Clone)]
pub struct Tunnel {
    facts: Arc<Facts>,
}

#[derive(Debug)]
struct Facts {
    upstream: Addr,
    connected_in: Duration,
    to_upstream: AtomicU64,
    to_client: AtomicU64,
    spliced: AtomicU64,
    ended_first: AtomicU8,
}

impl Tunnel {
    pub(super) fn new(upstream: Addr, connected_in: Duration) -> Self {
        Self {
            facts: Arc::new(Facts {
                upstream,
                connected_in,
                to_upstream: AtomicU64::new(0),
                to_client: AtomicU64::new(0),
                spliced: AtomicU64::new(0),
                ended_first: AtomicU8::new(NOBODY),
            }),
        }
    }

    /// The address that was connected to.
    #[must_use]
    pub fn upstream(&self) -> &Addr {
        &self.facts.upstream
    }

    /// How long the upstream took to be connected, from the call of the connector on. What came before, as the client's
    /// TLS handshake, is no part of it.
    #[must_use]
    pub fn connected_in(&self) -> Duration {
        self.facts.connected_in
    }

    /// Bytes of the client that the upstream's stream has taken so far.
    #[must_use]
    pub fn to_upstream(&self) -> u64 {
        self.facts.to_upstream.load(Relaxed)
    }

    /// Bytes of the upstream that the client's stream has taken so far.
    #[must_use]
    pub fn to_client(&self) -> u64 {
        self.facts.to_client.load(Relaxed)
    }

    /// Of both, the bytes that went from socket to socket without having come up into the process.
    #[must_use]
    pub fn spliced(&self) -> u64 {
        self.facts.spliced.load(Relaxed)
    }

    /// Who was the first to end its side, in order or by breaking; `None` while both are open, and if both were when
    /// the tunnel was closed from here.
    #[must_use]
    pub fn ended_first(&self) -> Option<Side> {
        match self.facts.ended_first.load(Relaxed) {
            NOBODY => None,
            CLIENT => Some(Side::Client),
            _ => Some(Side::Upstream),
        }
    }

    // One task owns the tunnel, so that stores are enough.

    pub(super) fn moved(&self, to_upstream: u64, to_client: u64, spliced: u64) {
        self.facts
            .to_upstream
            .store(to_upstream, Relaxed);
        self.facts
            .to_client
            .store(to_client, Relaxed);
        self.facts
            .spliced
            .store(spliced, Relaxed);
    }

    pub(super) fn ends(&self, side: Side) {
        if self.ended_first().is_none() {
            let side = match side {
                Side::Client => CLIENT,
                Side::Upstream => UPSTREAM,
            };
            self.facts
                .ended_first
                .store(side, Relaxed);
        }
    }
}

impl ConnInfo {
    /// The tunnel that the connection goes through, once its upstream is connected.
    #[must_use]
    pub fn tunnel(&self) -> Option<&Tunnel> {
        self.facts.get()
    }
}

const NOBODY: u8 = 0;
const CLIENT: u8 = 1;
const UPSTREAM: u8 = 2;
