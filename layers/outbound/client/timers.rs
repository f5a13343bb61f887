//! When a peer is given up: it takes nothing any more, or says nothing.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::base::time::{Timer, later, now};

/// How long the peer has taken nothing.
#[derive(Debug)]
pub(super) struct Stall {
    timer: Pin<Box<Timer>>,
    /// What was written when the timer was set.
    written: Option<u64>,
}

impl Stall {
    pub(super) fn new() -> Self {
        Self {
            timer: Box::pin(Timer::default()),
            written: None,
        }
    }

    /// There is nothing that it could take.
    pub(super) fn clear(&mut self) {
        self.written = None;
    }

    /// Ready when it has taken nothing for so long, with so much ever `written` and more to come.
    pub(super) fn poll(&mut self, written: u64, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if self.written != Some(written) {
            let Some(at) = later(now(), limit) else {
                return Poll::Pending;
            };
            self.written = Some(written);
            self.timer.as_mut().arm(at);
        }
        self.timer.as_mut().poll(cx)
    }
}

/// How long the peer has said nothing, while somebody waits for it.
///
/// The timer is set when it has gone off and not before, so that a busy connection sets it once in `limit`. So it takes
/// up to twice as long.
pub(super) struct Silence {
    timer: Pin<Box<Timer>>,
    /// Something was heard, or nothing was waited for, since the timer was set.
    is_broken: bool,
}

impl Silence {
    pub(super) fn new() -> Self {
        Self {
            timer: Box::pin(Timer::default()),
            is_broken: true,
        }
    }

    /// Something was heard, or nobody waits for anything.
    pub(super) fn break_off(&mut self) {
        self.is_broken = true;
    }

    /// Ready when it has said nothing for so long, and somebody waited all that time.
    pub(super) fn poll(&mut self, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.timer.is_armed() {
                ready!(self.timer.as_mut().poll(cx));
                if !self.is_broken {
                    return Poll::Ready(());
                }
            }
            let Some(at) = later(now(), limit) else {
                return Poll::Pending;
            };
            self.is_broken = false;
            self.timer.as_mut().arm(at);
        }
    }
}

/// For the last answers of a peer to which nothing can be written any more. They were under way when that was found out,
/// and so is the end behind them.
pub(super) const HEAR_OUT: Duration = Duration::from_secs(1);
