//! What the handles of a client, its calls and its links have in common.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use tokio::{runtime::Handle, sync::Semaphore, time::Instant};
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, NoTimer},
        io::Io,
        sync::{Mutex, PoisonError},
        time::{now, require_driver},
    },
    conn::{Conn, Deadline},
    outbound::{
        budget::{Phase, Spent},
        client::{
            CallCause, CallError, Disconnected, Settings, SharedError,
            driver::Driver,
            metrics::Metrics,
            protocol::Protocol,
            table::{Entry, Table, Todo, lock},
        },
    },
};

pub(super) struct Shared<Q, R> {
    pub(super) table: Mutex<Table<Q, R>>,
    pub(super) places: Arc<Semaphore>,
    pub(super) settings: Settings,
    pub(super) metrics: Metrics,
    runtime: OnceLock<Handle>,
    has_connected: AtomicBool,
    start: Box<Start<Q, R>>,
}

/// Starts the task of a link.
type Start<Q, R> = dyn Fn(Link<Q, R>, &Handle) + Send + Sync;

impl<Q, R> Shared<Q, R>
where
    Q: Clone + Send + 'static,
    R: Send + 'static,
{
    pub(super) fn new<C, T, I, P>(
        connector: C,
        target: T,
        protocol: P,
        settings: Settings,
    ) -> Arc<Self>
    where
        C: Service<T, Response = Conn<I>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
        T: Clone + Send + 'static,
        I: Io,
        P: Protocol<Q, Reply = R>,
    {
        // Cloned for each connection, by whoever starts it.
        let original = Mutex::new((connector, target, protocol));
        let start = move |link: Link<Q, R>, runtime: &Handle| {
            let copy = original
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            // The one place where a client makes a task: it is one connection, and ends by itself with it, or soon
            // after the last client and the last call.
            drop(runtime.spawn(link.run(copy)));
        };
        Arc::new(Self {
            table: Mutex::new(Table::new()),
            places: Arc::new(Semaphore::new(settings.places())),
            metrics: Metrics::new(&settings.service),
            runtime: OnceLock::new(),
            has_connected: AtomicBool::new(false),
            start: Box::new(start),
            settings,
        })
    }
}

impl<Q, R> Shared<Q, R> {
    /// Makes sure, once, that there is a runtime that can keep time; links run on the first one that is found.
    pub(super) fn check(&self) -> Result<(), NoTimer> {
        if self.runtime.get().is_none() {
            require_driver()?;
            self.runtime
                .get_or_init(Handle::current);
        }
        Ok(())
    }

    /// Takes a call in, and sees that there is a link for it.
    pub(super) fn enter(self: &Arc<Self>, entry: Entry<Q>) -> Result<usize, CallError> {
        self.settings.retries.deposit(entry.now);
        let (key, todo) = lock(&self.table).enter(entry, &self.settings)?;
        self.settle(todo);
        Ok(key)
    }

    /// Does what is left to do once the lock is free.
    pub(super) fn settle(self: &Arc<Self>, todo: Todo) {
        let Some(link) = todo.done() else {
            return;
        };
        let link = Link {
            shared: Arc::clone(self),
            link,
            is_over: false,
        };
        match self.runtime.get() {
            Some(runtime) => (self.start)(link, runtime),
            // Its drop tells those who wait. Not reached, since every way in begins with a check.
            None => drop(link),
        }
    }

    pub(super) fn may_retry(&self) -> bool {
        let may = self.settings.retries.withdraw(now());
        self.metrics.retry(may);
        may
    }
}

impl<Q, R> fmt::Debug for Shared<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// A connection of a client, from the first attempt to its end. Whatever becomes of its task, the table knows.
pub(super) struct Link<Q, R> {
    shared: Arc<Shared<Q, R>>,
    link: usize,
    is_over: bool,
}

impl<Q: Clone, R> Link<Q, R> {
    async fn run<C, T, I, P>(mut self, (connector, target, protocol): (C, T, P))
    where
        C: Service<T, Response = Conn<I>> + Clone,
        C::Error: Into<BoxError>,
        T: Clone,
        I: Io,
        P: Protocol<Q, Reply = R>,
    {
        if let Some(conn) = self.connect(connector, target).await {
            let driver = Driver::new(conn, protocol, Arc::clone(&self.shared), self.link);
            driver.run().await;
            self.is_over = true;
            let todo = {
                let mut table = lock(&self.shared.table);
                table.remove(self.link);
                table.look_after_queue()
            };
            self.shared.settle(todo);
        }
    }

