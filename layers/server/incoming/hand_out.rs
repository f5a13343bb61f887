use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc::UnboundedSender, oneshot},
};
use tokio_util::sync::PollSemaphore;
use tower_service::Service;

use crate::{
    base::{
        error::BoxError,
        io::Io,
        time::{FOREVER, now},
    },
    conn::{
        CloseReason, Conn, ConnInfo, Elapsed,
        turn::Turn,
        waits::plus,
        watch::{Limits, Verdict, Watch},
    },
    server::incoming::speech::Speech,
};

/// A connection on its way from the stack to whoever claims it.
pub(super) struct Arrival<I> {
    io: IncomingIo<I>,
    _place: OwnedSemaphorePermit,
}

impl<I> Arrival<I> {
    /// Somebody serves it from now on.
    pub(super) fn claim(self) -> IncomingIo<I> {
        self.io
            .info()
            .waits
            .unclaimed
            .set(false);
        self.io
    }
}

/// The innermost service of an [`Incoming`](crate::Incoming): hands a connection out, and lives until its stream is dropped.
#[derive(Debug)]
pub struct HandOut<I> {
    sender: UnboundedSender<Arrival<I>>,
    places: PollSemaphore,
    request: Arc<OnceLock<Duration>>,
}

impl<I> HandOut<I> {
    pub(super) fn new(
        sender: UnboundedSender<Arrival<I>>,
        places: &Arc<Semaphore>,
        request: &Arc<OnceLock<Duration>>,
    ) -> Self {
        Self {
            sender,
            places: PollSemaphore::new(Arc::clone(places)),
            request: Arc::clone(request),
        }
    }
}

impl<I> Clone for HandOut<I> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            places: self.places.clone(),
            request: Arc::clone(&self.request),
        }
    }
}

impl<I: Io> Service<Conn<I>> for HandOut<I> {
    type Response = ();
    type Error = BoxError;
    type Future = HandOutFuture;

    /// Ready while there is a place. It is taken by the call and not kept until then: a handshake that comes
    /// between the two may take long.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let _place = ready!(self.places.poll_acquire(cx));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, conn: Conn<I>) -> HandOutFuture {
        let (sender, places) = (self.sender.clone(), self.places.clone_inner());
        // Here and now if there is one, so that an accept loop in a hurry does not run ahead of its tasks.
        let place = Arc::clone(&places).try_acquire_owned();
        let limit = self.request.get().copied();
        let limit = limit.unwrap_or(Duration::MAX);
        let info = Arc::clone(conn.info());
        info.handshakes_done();
        info.waits.unclaimed.set(true);
        let (claimed, dropped) = oneshot::channel();
        let io = IncomingIo {
            conn,
            speech: Speech::new(),
            timed: None,
            limit,
            _claimed: claimed,
        };
        // With a watch above, the deadline is kept there: one timer a connection.
        let watched = info.waits.watched.get() || limit >= FOREVER;
        HandOutFuture {
            handing: Box::pin(hand_out(sender, places, place.ok(), io, dropped)),
            watch: (!watched).then(|| Box::pin(Watch::new(Arc::new(Limits::NONE)))),
            info,
        }
    }
}

async fn hand_out<I: Io>(
    sender: UnboundedSender<Arrival<I>>,
    places: Arc<Semaphore>,
    place: Option<OwnedSemaphorePermit>,
    io: IncomingIo<I>,
    dropped: oneshot::Receiver<()>,
) {
    let place = match place {
        Some(place) => place,
        None => places
            .acquire_owned()
            .await
            .expect("nobody closes it"),
    };
    let info = Arc::clone(io.info());
    if sender
        .send(Arrival { io, _place: place })
        .is_err()
    {
        // Nobody is left to claim it.
        let reason = info.ending.leaving();
        info.end_with(reason.unwrap_or(CloseReason::Aborted));
        return;
    }
    // With the last of them the consumer learns that there is no more.
    drop(sender);
    // Never sent, only dropped.
    let _dropped = dropped.await;
}

/// The future of [`HandOut`]: ready once the stream that was handed out is dropped.
#[must_use = "futures do nothing unless polled"]
pub struct HandOutFuture {
    handing: Pin<Box<dyn Future<Output = ()> + Send>>,
    watch: Option<Pin<Box<Watch>>>,
    info: Arc<ConnInfo>,
}

