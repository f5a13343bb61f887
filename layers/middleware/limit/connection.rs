use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tokio_util::sync::PollSemaphore;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError, NoTimer},
        io::{GuardedIo, Io},
        time::KeepsTime,
    },
    conn::{Admission, CloseReason, Conn, Safeguard, refusals::Refusals},
};

/// What becomes of the connection that is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OverLimit {
    /// It is accepted and reset at once: the peer knows, nothing is left in TIME_WAIT.
    #[default]
    Reset,
    /// It stays in the kernel's backlog until there is a place; when the backlog is full, the kernel stops
    /// answering new ones.
    Wait,
    /// As `Wait`, but once nothing has been accepted for so long, the surplus is reset until there is a
    /// place again.
    WaitUpTo(Duration),
}

/// Limits how many connections are open. See the [module](crate::limit).
#[derive(Debug, Clone)]
pub struct ConnectionLimitLayer {
    shared: Arc<Shared>,
    over: OverLimit,
    refusals: Refusals,
}

#[derive(Debug)]
struct Shared {
    limit: usize,
    places: Arc<Semaphore>,
    keeps_time: KeepsTime,
    /// [`OverLimit::WaitUpTo`] is over, until there is a place again.
    patience_gone: AtomicBool,
}

impl ConnectionLimitLayer {
    /// At most `limit` connections; [`usize::MAX`] is no limit.
    ///
    /// Layers cloned from this one share the limit.
    ///
    /// # Errors
    ///
    /// A limit of zero, which would let nobody in.
    pub fn new(limit: usize) -> Result<Self, ConfigError> {
        if limit == 0 {
            return Err(ConfigError::zero("limit"));
        }
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Ok(Self {
            shared: Arc::new(Shared {
                limit,
                places: Arc::new(Semaphore::new(limit)),
                keeps_time: KeepsTime::default(),
                patience_gone: AtomicBool::new(false),
            }),
            over: OverLimit::default(),
            refusals: Refusals::new(CloseReason::Limit),
        })
    }

    /// What to do with the surplus. Default: [`OverLimit::Reset`].
    #[must_use]
    pub fn over_limit(mut self, over: OverLimit) -> Self {
        self.over = over;
        self
    }

    /// Only counts those that it would have reset or left waiting, and serves them without a place. Default: off.
    ///
    /// So the number of connections is not bounded; places in use are those that there would have been.
    #[must_use]
    pub fn dry_run(mut self, on: bool) -> Self {
        self.refusals.dry_run(on);
        self
    }

    /// A view of the places.
    #[must_use]
    pub fn handle(&self) -> ConnectionLimitHandle {
        ConnectionLimitHandle {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<S> Layer<S> for ConnectionLimitLayer {
    type Service = ConnectionLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ConnectionLimit {
            inner,
            shared: Arc::clone(&self.shared),
            over: self.over,
            refusals: self.refusals.clone(),
            places: PollSemaphore::new(Arc::clone(&self.shared.places)),
            place: None,
            patience: None,
        }
    }
}

/// The service of [`ConnectionLimitLayer`].
#[derive(Debug)]
pub struct ConnectionLimit<S> {
    inner: S,
    shared: Arc<Shared>,
    over: OverLimit,
    refusals: Refusals,
    places: PollSemaphore,
    place: Option<OwnedSemaphorePermit>,
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S> ConnectionLimit<S> {
    fn poll_place(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), NoTimer>> {
        let may_wait = self.over != OverLimit::Reset && !self.refusals.is_dry_run();
        if self.place.is_some() || !may_wait {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(place) = self.places.poll_acquire(cx) {
            self.place = place;
            self.patience = None;
            if let OverLimit::WaitUpTo(_) = self.over {
                self.shared
                    .patience_gone
                    .store(false, Relaxed);
            }
            return Poll::Ready(Ok(()));
        }
        let OverLimit::WaitUpTo(limit) = self.over else {
            return Poll::Pending;
        };
        if !self.shared.patience_gone.load(Relaxed) {
            if self.patience.is_none() {
                self.shared.keeps_time.check()?;
            }
            let patience = self
                .patience
                .get_or_insert_with(|| Box::pin(sleep(limit)));
            ready!(patience.as_mut().poll(cx));
            self.patience = None;
            self.shared
                .patience_gone
                .store(true, Relaxed);
        }
        // Out of the queue: a place that comes free now would be kept for it, and the call find none.
        self.places = self.places.clone();
        Poll::Ready(Ok(()))
    }
}

impl<S: Clone> Clone for ConnectionLimit<S> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shared: Arc::clone(&self.shared),
            over: self.over,
            refusals: self.refusals.clone(),
            places: self.places.clone(),
            // A clone has not been made ready.
            place: None,
            patience: None,
        }
    }
}

impl<S, I> Service<Conn<I>> for ConnectionLimit<S>
where
    S: Service<Conn<GuardedIo<I, Place>>>,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Admission<S::Future, Full>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // The inner service first: a place must not be held while something else is waited for.
        ready!(self.inner.poll_ready(cx)).map_err(Into::into)?;
        self.poll_place(cx).map_err(Into::into)
    }

    fn call(&mut self, conn: Conn<I>) -> Self::Future {
        let place = self.place.take();
        let place = place.or_else(|| {
            Arc::clone(&self.shared.places)
                .try_acquire_owned()
                .ok()
        });
        if place.is_none() && self.refusals.refuse() {
            conn.refuse(CloseReason::Limit);
            return Admission::refused(Full {
                limit: self.shared.limit,
            });
        }
        if !self.refusals.is_dry_run() && self.shared.limit < Semaphore::MAX_PERMITS {
            conn.info()
                .passed
                .mark(Safeguard::ConnectionLimit);
        }
        let conn = conn.map_io(|io| GuardedIo::new(io, Place { _permit: place }));
        Admission::admitted(self.inner.call(conn))
    }
}

/// A place under the limit, which the stream holds; nothing for the surplus of a dry run.
#[derive(Debug)]
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

/// Reads how full a limit is; see [`ConnectionLimitLayer::handle`].
#[derive(Debug, Clone)]
pub struct ConnectionLimitHandle {
    shared: Arc<Shared>,
}

impl ConnectionLimitHandle {
    /// The limit.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.shared.limit
    }

    /// Places taken: by open connections, and by a service that is ready for its next one.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.shared.limit - self.shared.places.available_permits()
    }
}

/// The connection limit was reached: this connection was refused before a byte of it was read.
///
/// Nothing was started, so the peer may safely try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    limit: usize,
}

impl Full {
    /// The limit that was reached.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether the refused work was never begun: always.
    #[must_use]
    pub fn never_started(&self) -> bool {
        true
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection limit of {} reached", self.limit)
    }
}

impl Error for Full {}

impl From<Full> for io::Error {
    fn from(error: Full) -> Self {
        Self::new(io::ErrorKind::ConnectionRefused, error)
    }
}
