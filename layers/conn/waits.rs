//! What a connection is waiting for, as far as anybody times it.
//!
//! The stream's owner and the crossing write here; the [`Watch`](crate::conn::watch::Watch) reads, when the
//! connection parks. Writing is a plain store: no clock, no timer, no lock. One task owns the stream, so a
//! counter has one writer; relaxed order is enough, since reader and writer are the same task, or meet
//! through the waker.

use std::{
    sync::{
        OnceLock,
        atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
            fence,
        },
    },
    task::Waker,
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use crate::{
    base::time::{FOREVER, later},
    conn::{ConnInfo, strain::Strained},
};

/// A point in time as nanoseconds after the accept, so that it fits an atomic.
pub(crate) type Stamp = u64;

/// Later than any stamp.
pub(crate) const NEVER: Stamp = u64::MAX;

/// One connection's waits. See the module.
#[derive(Debug)]
pub(crate) struct Waits {
    /// Bytes moved in each direction: progress.
    moved_in: AtomicU64,
    moved_out: AtomicU64,
    /// The number of the request that is arriving or was last taken.
    pub(crate) turn: AtomicU64,
    /// A read is pending.
    pub(crate) reading: Flag,
    /// A write, flush or shutdown is pending.
    pub(crate) blocked: Flag,
    /// How many replies have bytes ready that the peer has given no room for, by a window of the protocol's own.
    held_back: AtomicU32,
    /// How often it has given such room, or has one of them gone on. (Both may have several writers.)
    room_given: AtomicU32,
    /// A request is being worked on.
    pub(crate) busy: Flag,
    /// A request has come in part.
    pub(crate) receiving: Flag,
    /// A crossing sees to it itself that a late request ends in order.
    pub(crate) driven: Flag,
    /// The peer waits for an answer, and there is a deadline for that.
    pub(crate) asked: Flag,
    /// It is ready, and whoever is to serve it has not taken it yet.
    pub(crate) unclaimed: Flag,
    /// There is a watch that looks here.
    pub(crate) watched: Flag,
    /// When the watch looks next without being told; never if it does not, or is looking now.
    looks_at: By,
    /// That is for a tick: what begins until then it finds as early as it would if it were told.
    ticking: Flag,
    /// A late reply is for the crossing to count, and no end.
    pub(crate) spares_replies: Flag,
    /// How much sooner some limits pass.
    pub(crate) strain: Strained,
    pub(crate) suspended: AtomicU32,
    /// What is late, for the crossing to end in order.
    late: AtomicU8,
    /// Points in time by which the present step must be done.
    pub(crate) request_by: By,
    pub(crate) handler_by: By,
    pub(crate) reply_by: By,
    seldom: OnceLock<Box<Seldom>>,
}

/// What most connections never have.
#[derive(Debug, Default)]
struct Seldom {
    /// Other tasks than the connection's own that wait on its stream, which has been given away.
    reader: AtomicWaker,
    writer: AtomicWaker,
    /// The absolute deadlines that a handler set for its own reads and writes.
    read: Absolute,
    write: Absolute,
    /// Time that was given to what is under way, in nanoseconds, and that the crossing has not taken yet.
    extra: AtomicU64,
}

/// A point in time by which a read or write must be done, and whether that has passed.
#[derive(Debug, Default)]
struct Absolute {
    by: By,
    late: Flag,
}

impl Waits {
    pub(crate) fn new() -> Self {
        Self {
            moved_in: AtomicU64::new(0),
            moved_out: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            reading: Flag::default(),
            blocked: Flag::default(),
            held_back: AtomicU32::new(0),
            room_given: AtomicU32::new(0),
            busy: Flag::default(),
            receiving: Flag::default(),
            driven: Flag::default(),
            asked: Flag::default(),
            unclaimed: Flag::default(),
            watched: Flag::default(),
            looks_at: By::default(),
            ticking: Flag::default(),
            spares_replies: Flag::default(),
            strain: Strained::default(),
            suspended: AtomicU32::new(0),
            late: AtomicU8::new(0),
            request_by: By::default(),
            handler_by: By::default(),
            reply_by: By::default(),
            seldom: OnceLock::new(),
        }
    }

