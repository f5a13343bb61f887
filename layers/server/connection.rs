use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use pin_project_lite::pin_project;

use crate::{
    base::error::BoxError,
    conn::{CloseReason, ConnInfo, turn::Turn},
    server::live::Alive,
};

pin_project! {
    /// One accepted connection: the task that it is.
    ///
    /// Whatever its service does (returns, fails, panics, is aborted or cut), the stream is dropped first and
    /// the connection counted after, with one reason.
    pub(crate) struct Connection<F> {
        // Dropped in this order: an unfinished connection was aborted, then its stream closes, then it is
        // counted.
        unfinished: Unfinished,
        #[pin]
        service: Option<F>,
        alive: Option<Alive>,
        known: Option<Waker>,
    }
}

struct Unfinished(Option<Arc<ConnInfo>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(info) = &self.0 {
            info.end_with(CloseReason::Aborted);
        }
    }
}

impl<F, E> Connection<F>
where
    F: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    pub(crate) fn new(service: Option<F>, info: Arc<ConnInfo>, alive: Alive) -> Self {
        Self {
            unfinished: Unfinished(Some(info)),
            service,
            alive: Some(alive),
            known: None,
        }
    }

    fn end(self: Pin<&mut Self>, info: &ConnInfo) {
        let mut this = self.project();
        // A stream that panics when it is dropped has been dropped all the same.
        let dropped = catch_unwind(AssertUnwindSafe(|| this.service.set(None)));
        if dropped.is_err() {
            info.end_with(CloseReason::Panic);
        }
        this.unfinished.0 = None;
        *this.alive = None;
    }
}

impl<F, E> Future for Connection<F>
where
    F: Future<Output = Result<(), E>>,
    E: Into<BoxError>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.as_mut().project();
        let Some(info) = this.unfinished.0.clone() else {
            return Poll::Ready(());
        };
        if !this
            .known
            .as_ref()
            .is_some_and(|known| known.will_wake(cx.waker()))
        {
            info.ending.keep_registered(cx.waker());
            *this.known = Some(cx.waker().clone());
        }
        let _turn = Turn::keep(cx, &info);
        if !info.ending.is_cut() {
            let service = this.service.as_pin_mut();
            let polled = catch_unwind(AssertUnwindSafe(|| {
                service.map_or(Poll::Ready(Ok(())), |service| service.poll(cx))
            }));
            match polled {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(Ok(()))) => {}
                Ok(Poll::Ready(Err(error))) => {
                    let error: BoxError = error.into();
                    tracing::debug!(conn = %info.id(), error = &*error, "service failed");
                }
                Err(_) => {
                    info.end_with(CloseReason::Panic);
                }
            }
        }
        self.end(&info);
        Poll::Ready(())
    }
}
