use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, TryStream};
use pin_project_lite::pin_project;
use tower::discover::Change;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, find},
        time::{Timer, later, now},
    },
    outbound::client::CallError,
};

pin_project! {
    /// The peers of a [`Discover`](tower::discover::Discover), each as a [`Resting`].
    #[derive(Debug)]
    pub struct Rested<D> {
        #[pin]
        discover: D,
    }
}

impl<D> Rested<D> {
    pub(super) fn new(discover: D) -> Self {
        Self { discover }
    }
}

impl<D, K, S> Stream for Rested<D>
where
    D: TryStream<Ok = Change<K, S>>,
{
    type Item = Result<Change<K, Resting<S>>, D::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let change = ready!(
            self.project()
                .discover
                .try_poll_next(cx)
        );
        Poll::Ready(change.map(|change| {
            Ok(match change? {
                Change::Insert(key, service) => Change::Insert(key, Resting::new(service)),
                Change::Remove(key) => Change::Remove(key),
            })
        }))
    }
}

/// A peer that is not asked for 100 ms after it has refused a call.
///
/// A refusal is quick, and what is quick is chosen: without a rest a peer that refuses everything would draw all calls to
/// itself.
#[derive(Debug)]
pub struct Resting<S> {
    service: S,
    has_refused: Arc<AtomicBool>,
    rest: Option<Pin<Box<Timer>>>,
}

impl<S> Resting<S> {
    fn new(service: S) -> Self {
        Self {
            service,
            has_refused: Arc::default(),
            rest: None,
        }
    }
}

impl<S, Q> Service<Q> for Resting<S>
where
    S: Service<Q>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = RestingFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.has_refused.swap(false, Relaxed) {
            if let Some(at) = later(now(), REST) {
                let mut rest = Box::pin(Timer::default());
                rest.as_mut().arm(at);
                self.rest = Some(rest);
            }
        }
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        self.service
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, call: Q) -> Self::Future {
        RestingFuture {
            calling: self.service.call(call),
            has_refused: Arc::clone(&self.has_refused),
        }
    }
}

pin_project! {
    /// The future of [`Resting`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct RestingFuture<F> {
        #[pin]
        calling: F,
        has_refused: Arc<AtomicBool>,
    }
}

impl<F, R, E> Future for RestingFuture<F>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
{
    type Output = Result<R, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.calling.poll(cx)).map_err(Into::into);
        if let Err(error) = &result {
            let refused = find::<CallError>(error.as_ref()).is_some_and(CallError::is_retryable);
            if refused {
                this.has_refused.store(true, Relaxed);
            }
        }
        Poll::Ready(result)
    }
}

/// Some round trips: a peer that is full has room again soon, and one that is not is asked ten times a second.
const REST: Duration = Duration::from_millis(100);
