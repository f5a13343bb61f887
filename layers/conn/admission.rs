use std::{
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use crate::base::error::BoxError;

pin_project! {
    /// The future of a layer that lets a connection in, or refuses it there and then.
    ///
    /// Dropping it drops the connection, if it was let in; one that was refused is gone already.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Admission<F, E> {
        #[pin]
        verdict: Verdict<F, E>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = Projected]
    enum Verdict<F, E> {
        Admitted { #[pin] inner: F },
        Refused { error: Option<E> },
    }
}

impl<F, E> Admission<F, E> {
    pub(crate) fn admitted(inner: F) -> Self {
        Self {
            verdict: Verdict::Admitted { inner },
        }
    }

    pub(crate) fn refused(error: E) -> Self {
        Self {
            verdict: Verdict::Refused { error: Some(error) },
        }
    }
}

impl<F, T, Inner, E> Future for Admission<F, E>
where
    F: Future<Output = Result<T, Inner>>,
    Inner: Into<BoxError>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().verdict.project() {
            Projected::Admitted { inner } => inner.poll(cx).map_err(Into::into),
            Projected::Refused { error } => {
                let error = error.take();
                let error = error.expect("not polled again after it was ready");
                Poll::Ready(Err(error.into()))
            }
        }
    }
}
