//! What a link asks of the table, and tells it.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    base::time::now as clock,
    outbound::{
        budget::Spent,
        client::{
            CallError, Disconnected, Settings, SharedError,
            retry::pause,
            table::{
                Answer, End, Fate, Lost, MOST_MOVES, Mailbox, NONE, Slot, Stage, State, Table,
                Taken, Todo, Told,
            },
        },
    },
};

impl<Q, R> Table<Q, R> {
    /// A link that is to connect, whether anybody calls or not.
    pub(crate) fn start(&mut self) -> Todo {
        let mut todo = Todo::default();
        if let Stage::Down = self.stage {
            let link = self.links.insert(Mailbox::default());
            self.stage = Stage::Connecting(link);
            todo.start = Some(link);
        }
        todo
    }

    /// When it may connect, if not now.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.pause.as_ref().map(|(due, _)| *due)
    }

    /// Ready when nobody needs the link that connects, which is gone then: whoever comes after that starts another.
    pub(crate) fn poll_alone(&mut self, link: usize, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_alone() {
            self.remove(link);
            return Poll::Ready(());
        }
        self.links[link].waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The link has a connection.
    pub(crate) fn connected(&mut self, link: usize, now: Instant) -> Todo {
        self.stage = Stage::Up { link, since: now };
        self.proven = true;
        self.wake_unready()
    }

    fn wake_unready(&self) -> Todo {
        Todo {
            wake: self
                .unready
                .iter()
                .map(|(_, waker)| waker.clone())
                .collect(),
            ..Todo::default()
        }
    }

    /// The link could not connect; with `ends_queue`, that is the last word for those who wait. Whether it is to try
    /// again; if not, it is gone.
    pub(crate) fn not_connected(
        &mut self,
        link: usize,
        error: &SharedError,
        ends_queue: bool,
        now: Instant,
        settings: &Settings,
    ) -> (bool, Todo) {
        self.proven = false;
        self.put_off(error, now, settings);
        let mut todo = Todo::default();
        if ends_queue {
            todo = self.end_queue(error, now);
        }
        let goes_on = self.first != NONE || settings.keep_connected && !self.abandoned;
        if !goes_on {
            self.remove(link);
        }
        (goes_on, todo)
    }

    fn put_off(&mut self, error: &SharedError, now: Instant, settings: &Settings) {
        self.failures = self.failures.saturating_add(1);
        let pause = pause(self.failures, settings.first_pause, settings.longest_pause);
        let due = now.checked_add(pause).unwrap_or(now);
        self.pause = Some((due, SharedError::clone(error)));
    }

    /// Hands out what a link has heard. Returns how many of it nobody waited for.
    pub(crate) fn answer(
        &mut self,
        link: usize,
        answers: impl Iterator<Item = Answer<R>>,
    ) -> (u64, Todo) {
        let (mut late, mut todo) = (0, Todo::default());
        // One that only finishes what it has says nothing of how the next will fare.
        if self.is_up(link) {
            self.failures = 0;
            self.pause = None;
        }
        for heard in answers {
            if !self.holds(link, heard.key, heard.id) {
                late += 1;
                continue;
            }
            let outcome = match heard.answer {
                Ok(reply) => Ok(reply),
                Err(failure) => {
                    self.turn(heard.key, clock());
                    let Slot { times, retried, .. } = self.slots[heard.key];
                    let failed = CallError::failed(failure);
                    Err(failed.after(times).retried(retried))
                }
            };
            todo.wake(self.end(heard.key, outcome));
        }
        (late, todo)
    }

    /// Calls that the link will not bring to an end, the first that was sent first.
    pub(crate) fn lose(
        &mut self,
        link: usize,
        lost: &[Lost],
        error: impl Fn() -> SharedError,
        mut may_retry: impl FnMut() -> bool,
    ) -> Todo {
        let mut todo = Todo::default();
        // The last first, since each goes to the front of the queue.
        for one in lost.iter().rev() {
            if !self.holds(link, one.key, one.id) {
                continue;
            }
            let slot = &mut self.slots[one.key];
            let retried = slot.retried;
            let again = match one.fate {
                Fate::Over => None,
                Fate::Again => (!retried && may_retry()).then_some(true),
                Fate::Moves { in_vain: false } => Some(retried),
                Fate::Moves { in_vain: true } => {
                    slot.moves += 1;
                    // The first time it makes no more of a load than there was.
                    let may = slot.moves == 1 || slot.moves <= MOST_MOVES && may_retry();
                    may.then_some(retried)
                }
            };
            if let Some(retried) = again {
                self.requeue(one.key, retried);
            } else {
                self.turn(one.key, clock());
                let times = self.slots[one.key].times;
                let closed = CallError::closed(error(), one.unsent);
                let error = closed.after(times).retried(retried);
                todo.wake(self.end(one.key, Err(error)));
            }
        }
        let more = self.look_after_queue();
        todo.and(more)
    }

    /// A call that could not even be encoded.
    pub(crate) fn refuse(&mut self, link: usize, key: usize, id: u64, error: CallError) -> Todo {
        let mut todo = Todo::default();
        if self.holds(link, key, id) {
            todo.wake(self.end(key, Err(error)));
        }
        todo
    }

    /// The link takes no more calls.
    pub(crate) fn retire(
        &mut self,
        link: usize,
        end: &End,
        now: Instant,
        settings: &Settings,
    ) -> Todo {
        if !self.is_up(link) {
            return Todo::default();
        }
        self.stage = Stage::Down;
        match end {
            End::Idle => {}
            End::Leaving { fruitless } => {
                self.proven = false;
                if *fruitless {
                    let error: SharedError = Arc::new(Disconnected::Ended);
                    self.put_off(&error, now, settings);
                }
            }
            End::Lost { error, fruitless } => {
                self.proven = false;
                if *fruitless {
                    self.put_off(error, now, settings);
                }
            }
        }
        if settings.keep_connected && !self.abandoned && !self.proven {
            return self.start();
        }
        self.look_after_queue()
    }

    /// The link is gone.
    pub(crate) fn remove(&mut self, link: usize) {
        self.links.remove(link);
        if let Stage::Connecting(at) | Stage::Up { link: at, .. } = self.stage {
            if at == link {
                self.stage = Stage::Down;
            }
        }
    }

    /// There will be no connection for those that wait: they are told why.
    pub(crate) fn end_queue(&mut self, error: &SharedError, now: Instant) -> Todo {
        let mut todo = Todo::default();
        while self.first != NONE {
            let key = self.first;
            self.turn(key, now);
            self.link_out(key);
            let retried = self.slots[key].retried;
            let error = CallError::connect(SharedError::clone(error)).retried(retried);
            todo.wake(self.end(key, Err(error)));
        }
        todo
    }

    /// The task of a link is gone, whatever it was doing, and the link with it. Unless another takes calls, nobody does
    /// any more: those who wait for the peer find out by a call.
    pub(crate) fn abort(&mut self, link: usize, error: &SharedError, now: Instant) -> Todo {
        self.remove(link);
        // What was in flight the connection has given back, but not a call that it was about to write.
        let mut todo = self.end_held(link, error, now);
        if let Stage::Down = self.stage {
            self.proven = true;
            todo = todo
                .and(self.end_queue(error, now))
                .and(self.wake_unready());
        }
        todo
    }

    /// Ends the calls that a link holds, none of which was sent.
    fn end_held(&mut self, link: usize, error: &SharedError, now: Instant) -> Todo {
        let of_it = |(key, slot): (usize, &Slot<Q, R>)| {
            matches!(slot.state, State::Held { link: by, .. } if by == link).then_some(key)
        };
        let held: Vec<_> = self
            .slots
            .iter()
            .filter_map(of_it)
            .collect();
        let mut todo = Todo::default();
        for key in held {
            self.turn(key, now);
            let Slot { times, retried, .. } = self.slots[key];
            let closed = CallError::closed(SharedError::clone(error), true);
            let error = closed.after(times).retried(retried);
            todo.wake(self.end(key, Err(error)));
        }
        todo
    }

    /// A link for what waits in the queue: one that is woken, or a new one.
    pub(crate) fn look_after_queue(&mut self) -> Todo {
        let mut todo = Todo::default();
        if self.first == NONE {
            return todo;
        }
        match self.stage {
            Stage::Up { link, .. } => todo.wake(self.links[link].waker.take()),
            Stage::Connecting(_) => {}
            Stage::Down => return self.start(),
        }
        todo
    }

    /// Whether the link is the one that takes calls.
    fn is_up(&self, link: usize) -> bool {
        matches!(self.stage, Stage::Up { link: up, .. } if up == link)
    }
}

