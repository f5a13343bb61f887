//! `tokio_lazy`: `tokio` with a read and write deadline that costs next to nothing. One timer for
//! each connection, armed only when an operation has to wait, and left to run when it is done: when
//! it fires, it looks whether anything has happened since, and if so starts again.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};

use super::{DEADLINE, accept_each};
use crate::wire::Inbox;

pub(super) async fn serve(listener: TcpListener) {
    accept_each(listener, connection).await;
}

async fn connection(mut stream: TcpStream) -> io::Result<()> {
    let mut inbox = Inbox::new();
    let mut deadline = pin!(LazyDeadline::new());
    loop {
        let n = deadline
            .as_mut()
            .guard(stream.read(inbox.spare()))
            .await?;
        if n == 0 {
            return Ok(());
        }
        inbox.received(n)?;
        deadline
            .as_mut()
            .guard(stream.write_all(inbox.whole()))
            .await?;
        inbox.consume();
    }
}

/// Ends an operation that stalls for between one and two times [`DEADLINE`].
struct LazyDeadline {
    timer: Option<Pin<Box<Sleep>>>,
    /// Operations done.
    done: u64,
    /// The value of `done` when the timer was last set.
    done_when_set: u64,
}

impl LazyDeadline {
    fn new() -> Self {
        Self {
            timer: None,
            done: 0,
            done_when_set: 0,
        }
    }

    async fn guard<T>(
        mut self: Pin<&mut Self>,
        operation: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let mut operation = pin!(operation);
        poll_fn(|cx| match operation.as_mut().poll(cx) {
            Poll::Ready(result) => {
                self.done += 1;
                Poll::Ready(result)
            }
            Poll::Pending => {
                ready!(self.poll_stalled(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        })
        .await
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let done = self.done;
        let timer = self.timer.get_or_insert_with(|| {
            self.done_when_set = done;
            Box::pin(sleep(DEADLINE))
        });
        loop {
            ready!(timer.as_mut().poll(cx));
            if self.done_when_set == done {
                return Poll::Ready(());
            }
            self.done_when_set = done;
            timer
                .as_mut()
                .reset(Instant::now() + DEADLINE);
        }
    }
}
