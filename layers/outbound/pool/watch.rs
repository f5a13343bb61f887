//! Whether a connection that nobody uses is still what it was: silent.

use std::{
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::Notify,
    task::unconstrained,
};

use super::fates::Gone;
use crate::{
    base::io::{self as streams, Io},
    conn::Conn,
};

/// Reads a byte without waiting: whatever comes of it, other than having to wait, is the end of the connection. The
/// waker is called when something happens later.
pub(super) fn listen<I: Io>(conn: &mut Conn<I>, waker: &Waker) -> Result<(), Gone> {
    let mut byte = [0; 1];
    let mut buf = ReadBuf::new(&mut byte);
    // Whatever share of the runtime the task has had: "not now" must not be taken for "silent".
    let read = unconstrained(poll_fn(|cx| Pin::new(&mut *conn).poll_read(cx, &mut buf)));
    let mut cx = Context::from_waker(waker);
    // A stream that panics is no use to anybody, and its place must be free all the same.
    let read = catch_unwind(AssertUnwindSafe(|| pin!(read).poll(&mut cx)));
    match read {
        Ok(Poll::Pending) => Ok(()),
        Ok(Poll::Ready(Ok(()))) if !buf.filled().is_empty() => Err(Gone::Stray),
        Ok(Poll::Ready(_)) => Err(Gone::Ended),
        Err(_) => Err(Gone::Broken),
    }
}

/// The same with nobody to wake, which also asks the socket, since the runtime knows a moment later.
pub(super) fn look<I: Io>(conn: &mut Conn<I>) -> Result<(), Gone> {
    listen(conn, Waker::noop())?;
    match streams::peek(conn) {
        None => Ok(()),
        Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Some(Ok(1..)) => Err(Gone::Stray),
        Some(_) => Err(Gone::Ended),
    }
}

/// Who is to be looked at by the pool's own task, and how that one is called.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// A connection is in it once at the most.
    stirred: Mutex<Vec<Arc<Watch>>>,
    pub(super) signal: Notify,
}

impl Calls {
    /// Those who called first, so many at the most, and whether there are more.
    pub(super) fn take(&self, most: usize) -> (Vec<Arc<Watch>>, bool) {
        let mut stirred = self
            .stirred
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = stirred.len().min(most);
        let taken: Vec<_> = stirred.drain(..count).collect();
        for watch in &taken {
            watch
                .is_called
                .store(false, Ordering::Release);
        }
        (taken, !stirred.is_empty())
    }
}

/// Watches one connection of a pool while nobody uses it: it is the waker with which the pool reads.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) target: usize,
    pub(super) number: u64,
    calls: Arc<Calls>,
    /// Something has happened since the pool last read.
    has_stirred: AtomicBool,
    is_called: AtomicBool,
}

impl Watch {
    pub(super) fn new(target: usize, number: u64, calls: &Arc<Calls>) -> Arc<Self> {
        Arc::new(Self {
            target,
            number,
            calls: Arc::clone(calls),
            has_stirred: AtomicBool::new(false),
            is_called: AtomicBool::new(false),
        })
    }

    /// To be said before the read that is to wake it.
    pub(super) fn begin(&self) {
        self.has_stirred
            .store(false, Ordering::Release);
    }

    /// Whether it was woken since, by one who may have looked for the connection before it was where it is now.
    pub(super) fn has_stirred(&self) -> bool {
        self.has_stirred.load(Ordering::Acquire)
    }

    pub(super) fn call(self: &Arc<Self>) {
        if !self
            .is_called
            .swap(true, Ordering::AcqRel)
        {
            let mut stirred = self
                .calls
                .stirred
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            stirred.push(Arc::clone(self));
            drop(stirred);
            self.calls.signal.notify_one();
        }
    }
}

impl Wake for Watch {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_stirred
            .store(true, Ordering::Release);
        self.call();
    }
}
