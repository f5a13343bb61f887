//! Opening a connection, in a task of its own: whoever asked for it may have left, and the connection is kept.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{runtime::Handle, task::AbortHandle, time::timeout_at};
use tower_service::Service;

use super::{
    books::Ticket,
    error::{DialElapsed, DialPanicked},
    metrics::{Dialled, Metrics},
    stream::Home,
};
use crate::{
    base::{error::BoxError, io::Io},
    conn::{Ambient, Conn, Deadline},
};

/// The place that a dial has, until it has a connection.
pub(super) struct Place<I: Io> {
    pub(super) home: Weak<dyn Home<I>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) runtime: Handle,
    pub(super) limit: Duration,
    pub(super) dial: Dial,
    pub(super) is_over: bool,
}

/// Which dial it is, and whose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dial {
    pub(super) target: usize,
    pub(super) number: u64,
    pub(super) round: u64,
    pub(super) owner: Option<Ticket>,
}

impl<I: Io> Place<I> {
    fn arrived(mut self, conn: Conn<I>) {
        self.is_over = true;
        self.metrics.dialled(Dialled::Ok);
        if let Some(home) = self.home.upgrade() {
            home.dialled(self.dial, conn);
        }
    }

    fn failed(&mut self, error: BoxError, how: Dialled) {
        self.is_over = true;
        self.metrics.dialled(how);
        tracing::debug!(error = &*error, "dial failed");
        if let Some(home) = self.home.upgrade() {
            home.dial_failed(self.dial, error);
        }
    }
}

impl<I: Io> Drop for Place<I> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if std::thread::panicking() {
            return self.failed(DialPanicked.into(), Dialled::Failed);
        }
        // It was called off, or its runtime has gone.
        self.metrics.dialled(Dialled::Abandoned);
        if let Some(home) = self.home.upgrade() {
            home.dial_gone(self.dial);
        }
    }
}

/// Begins a dial, whose place has been taken; returns how to call it off.
pub(super) fn begin<C, T, I>(place: Place<I>, mut connector: C, to: T) -> AbortHandle
where
    C: Service<T, Response = Conn<I>> + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
    T: Send + 'static,
    I: Io,
{
    let (runtime, limit) = (place.runtime.clone(), place.limit);
    let dialling = runtime.spawn(async move {
        let mut place = place;
        let deadline = Deadline::within(limit);
        let connecting = async {
            poll_fn(|cx| connector.poll_ready(cx))
                .await
                .map_err(Into::into)?;
            let connecting = connector.call(to);
            connecting.await.map_err(Into::into)
        };
        let connecting = Budgeted {
            inner: connecting,
            deadline,
        };
        let connected = match deadline.instant() {
            Some(at) => timeout_at(at, connecting).await,
            None => Ok(connecting.await),
        };
        match connected {
            Ok(Ok(conn)) => place.arrived(conn),
            Ok(Err(error)) => place.failed(error, Dialled::Failed),
            Err(_) => place.failed(DialElapsed::new(limit).into(), Dialled::Elapsed),
        }
    });
    dialling.abort_handle()
}

pin_project! {
    /// Has the connectors below find the deadline of the dial.
    struct Budgeted<F> {
        #[pin]
        inner: F,
        deadline: Deadline,
    }
}

impl<F: Future> Future for Budgeted<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let entered = Ambient::enter();
        entered.set(Ambient::At(*this.deadline));
        this.inner.poll(cx)
    }
}
