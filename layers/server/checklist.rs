use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use crate::{
    conn::{CloseReason, ConnInfo, Safeguard, safeguard::Safeguards},
    server::{live::Live, serve::ServerHandle},
};

/// Which guards of the production checklist a server has, found out from what its connections really passed.
///
/// Connections of one server may go through different stacks; a guard counts as soon as one of them has passed
/// it. Before the first connection only what the server itself does is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checklist {
    present: Vec<Safeguard>,
}

impl Checklist {
    /// Whether the server has this guard.
    #[must_use]
    pub fn has(&self, safeguard: Safeguard) -> bool {
        self.present.contains(&safeguard)
    }

    /// What it lacks.
    pub fn missing(&self) -> impl Iterator<Item = Safeguard> {
        let all = Safeguard::ALL.iter().copied();
        all.filter(|safeguard| !self.has(*safeguard))
    }

    /// Whether it lacks nothing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing().next().is_none()
    }
}

/// One line for each guard: `ok` or `missing`, and its name.
impl fmt::Display for Checklist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for safeguard in Safeguard::ALL {
            let state = if self.has(*safeguard) {
                "ok"
            } else {
                "missing"
            };
            writeln!(f, "{state:<8}{safeguard}")?;
        }
        Ok(())
    }
}

impl ServerHandle {
    /// Which production guards the server has, by what its connections have passed so far.
    ///
    /// Looks at every open connection, so not for a hot path.
    #[must_use]
    pub fn checklist(&self) -> Checklist {
        self.live.checklist()
    }
}

/// What the connections of a server have passed.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    by_any: Safeguards,
    said: AtomicBool,
}

impl Passed {
    /// The server itself sees to this one.
    pub(crate) fn mark(&self, safeguard: Safeguard) {
        self.by_any.mark(safeguard);
    }

    /// A connection ends. After the first that was served the log says what is missing, once. One that got no
    /// further than a limit, a header or a handshake, as health checks and probes, says nothing of what is behind.
    pub(crate) fn end(&self, info: &ConnInfo, reason: CloseReason) {
        self.by_any.merge(&info.passed);
        let served = !reason.is_refusal() && !info.passed.is_cut_short();
        if !served || self.said.load(Relaxed) || self.said.swap(true, Relaxed) {
            return;
        }
        let missing: Vec<_> = self
            .list()
            .missing()
            .map(Safeguard::label)
            .collect();
        if missing.is_empty() {
            tracing::info!("every production guard is in place");
        } else {
            tracing::info!(missing = missing.join(" "), "production guards are missing");
        }
    }

    fn list(&self) -> Checklist {
        let all = Safeguard::ALL.iter().copied();
        Checklist {
            present: all
                .filter(|safeguard| self.by_any.has(*safeguard))
                .collect(),
        }
    }
}

impl Live {
    fn checklist(&self) -> Checklist {
        for info in self.open_connections() {
            self.passed.by_any.merge(&info.passed);
        }
        self.passed.list()
    }
}
