//! Whether a connection that nobody uses is still what it was: silent.

use std::{
    future::poll_fn,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use tokio::{io::ReadBuf, sync::Notify, task::unconstrained};

use super::fates::Gone;
use crate::base::io::{self as streams, Io};

/// Reads a byte without waiting: whatever comes of it, other than having to wait, is the end of the connection. The
/// waker is called when something happens later.
pub(super) fn listen<I: Io>(io: &mut I, waker: &Waker) -> Result<(), Gone> {
    let mut byte = [0; 1];
    let mut buf = ReadBuf::new(&mut byte);
    // Whatever share of the runtime the task has had: "not now" must not be taken for "silent".
    let read = unconstrained(poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut buf)));
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

/// What the watch knows of a connection that is to be given out: there is nothing to read unless it was woken.
pub(super) fn look<I: Io>(io: &mut I, watch: &Watch) -> Result<(), Gone> {
    if watch.has_stirred() {
        return listen(io, Waker::noop());
    }
    Ok(())
}

/// What the kernel knows, which is a moment more than the runtime does.
pub(super) fn ask<I: Io>(io: &I) -> Result<(), Gone> {
    // As above.
    catch_unwind(AssertUnwindSafe(|| ask_kernel(io))).unwrap_or(Err(Gone::Broken))
}

fn ask_kernel<I: Io>(io: &I) -> Result<(), Gone> {
    if !io.takes_pipes() {
        // What has arrived may be for the layer in between, as a ticket for TLS is; the end is the end for all.
        return if streams::has_ended(io) {
            Err(Gone::Ended)
        } else {
            Ok(())
        };
    }
    match streams::peek(io) {
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
    state: AtomicU8,
    is_called: AtomicBool,
    /// Its connection has lived long enough.
    is_old: AtomicBool,
}

/// The pool has read, and nothing has happened since.
const QUIET: u8 = 0;

/// Something has.
const STIRRED: u8 = 1;

/// Somebody has the connection: whatever happens is for that one, though it may still be the watch that is woken.
const LENT: u8 = 2;

impl Watch {
    pub(super) fn new(target: usize, number: u64, calls: &Arc<Calls>) -> Arc<Self> {
        Arc::new(Self {
            target,
            number,
            calls: Arc::clone(calls),
            state: AtomicU8::new(QUIET),
            is_called: AtomicBool::new(false),
            is_old: AtomicBool::new(false),
        })
    }

    /// To be said before the read that is to wake it.
    pub(super) fn begin(&self) {
        self.state
            .store(QUIET, Ordering::Release);
    }

    /// Somebody has the connection from now on, until it [begins](Self::begin) again.
    pub(super) fn rest(&self) {
        self.state
            .store(LENT, Ordering::Release);
    }

    pub(super) fn is_lent(&self) -> bool {
        self.state.load(Ordering::Acquire) == LENT
    }

    /// Whether it was woken since it began, by one who may have looked for the connection before it was where it is
    /// now.
    pub(super) fn has_stirred(&self) -> bool {
        self.state.load(Ordering::Acquire) == STIRRED
    }

    pub(super) fn retire(&self) {
        self.is_old
            .store(true, Ordering::Release);
    }

    pub(super) fn is_old(&self) -> bool {
        self.is_old.load(Ordering::Acquire)
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
        // The first time since it began: whoever has stirred already has called, and is looked at after that.
        let first =
            self.state
                .compare_exchange(QUIET, STIRRED, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            self.call();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_calls_once_for_whatever_happens_and_not_while_its_connection_is_lent() {
        let calls = Arc::default();
        let watch = Watch::new(0, 1, &calls);
        let waker = Waker::from(Arc::clone(&watch));

        watch.begin();
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert!(watch.has_stirred());
        assert_eq!(calls.take(9).0.len(), 1);

        watch.rest();
        waker.wake_by_ref();
        assert!(watch.is_lent() && !watch.has_stirred());
        assert_eq!(calls.take(9).0.len(), 0);

        watch.begin();
        waker.wake_by_ref();
        assert_eq!(calls.take(9).0.len(), 1);
    }
}