    /// Connects, however often it takes; none if nobody needs the connection any more, and the link is gone then.
    async fn connect<C, T, I>(&mut self, connector: C, target: T) -> Option<Conn<I>>
    where
        C: Service<T, Response = Conn<I>> + Clone,
        C::Error: Into<BoxError>,
        T: Clone,
    {
        let (shared, link) = (Arc::clone(&self.shared), self.link);
        let limit = shared.settings.connect;
        loop {
            let due = lock(&shared.table).due();
            let connecting = connect(connector.clone(), target.clone(), limit);
            let attempt = async {
                if let Some(due) = due {
                    tokio::time::sleep_until(due).await;
                }
                apart(connecting).await
            };
            let is_over = &mut self.is_over;
            let alone = std::future::poll_fn(|cx| {
                let alone = lock(&shared.table).poll_alone(link, cx);
                // Noted before the attempt is dropped, which may panic.
                *is_over = alone.is_ready();
                alone
            });
            let attempted = tokio::select! {
                biased;
                () = alone => return None,
                attempted = attempt => attempted,
            };
            // A connector that panics is wrong, and not away: nobody waits for it to come to its senses.
            let (attempted, has_panicked) = match attempted {
                Some(attempted) => (attempted, false),
                None => (Err(Arc::new(Disconnected::Aborted) as SharedError), true),
            };
            match attempted {
                Ok(conn) => {
                    shared.metrics.connected.increment(1);
                    if shared.has_connected.swap(true, Relaxed) {
                        shared.metrics.reconnects.increment(1);
                    }
                    let todo = lock(&shared.table).connected(link, now());
                    shared.settle(todo);
                    return Some(conn);
                }
                Err(error) => {
                    shared
                        .metrics
                        .connect_failed
                        .increment(1);
                    tracing::debug!(%error, "client could not connect");
                    let settings = &shared.settings;
                    let ends_queue = settings.fail_fast || has_panicked;
                    let (again, todo) = lock(&shared.table).not_connected(
                        link,
                        &error,
                        ends_queue,
                        now(),
                        settings,
                    );
                    self.is_over = !again;
                    shared.settle(todo);
                    if !again {
                        return None;
                    }
                }
            }
        }
    }
}

impl<Q, R> Drop for Link<Q, R> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // The runtime was shut down, or the protocol panicked, or a call as it was cloned.
        let error: SharedError = Arc::new(Disconnected::Aborted);
        let todo = lock(&self.shared.table).abort(self.link, &error, now());
        self.shared.settle(todo);
    }
}

/// Opens a connection within a time.
async fn connect<C, T, I>(
    mut connector: C,
    target: T,
    limit: Duration,
) -> Result<Conn<I>, SharedError>
where
    C: Service<T, Response = Conn<I>>,
    C::Error: Into<BoxError>,
{
    let connecting = async {
        std::future::poll_fn(|cx| connector.poll_ready(cx)).await?;
        connector.call(target).await
    };
    let deadline = Deadline::within(limit);
    let connecting = deadline.scope(connecting);
    let connected = match deadline.instant() {
        None => connecting.await,
        Some(at) => match tokio::time::timeout_at(at, connecting).await {
            Ok(connected) => connected,
            Err(_) => {
                let times = [Duration::ZERO, limit, Duration::ZERO];
                let spent = Spent::new(Phase::Connecting, times, Some(limit));
                return Err(Arc::new(spent));
            }
        },
    };
    connected.map_err(|error| SharedError::from(error.into()))
}

/// What comes of `future`; none if it panics.
async fn apart<F: Future>(future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        // Unwind safety: what panicked is not polled again.
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polled.map_or(Poll::Ready(None), |polled| polled.map(Some))
    })
    .await
}

/// A call's refusal for want of a runtime.
pub(super) fn no_timer(error: NoTimer) -> CallError {
    CallError::new(CallCause::NoTimer(error), Phase::Waiting)
}

/// When a call that is made now is due, and the client's own limit if that is the earlier one.
pub(super) fn due(begun: Instant, limit: Duration) -> (Deadline, Option<Duration>) {
    let (own, budget) = (Deadline::after(begun, limit), Deadline::current());
    (own.min(budget), (own < budget).then_some(limit))
}