impl Future for HandOutFuture {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let info = Arc::clone(&self.info);
        let _turn = Turn::take(cx, &info);
        loop {
            if self
                .handing
                .as_mut()
                .poll(cx)
                .is_ready()
            {
                return Poll::Ready(Ok(()));
            }
            let Some(watch) = &mut self.watch else {
                return Poll::Pending;
            };
            match ready!(watch.as_mut().poll(cx, &info)) {
                Verdict::Told => {}
                Verdict::Over(elapsed) => {
                    info.cut(elapsed.which());
                    return Poll::Ready(Err(elapsed.into()));
                }
            }
        }
    }
}

impl fmt::Debug for HandOutFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandOutFuture")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// A stream that an [`Incoming`](crate::Incoming) has handed out.
///
/// It reads and writes as the connection does, and fails once the connection is cut. What the stack holds for it is
/// free when it is dropped.
#[derive(Debug)]
pub struct IncomingIo<I> {
    // Closed first, then the stack is told.
    conn: Conn<I>,
    speech: Speech,
    /// What is waited for, if it has a deadline by now.
    timed: Option<u64>,
    limit: Duration,
    _claimed: oneshot::Sender<()>,
}

impl<I> IncomingIo<I> {
    /// What is known of the connection, and the handle to it.
    pub fn info(&self) -> &Arc<ConnInfo> {
        self.conn.info()
    }
}

impl<I: Io> IncomingIo<I> {
    /// The error of a connection that was cut.
    fn check(&self) -> io::Result<()> {
        let info = self.conn.info();
        if !info.ending.is_cut() {
            return Ok(());
        }
        let which = info
            .close_reason()
            .unwrap_or(CloseReason::Cut);
        Err(Elapsed::new(which, None).into())
    }

    /// A pending operation hears of a cut, if no layer below has seen to that.
    fn waits<T>(
        &self,
        result: Poll<io::Result<T>>,
        cx: &Context<'_>,
        reads: bool,
    ) -> Poll<io::Result<T>> {
        let info = self.conn.info();
        if result.is_ready() || info.waits.watched.get() || Turn::is_own(cx, info) {
            return result;
        }
        if reads {
            info.waits.register_reader(cx.waker());
        } else {
            info.waits.register_writer(cx.waker());
        }
        self.check()?;
        Poll::Pending
    }
}

impl<I> IncomingIo<I> {
    /// A read waits: for more of what has begun, or because the answer is not there yet.
    fn read_waits(&mut self) {
        let waiting = self.speech.waits_for();
        if waiting == self.timed || self.limit >= FOREVER {
            return;
        }
        self.timed = waiting;
        if waiting.is_none() {
            return self.clear();
        }
        let info = self.conn.info();
        let by = plus(info.stamp(now()), self.limit);
        // A handler may be at work, or a head on its way: neither is idle, and only the one has a rate.
        info.waits.asked.set(true);
        info.waits.request_by.set(by);
        if info.waits.must_tell_of(by) {
            // The watch is on another task, and does not know yet.
            info.ending.wake();
        }
    }

    fn wrote(&mut self, written: &Poll<io::Result<usize>>, first: &[u8]) {
        if let Poll::Ready(Ok(1..)) = written {
            if self.speech.answer(first) && self.timed.take().is_some() {
                self.clear();
            }
        }
    }

    fn clear(&self) {
        let waits = &self.conn.info().waits;
        waits.asked.set(false);
        waits.request_by.clear();
    }
}

impl<I: Io> Io for IncomingIo<I> {
    delegate_socket!(conn);
}

impl<I: Io> AsyncRead for IncomingIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.conn).poll_read(cx, buf);
        match &read {
            Poll::Ready(_) => self
                .speech
                .hear(&buf.filled()[before..]),
            Poll::Pending => self.read_waits(),
        }
        self.waits(read, cx, true)
    }
}

impl<I: Io> AsyncWrite for IncomingIo<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let written = Pin::new(&mut self.conn).poll_write(cx, buf);
        self.wrote(&written, buf);
        self.waits(written, cx, false)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let written = Pin::new(&mut self.conn).poll_write_vectored(cx, bufs);
        let first = bufs.iter().find(|buf| !buf.is_empty());
        self.wrote(&written, first.map_or(&[], |first| first));
        self.waits(written, cx, false)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let flushed = Pin::new(&mut self.conn).poll_flush(cx);
        self.waits(flushed, cx, false)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.conn).poll_shutdown(cx);
        self.waits(shut, cx, false)
    }

    fn is_write_vectored(&self) -> bool {
        self.conn.is_write_vectored()
    }
}
