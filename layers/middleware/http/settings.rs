use std::{fmt, time::Duration};

use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::{
    base::{error::ConfigError, time::FOREVER},
    conn::{Ambient, Safeguard},
};

/// How an [`HttpLayer`](crate::http::HttpLayer) treats requests; each setter says what it bounds.
#[derive(Clone)]
pub struct Http {
    pub(super) head: Duration,
    pub(super) handler: Duration,
    pub(super) http1: http1::Builder,
    pub(super) http2: http2::Builder<TokioExecutor>,
    pub(super) service: String,
    pub(super) dry_run: bool,
}

impl Default for Http {
    fn default() -> Self {
        let mut http1 = http1::Builder::new();
        // Hyper's own limit for heads begins with the silence before them: it would be an idle timeout as well.
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(None);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2.timer(TokioTimer::new());
        Self {
            head: HEAD,
            handler: HANDLER,
            http1,
            http2,
            service: String::new(),
            dry_run: false,
        }
    }
}

impl Http {
    /// A request's head must be complete this long after its first byte, however slowly it drips; of HTTP/2 also each
    /// frame but the data of a body, and at the beginning the preface and SETTINGS. Begins when the connection first waits
    /// for the rest of it; nothing resets it. Default: 10 s.
    #[must_use]
    pub fn head_deadline(mut self, limit: Duration) -> Self {
        self.head = limit;
        self
    }

    /// A handler must begin its response this long after the head of its request was here, or is answered for with
    /// `503 Service Unavailable`. It bounds how long a body may take that the handler wants whole; the body of a
    /// response has no limit but those of [`deadline`](crate::deadline). Begins when the handler first waits; the
    /// handler itself can [extend](crate::ConnInfo::extend) it. Default: 30 s.
    #[must_use]
    pub fn handler_deadline(mut self, limit: Duration) -> Self {
        self.handler = limit;
        self
    }

    /// Sets what hyper itself has to set for HTTP/1: sizes of heads and buffers, and how headers are written.
    ///
    /// Its timer is set already, and its `header_read_timeout` off: see [`head_deadline`](Self::head_deadline).
    #[must_use]
    pub fn http1(mut self, set: impl FnOnce(&mut http1::Builder)) -> Self {
        set(&mut self.http1);
        self
    }

    /// Sets what hyper itself has to set for HTTP/2: streams at once (200 by default), windows, pings.
    #[must_use]
    pub fn http2(mut self, set: impl FnOnce(&mut http2::Builder<TokioExecutor>)) -> Self {
        set(&mut self.http2);
        self
    }

    /// The `service` label of the metrics. Default: empty.
    #[must_use]
    pub fn service(mut self, name: impl Into<String>) -> Self {
        self.service = name.into();
        self
    }

    /// Only counts heads and handlers that are late, once each and as `request` and `handler`, in
    /// `tower_net_dry_run_total`; a handler then sees no [`Deadline`](crate::Deadline) of ours. Default: off.
    ///
    /// What bounds memory stays as it is, and is hyper's: the sizes of heads and buffers, and streams at once.
    #[must_use]
    pub fn dry_run(mut self, on: bool) -> Self {
        self.dry_run = on;
        self
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (setting, limit) in [
            ("head_deadline", self.head),
            ("handler_deadline", self.handler),
        ] {
            if limit.is_zero() {
                return Err(ConfigError::zero(setting));
            }
        }
        Ok(())
    }

    /// When a handler that is called now is due.
    pub(super) fn handler_due(&self) -> Ambient {
        if self.dry_run {
            Ambient::Spared(self.handler)
        } else {
            Ambient::Fresh(self.handler)
        }
    }

    /// How often to ask whether the deadline of a handler, which is stopped, runs again.
    pub(super) fn handler_tick(&self) -> Duration {
        (self.handler / 16).max(Duration::from_millis(1))
    }

    /// What it keeps a connection from, for the checklist.
    pub(super) fn safeguards(&self) -> impl Iterator<Item = Safeguard> {
        // In a dry run they keep nobody from anything.
        let timed = |limit| if self.dry_run { FOREVER } else { limit };
        [
            // Hyper's, which cannot be turned off.
            (Duration::ZERO, Safeguard::FrameCap),
            (timed(self.head), Safeguard::Request),
            (timed(self.handler), Safeguard::Handler),
        ]
        .into_iter()
        .filter(|(limit, _)| *limit < FOREVER)
        .map(|(_, safeguard)| safeguard)
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("head", &self.head)
            .field("handler", &self.handler)
            .field("service", &self.service)
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}

/// Heads are some kilobytes: a third of what a whole request may take elsewhere.
const HEAD: Duration = Duration::from_secs(10);

/// What callers commonly wait before they give up themselves.
const HANDLER: Duration = Duration::from_secs(30);
