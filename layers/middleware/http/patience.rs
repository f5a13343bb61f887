//! How long a handler is waited for.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    base::time::now,
    conn::{Ambient, ConnInfo, Deadline, Entered},
    middleware::http::{exchange::Exchange, settings::Http},
};

pin_project! {
    /// The deadline of one handler. It begins when the handler first waits, and moves as the handler, or somebody for
    /// the whole connection, says.
    #[derive(Debug)]
    pub(super) struct Patience {
        due: Ambient,
        // Since when it waits; most do not.
        since: Option<Instant>,
        #[pin]
        timer: Option<Sleep>,
        // What the connection had been given when it was last asked.
        given: u64,
        // The deadlines were stopped when it was last asked.
        stopped: bool,
        // Time that it has had meanwhile, in advance.
        lent: Duration,
    }
}

impl Patience {
    pub(super) fn new(settings: &Http) -> Self {
        Self {
            due: settings.handler_due(),
            since: None,
            timer: None,
            given: 0,
            stopped: false,
            lent: Duration::ZERO,
        }
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// What the handler finds while it is polled.
    pub(super) fn enter(&self) -> Entered {
        let ambient = Ambient::enter();
        ambient.set(self.due);
        ambient
    }

    /// What it has left.
    pub(super) fn leave(self: Pin<&mut Self>, ambient: &Entered) {
        *self.project().due = ambient.get();
    }

    /// The handler waits: ready if it is late.
    pub(super) fn poll_late(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        settings: &Http,
        exchange: &Exchange,
        info: &ConnInfo,
    ) -> Poll<()> {
        let mut this = self.project();
        let since = *this.since.get_or_insert_with(|| {
            *this.given = exchange.given(info);
            now()
        });
        *this.due = this.due.from(since);
        loop {
            let due = this.due.deadline();
            let Some(by) = due.and_then(Deadline::instant) else {
                return Poll::Pending;
            };
            match this.timer.as_mut().as_pin_mut() {
                None => this.timer.set(Some(sleep_until(by))),
                Some(timer) if timer.deadline() != by => timer.reset(by),
                Some(_) => {}
            }
            if let Some(timer) = this.timer.as_mut().as_pin_mut() {
                ready!(timer.poll(cx));
            }
            let stopped = info.waits.is_suspended();
            let was_stopped = std::mem::replace(this.stopped, stopped);
            let mut more = exchange.given_since(this.given, info);
            if more.is_zero() {
                // For how long they were stopped the connection is told once they run again, or a moment after.
                if !stopped && !was_stopped {
                    return Poll::Ready(());
                }
                more = settings.handler_tick();
                *this.lent += more;
            } else {
                let repaid = more.min(*this.lent);
                more -= repaid;
                // What it has had too much, at most that moment, is its own.
                *this.lent = if stopped {
                    *this.lent - repaid
                } else {
                    Duration::ZERO
                };
            }
            *this.due = this.due.later(more);
        }
    }

    /// It is late, and goes on for as long as it likes.
    pub(super) fn spare(self: Pin<&mut Self>) {
        let this = self.project();
        *this.due = this.due.at(Deadline::NEVER);
    }
}