    pub(crate) fn moved_in(&self) -> u64 {
        self.moved_in.load(Relaxed)
    }

    pub(crate) fn moved_out(&self) -> u64 {
        self.moved_out.load(Relaxed)
    }

    pub(crate) fn move_in(&self, bytes: u64) {
        self.moved_in
            .store(self.moved_in() + bytes, Relaxed);
    }

    pub(crate) fn move_out(&self, bytes: u64) {
        self.moved_out
            .store(self.moved_out() + bytes, Relaxed);
    }

    /// Waiting for the peer to take something.
    pub(crate) fn is_stalled(&self) -> bool {
        self.blocked.get() || self.held_back.load(Relaxed) > 0
    }

    /// A reply waits for room; whether it is the first that does, of which the watch must be told.
    #[cfg(feature = "http")]
    pub(crate) fn hold_back(&self) -> bool {
        self.held_back.fetch_add(1, Relaxed) == 0
    }

    /// It goes on.
    #[cfg(feature = "http")]
    pub(crate) fn let_go(&self) {
        self.held_back.fetch_sub(1, Relaxed);
        self.give_room(1);
    }

    /// The peer has given room so often.
    #[cfg(feature = "http")]
    pub(crate) fn give_room(&self, times: u64) {
        // Only that it changes counts.
        self.room_given
            .fetch_add(times as u32, Relaxed);
    }

    /// What changes as the peer takes something: bytes that are written while a write waits, else the room that it
    /// gives. (Where only that is missing, what is written is not what waits.)
    pub(crate) fn taken(&self) -> u64 {
        // Told apart by the highest bit, and never the mark of nothing seen.
        if self.blocked.get() {
            self.moved_out() & (u64::MAX >> 1)
        } else {
            u64::from(self.room_given.load(Relaxed)) | !(u64::MAX >> 1)
        }
    }

    /// Waiting for the peer and for nothing else.
    pub(crate) fn is_idle(&self) -> bool {
        self.reading.get() && !self.blocked.get() && !self.busy.get()
    }

    /// Gives what is under way more time.
    pub(crate) fn give_extra(&self, by: Duration) {
        self.seldom()
            .extra
            .fetch_add(plus(0, by), Relaxed);
    }

    /// Takes the time that was given.
    pub(crate) fn take_extra(&self) -> Option<Duration> {
        let extra = &self.seldom.get()?.extra;
        // A look first: it is mostly zero, and taking locks the bus.
        if extra.load(Relaxed) == 0 {
            return None;
        }
        Some(Duration::from_nanos(extra.swap(0, Relaxed)))
    }

    /// The watch begins to look. What others do from now on they must tell it.
    pub(crate) fn begin_look(&self) {
        self.looks_at.clear();
        self.ticking.set(false);
        // With the fences below: either it sees what has begun, or whoever began it sees that it must be told.
        fence(SeqCst);
    }

    /// The watch has looked, and will again by itself.
    pub(crate) fn end_look(&self, again_at: Stamp, ticking: bool) {
        self.ticking.set(ticking);
        self.looks_at.set(again_at);
    }

    /// Whether the watch, on another task, has to be told of a deadline that was just set.
    pub(crate) fn must_tell_of(&self, by: Stamp) -> bool {
        fence(SeqCst);
        self.looks_at.get() > by
    }

    /// The same for a wait that just began, whose time progress would reset.
    pub(crate) fn must_tell(&self) -> bool {
        fence(SeqCst);
        !self.ticking.get()
    }

    /// Remembers a task that reads a stream it was given. It must look once more afterwards.
    pub(crate) fn register_reader(&self, waker: &Waker) {
        self.seldom().reader.register(waker);
        fence(SeqCst);
    }

    /// Remembers a task that writes a stream it was given. It must look once more afterwards.
    pub(crate) fn register_writer(&self, waker: &Waker) {
        self.seldom().writer.register(waker);
        fence(SeqCst);
    }

