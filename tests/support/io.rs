//! Streams in memory that are as difficult as a test needs, and a listener for them.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
    time::{Sleep, sleep},
};
use tokio_util::net::Listener;
use tower_net::io::Io;

/// A stream that reads what it was told to, in just these pieces, and keeps what is written to it.
///
/// When the script is over it is silent; say [`end`](Self::end) for an end of stream.
#[derive(Debug, Default)]
pub struct Script {
    steps: VecDeque<Step>,
    pause: Option<Pin<Box<Sleep>>>,
    written: Written,
}

#[derive(Debug)]
enum Step {
    Bytes(Vec<u8>),
    Pause(Duration),
    End,
    Fail(io::ErrorKind),
}

impl Script {
    pub fn new() -> Self {
        Self::default()
    }

    /// One read's worth of bytes; less if the reader has no room for them.
    pub fn bytes(mut self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref().to_vec();
        self.steps.push_back(Step::Bytes(bytes));
        self
    }

    pub fn pause(mut self, pause: Duration) -> Self {
        self.steps.push_back(Step::Pause(pause));
        self
    }

    pub fn end(mut self) -> Self {
        self.steps.push_back(Step::End);
        self
    }

    pub fn fail(mut self, kind: io::ErrorKind) -> Self {
        self.steps.push_back(Step::Fail(kind));
        self
    }

    pub fn written(&self) -> Written {
        self.written.clone()
    }
}

/// What was written to a [`Script`]; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Io for Script {}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match self.steps.pop_front() {
                None => return Poll::Pending,
                Some(Step::Pause(pause)) => self.pause = Some(Box::pin(sleep(pause))),
                Some(Step::Fail(kind)) => return Poll::Ready(Err(kind.into())),
                Some(Step::End) => {
                    self.steps.push_front(Step::End);
                    return Poll::Ready(Ok(()));
                }
                Some(Step::Bytes(mut bytes)) => {
                    let rest = bytes.split_off(bytes.len().min(buf.remaining()));
                    buf.put_slice(&bytes);
                    if !rest.is_empty() {
                        self.steps.push_front(Step::Bytes(rest));
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.written
            .0
            .lock()
            .unwrap()
            .extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Moves one byte a poll, in both directions, and waits before each.
#[derive(Debug)]
pub struct Drip<I> {
    io: I,
    may_read: bool,
    may_write: bool,
}

impl<I> Drip<I> {
    pub fn new(io: I) -> Self {
        Self {
            io,
            may_read: false,
            may_write: false,
        }
    }
}

/// Whether it is a byte's turn; each second time it is not, and the task is woken for the next.
fn turn(may: &mut bool, cx: &mut Context<'_>) -> Poll<()> {
    *may = !*may;
    if *may {
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    Poll::Ready(())
}

impl<I: Io> Io for Drip<I> {
    fn socket(&self) -> Option<SockRef<'_>> {
        self.io.socket()
    }
}

impl<I: Io> AsyncRead for Drip<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(turn(&mut self.may_read, cx));
        let mut byte = [0; 1];
        let mut one = ReadBuf::new(&mut byte[..buf.remaining().min(1)]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut one))?;
        buf.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl<I: Io> AsyncWrite for Drip<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(turn(&mut self.may_write, cx));
        let byte = &buf[..buf.len().min(1)];
        Pin::new(&mut self.io).poll_write(cx, byte)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Reads as the stream inside does, and never takes a byte.
#[derive(Debug)]
pub struct Stall<I>(pub I);

impl<I: Io> Io for Stall<I> {
    fn socket(&self) -> Option<SockRef<'_>> {
        self.0.socket()
    }
}

impl<I: Io> AsyncRead for Stall<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<I: Io> AsyncWrite for Stall<I> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// Takes everything, reads nothing, and counts how it was asked.
#[derive(Debug, Default)]
pub struct Vectored {
    calls: Calls,
}

/// What a [`Vectored`] was asked; clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct Calls(Arc<[AtomicUsize; 4]>);

impl Vectored {
    pub fn pair() -> (Self, Calls) {
        let io = Self::default();
        let calls = io.calls.clone();
        (io, calls)
    }
}

