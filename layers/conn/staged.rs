//! A connection that has to say something, or wait, before its service begins.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{base::error::BoxError, conn::Conn};

/// What comes before the service: boxed once, and gone when it is done.
type Before<J> = Pin<Box<dyn Future<Output = Result<Conn<J>, BoxError>> + Send>>;

pin_project! {
    /// First what comes before, then the service that was ready when the connection came.
    #[project = StagedProj]
    pub(crate) enum Staged<S, J>
    where
        S: Service<Conn<J>>,
    {
        Before { before: Before<J>, service: S },
        Serving { #[pin] serving: S::Future },
        Refused { error: Option<BoxError> },
    }
}

impl<S, J> Staged<S, J>
where
    S: Service<Conn<J>>,
{
    /// Calls `service`, which must be ready, with what `before` gives.
    pub(crate) fn after<F>(before: F, service: S) -> Self
    where
        F: Future<Output = Result<Conn<J>, BoxError>> + Send + 'static,
    {
        Self::Before {
            before: Box::pin(before),
            service,
        }
    }

    /// There is nothing to wait for.
    pub(crate) fn at_once(serving: S::Future) -> Self {
        Self::Serving { serving }
    }

    pub(crate) fn refused(error: impl Into<BoxError>) -> Self {
        Self::Refused {
            error: Some(error.into()),
        }
    }
}

impl<S, J> Future for Staged<S, J>
where
    S: Service<Conn<J>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let serving = match self.as_mut().project() {
                StagedProj::Serving { serving } => return serving.poll(cx).map_err(Into::into),
                StagedProj::Refused { error } => {
                    let error = error.take();
                    return Poll::Ready(Err(error.expect("not polled again after it was ready")));
                }
                StagedProj::Before { before, service } => match ready!(before.as_mut().poll(cx)) {
                    Ok(conn) => Self::at_once(service.call(conn)),
                    Err(error) => {
                        self.set(Self::Refused { error: None });
                        return Poll::Ready(Err(error));
                    }
                },
            };
            self.set(serving);
        }
    }
}

impl<S, J> fmt::Debug for Staged<S, J>
where
    S: Service<Conn<J>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Before { .. } => "Before",
            Self::Serving { .. } => "Serving",
            Self::Refused { .. } => "Refused",
        })
    }
}

/// The service that was made ready, with a clone in its place that was not.
pub(crate) fn take_ready<S: Clone>(service: &mut S) -> S {
    let clone = service.clone();
    std::mem::replace(service, clone)
}