impl<Q: Clone, R> Table<Q, R> {
    /// What there is for a link to do: calls that are given up, or else, with an id, the next call under it.
    pub(crate) fn hear(
        &mut self,
        link: usize,
        id: Option<u64>,
        now: &mut Option<Instant>,
        cx: &mut Context<'_>,
    ) -> (Told<Q>, Todo) {
        let mailbox = &mut self.links[link];
        match &mut mailbox.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => mailbox.waker = Some(cx.waker().clone()),
        }
        let given_up = std::mem::take(&mut mailbox.given_up);
        let (mut taken, mut todo) = (None, Todo::default());
        let is_up = self.is_up(link);
        // An id names a seat that is free, and others are about to be.
        if let Some(id) = id.filter(|_| is_up && given_up.is_empty()) {
            (taken, todo) = self.take(link, id, now);
        }
        let told = Told {
            given_up,
            taken,
            has_more: is_up && self.first != NONE,
            alone: self.is_alone(),
        };
        (told, todo)
    }

    fn take(
        &mut self,
        link: usize,
        id: u64,
        now: &mut Option<Instant>,
    ) -> (Option<Taken<Q>>, Todo) {
        let mut todo = Todo::default();
        while self.first != NONE {
            let key = self.first;
            let now = *now.get_or_insert_with(clock);
            let by = self.slots[key].deadline.instant();
            let left = by.map(|by| by.saturating_duration_since(now));
            self.link_out(key);
            let phase = self.turn(key, now);
            if left == Some(Duration::ZERO) {
                // Nothing is sent that nobody has time for.
                let slot = &self.slots[key];
                let spent = Spent::new(phase, slot.times, slot.limit);
                todo.wake(self.end(key, Err(CallError::spent(spent))));
                continue;
            }
            let slot = &mut self.slots[key];
            slot.state = State::Held { link, id };
            let call = slot.call.clone();
            return (Some(Taken { key, call, left }), todo);
        }
        (None, todo)
    }
}