impl Calls {
    /// Writes, vectored writes, flushes and shutdowns so far.
    pub fn counts(&self) -> [usize; 4] {
        std::array::from_fn(|at| self.0[at].load(Relaxed))
    }

    fn count<T>(&self, at: usize, done: T) -> Poll<io::Result<T>> {
        self.0[at].fetch_add(1, Relaxed);
        Poll::Ready(Ok(done))
    }
}

impl Io for Vectored {}

impl AsyncRead for Vectored {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Vectored {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.calls.count(0, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        self.calls.count(1, length)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.calls.count(2, ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.calls.count(3, ())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// One stream, and after it another: told when.
#[derive(Debug)]
pub struct After<I> {
    first: DuplexStream,
    then: I,
    is_then: Arc<AtomicBool>,
}

impl<I: Io> After<I> {
    pub fn new(first: DuplexStream, then: I) -> (Self, Arc<AtomicBool>) {
        let is_then = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_then);
        (
            Self {
                first,
                then,
                is_then,
            },
            told,
        )
    }

    fn io(&mut self) -> Pin<&mut dyn Io> {
        if self.is_then.load(Relaxed) {
            Pin::new(&mut self.then)
        } else {
            Pin::new(&mut self.first)
        }
    }
}

impl<I: Io> Io for After<I> {
    fn socket(&self) -> Option<SockRef<'_>> {
        self.then.socket()
    }
}

impl<I: Io> AsyncRead for After<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }
}

impl<I: Io> AsyncWrite for After<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.then.is_write_vectored()
    }
}

/// A stream that notes, when it is dropped, whether its close is a reset.
#[derive(Debug)]
pub struct Witness<I: Io> {
    io: I,
    end: Closed,
}

/// How a [`Witness`] was closed; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Closed(Arc<[AtomicBool; 2]>);

impl Closed {
    pub fn is_closed(&self) -> bool {
        self.0[0].load(Relaxed)
    }

    pub fn is_reset(&self) -> bool {
        self.0[1].load(Relaxed)
    }
}

impl<I: Io> Witness<I> {
    pub fn pair(io: I) -> (Self, Closed) {
        let end = Closed::default();
        let of = end.clone();
        (Self { io, end }, of)
    }
}

impl<I: Io> Drop for Witness<I> {
    fn drop(&mut self) {
        let linger = self
            .io
            .socket()
            .and_then(|socket| socket.linger().ok().flatten());
        self.end.0[1].store(linger == Some(Duration::ZERO), Relaxed);
        self.end.0[0].store(true, Relaxed);
    }
}

impl<I: Io> Io for Witness<I> {
    fn socket(&self) -> Option<SockRef<'_>> {
        self.io.socket()
    }
}

impl<I: Io> AsyncRead for Witness<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: Io> AsyncWrite for Witness<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A listener in memory: what is [dialled](Dialler::dial) is accepted, and errors are what they are told.
#[derive(Debug)]
pub struct Queue<I = DuplexStream> {
    incoming: mpsc::UnboundedReceiver<io::Result<I>>,
}

/// The other side of a [`Queue`].
#[derive(Debug, Clone)]
pub struct Dialler<I = DuplexStream> {
    incoming: mpsc::UnboundedSender<io::Result<I>>,
}

impl<I: Io> Queue<I> {
    pub fn pair() -> (Self, Dialler<I>) {
        let (sender, incoming) = mpsc::unbounded_channel();
        (Self { incoming }, Dialler { incoming: sender })
    }
}

impl<I: Io> Dialler<I> {
    /// Queues `io`; a listener that has gone drops it.
    pub fn offer(&self, io: I) {
        let _gone = self.incoming.send(Ok(io));
    }

    /// Lets one accept fail.
    pub fn fail(&self, error: io::Error) {
        let _gone = self.incoming.send(Err(error));
    }
}

impl Dialler {
    /// The near end of a new connection, with room for `bytes` each way.
    pub fn dial(&self, bytes: usize) -> DuplexStream {
        let (near, far) = duplex(bytes);
        self.offer(far);
        near
    }
}

impl<I: Io> Listener for Queue<I> {
    type Io = I;
    type Addr = ();

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(I, ())>> {
        match ready!(self.incoming.poll_recv(cx)) {
            Some(accepted) => Poll::Ready(accepted.map(|io| (io, ()))),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}