    /// Wakes whoever waits on a stream that was given away, after something was changed that fails it.
    pub(crate) fn wake_strangers(&self) {
        // With the fences above: either they are found here, or they see the change.
        fence(SeqCst);
        if let Some(seldom) = self.seldom.get() {
            seldom.reader.wake();
            seldom.writer.wake();
        }
    }

    fn seldom(&self) -> &Seldom {
        self.seldom.get_or_init(Box::default)
    }

    fn absolute(&self, way: Way) -> Option<&Absolute> {
        let seldom = self.seldom.get()?;
        Some(match way {
            Way::Read => &seldom.read,
            Way::Write => &seldom.write,
        })
    }

    /// Sets the absolute deadline of all reads or writes, which may have passed already.
    pub(crate) fn set_absolute(&self, way: Way, by: Stamp, late: bool) {
        self.seldom();
        if let Some(absolute) = self.absolute(way) {
            absolute.late.set(late);
            absolute.by.set(by);
        }
    }

    /// When the absolute deadline passes, unless it has.
    pub(crate) fn absolute_by(&self, way: Way) -> Stamp {
        self.absolute(way)
            .map_or(NEVER, |absolute| absolute.by.get())
    }

    /// Whether it has passed.
    pub(crate) fn is_absolutely_late(&self, way: Way) -> bool {
        self.absolute(way)
            .is_some_and(|absolute| absolute.late.get())
    }

    /// Tells the crossing what is late.
    pub(crate) fn set_late(&self, late: Late) {
        self.late.fetch_or(late as u8, Relaxed);
    }

    /// Takes what was told.
    pub(crate) fn take_late(&self, late: Late) -> bool {
        // A look first, as above.
        let late = late as u8;
        self.late.load(Relaxed) & late != 0 && self.late.fetch_and(!late, Relaxed) & late != 0
    }

    /// Nothing is waited for any more.
    pub(crate) fn clear_deadlines(&self) {
        self.receiving.set(false);
        self.request_by.clear();
        self.handler_by.clear();
        self.reply_by.clear();
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.suspended.load(Relaxed) > 0
    }
}

/// What a crossing is told of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Late {
    Request = 1,
    Handler = 2,
    Reply = 4,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Way {
    Read,
    Write,
}

/// A switch with one writer.
#[derive(Debug, Default)]
pub(crate) struct Flag(AtomicBool);

impl Flag {
    pub(crate) fn get(&self) -> bool {
        self.0.load(Relaxed)
    }

    pub(crate) fn set(&self, on: bool) {
        self.0.store(on, Relaxed);
    }
}

/// A point in time, or never.
#[derive(Debug)]
pub(crate) struct By(AtomicU64);

impl Default for By {
    fn default() -> Self {
        Self(AtomicU64::new(NEVER))
    }
}

impl By {
    pub(crate) fn get(&self) -> Stamp {
        self.0.load(Relaxed)
    }

    pub(crate) fn set(&self, at: Stamp) {
        self.0.store(at, Relaxed);
    }

    pub(crate) fn clear(&self) {
        self.set(NEVER);
    }

    pub(crate) fn extend(&self, by: Duration) {
        let at = self.get();
        if at != NEVER {
            self.set(plus(at, by));
        }
    }
}

/// `at + after`; what is too far away is never.
pub(crate) fn plus(at: Stamp, after: Duration) -> Stamp {
    match u64::try_from(after.as_nanos()) {
        Ok(nanos) if after < FOREVER => at.saturating_add(nanos),
        _ => NEVER,
    }
}

impl ConnInfo {
    pub(crate) fn stamp(&self, at: Instant) -> Stamp {
        let since = at.saturating_duration_since(self.accepted_at());
        u64::try_from(since.as_nanos()).unwrap_or(NEVER)
    }

    /// The point in time of a stamp, if it is one that a clock can hold.
    pub(crate) fn instant(&self, stamp: Stamp) -> Option<Instant> {
        if stamp == NEVER {
            return None;
        }
        later(self.accepted_at(), Duration::from_nanos(stamp))
    }
}
