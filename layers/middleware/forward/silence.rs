//! How long nothing may move, and the one timer for it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use crate::base::{
    error::ConfigError,
    time::{Timer, later, now},
};

/// How long each wait of a tunnel may take; [`Duration::MAX`] is for ever. The [module](super) says what each covers.
#[derive(Debug, Clone)]
pub struct Timeouts {
    pub(super) connect: Duration,
    pub(super) idle: Duration,
    pub(super) half_close: Duration,
    pub(super) write_stall: Duration,
    dry_run: bool,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: CONNECT,
            idle: IDLE,
            half_close: HALF_CLOSE,
            write_stall: WRITE_STALL,
            dry_run: false,
        }
    }
}

impl Timeouts {
    /// For the upstream to be connected, and whatever the connector does with it. Default: 5 s.
    #[must_use]
    pub fn connect(mut self, limit: Duration) -> Self {
        self.connect = limit;
        self
    }

    /// For silence in both directions, while both are open. Default: 1 h.
    #[must_use]
    pub fn idle(mut self, limit: Duration) -> Self {
        self.idle = limit;
        self
    }

    /// For silence after one side has ended. Default: 60 s.
    #[must_use]
    pub fn half_close(mut self, limit: Duration) -> Self {
        self.half_close = limit;
        self
    }

    /// For a write that cannot move a byte, on either side. Default: 30 s.
    #[must_use]
    pub fn write_stall(mut self, limit: Duration) -> Self {
        self.write_stall = limit;
        self
    }

    /// Only counts what passes, by the same reasons, in `tower_net_dry_run_total`, and leaves the tunnel as it is. Once
    /// something has moved it may pass, and be counted, again. Default: off.
    #[must_use]
    pub fn dry_run(mut self, on: bool) -> Self {
        self.dry_run = on;
        self
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (setting, limit) in [
            ("connect", self.connect),
            ("idle", self.idle),
            ("half_close", self.half_close),
            ("write_stall", self.write_stall),
        ] {
            if limit.is_zero() {
                return Err(ConfigError::zero(setting));
            }
        }
        Ok(())
    }

    /// How often a busy tunnel is looked at: in time for the shortest limit, and to ask a side.
    fn tick(&self) -> Duration {
        let shortest = self
            .idle
            .min(self.half_close)
            .min(self.write_stall);
        (shortest / 16).clamp(Duration::from_millis(1), ASK_AFTER)
    }
}

/// A wait: a number that changes with progress, and how long it may stay the same.
pub(super) type Wait = Option<(u64, Duration)>;

/// Finds out by looking twice whether anything has moved, so that nobody reads the clock when it does: once a tick
/// while things move, and at the very end of a wait once they do not.
#[derive(Debug, Default)]
pub(super) struct Silence {
    marks: [Option<Mark>; WAITS],
    armed: Option<Instant>,
    ticking: bool,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    seen: u64,
    /// `None` once it was spared.
    since: Option<Instant>,
}

impl Silence {
    /// Ready with the first wait that has taken too long. Polled whenever the tunnel parks.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Timer>,
        waits: [Wait; WAITS],
        timeouts: &Timeouts,
    ) -> Poll<usize> {
        for (mark, wait) in self.marks.iter_mut().zip(&waits) {
            if wait.is_none() {
                *mark = None;
            }
        }
        if waits.iter().all(Option::is_none) {
            return Poll::Pending;
        }
        // While it ticks, it looks soon enough for whatever has begun.
        let mut must_look = self.armed.is_none() || (!self.ticking && self.is_news(&waits));
        loop {
            if must_look {
                if let Some(over) = self.look(timer.as_mut(), &waits, timeouts) {
                    return Poll::Ready(over);
                }
            }
            if self.armed.is_none() {
                return Poll::Pending;
            }
            ready!(timer.as_mut().poll(cx));
            self.armed = None;
            must_look = true;
        }
    }

    /// The wait that was found is not found again before something moves.
    pub(super) fn spare(&mut self, which: usize) {
        if let Some(mark) = &mut self.marks[which] {
            mark.since = None;
        }
    }

    fn is_news(&self, waits: &[Wait; WAITS]) -> bool {
        let mut pairs = self.marks.iter().zip(waits);
        pairs.any(|(mark, wait)| wait.map(|(seen, _)| seen) != mark.map(|mark| mark.seen))
    }

    /// Looks at every wait, and arms the timer for the next look, unless one is over: then which.
    fn look(
        &mut self,
        timer: Pin<&mut Timer>,
        waits: &[Wait; WAITS],
        timeouts: &Timeouts,
    ) -> Option<usize> {
        let now = now();
        let mut next: Option<Instant> = None;
        self.ticking = false;
        for (which, wait) in waits.iter().enumerate() {
            let Some((seen, limit)) = *wait else {
                continue;
            };
            let mark = match self.marks[which] {
                Some(mark) if mark.seen == seen => mark,
                _ => {
                    self.ticking = true;
                    Mark {
                        seen,
                        since: Some(now),
                    }
                }
            };
            self.marks[which] = Some(mark);
            let Some(by) = mark
                .since
                .and_then(|since| later(since, limit))
            else {
                continue;
            };
            if by <= now {
                return Some(which);
            }
            next = Some(next.map_or(by, |next| next.min(by)));
        }
        let Some(mut next) = next else {
            self.armed = None;
            return None;
        };
        if self.ticking {
            next = later(now, timeouts.tick()).map_or(next, |tick| next.min(tick));
        }
        // A timer that goes off too early costs one look; moving it costs every time.
        if self
            .armed
            .is_none_or(|armed| next < armed)
        {
            self.armed = Some(next);
            timer.arm(next);
        }
        None
    }
}

/// All of the tunnel, each direction that is blocked, and whether a side is to be asked that nobody hears from.
pub(super) const WAITS: usize = 4;

/// The last of them.
pub(super) const ASK: usize = 3;

/// How often; the first time within two seconds, since a tunnel that was busy is looked at no more often than this. It costs
/// a system call.
pub(super) const ASK_AFTER: Duration = Duration::from_secs(1);

/// Behind a SYN that was lost twice, and what answers it.
const CONNECT: Duration = Duration::from_secs(5);

/// As Envoy has it: without it, connections whose end was lost are there for ever.
const IDLE: Duration = Duration::from_secs(3600);

/// As the kernel keeps an end of its own that waits for the other (`tcp_fin_timeout`).
const HALF_CLOSE: Duration = Duration::from_secs(60);

/// As for every other stream.
const WRITE_STALL: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, pin::pin};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_side_is_asked_soon_however_long_the_limits_are() {
        let limit = Duration::from_secs(3600);
        let timeouts = Timeouts::default()
            .half_close(limit)
            .write_stall(limit);
        let (mut silence, mut timer) = (Silence::default(), pin!(Timer::default()));
        let busy = [Some((1, limit)), None, None, None];
        let polled =
            poll_fn(|cx| Poll::Ready(silence.poll(cx, timer.as_mut(), busy, &timeouts))).await;
        assert!(polled.is_pending());
        let begun = now();

        let waits = [Some((2, limit)), None, None, Some((0, ASK_AFTER))];
        let over = poll_fn(|cx| silence.poll(cx, timer.as_mut(), waits, &timeouts)).await;

        assert_eq!(over, ASK);
        // The timer of the runtime counts milliseconds.
        let after = now().saturating_duration_since(begun);
        let latest = 2 * ASK_AFTER + Duration::from_millis(2);
        assert!((ASK_AFTER..=latest).contains(&after), "{after:?}");
    }
}
