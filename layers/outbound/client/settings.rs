use std::time::Duration;

use crate::{base::error::ConfigError, outbound::client::RetryBudget};

/// How a [`Client`](super::Client) calls and connects; each setter says what it bounds.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(super) in_flight: usize,
    pub(super) call: Duration,
    pub(super) connect: Duration,
    pub(super) high_water: usize,
    pub(super) write_stall: Duration,
    pub(super) silence: Duration,
    pub(super) max_payload: usize,
    pub(super) first_pause: Duration,
    pub(super) longest_pause: Duration,
    pub(super) fail_fast: bool,
    pub(super) keep_connected: bool,
    pub(super) retries: RetryBudget,
    pub(super) service: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            in_flight: IN_FLIGHT,
            call: CALL,
            connect: CONNECT,
            high_water: HIGH_WATER,
            write_stall: WRITE_STALL,
            silence: SILENCE,
            max_payload: MAX_PAYLOAD,
            first_pause: FIRST_PAUSE,
            longest_pause: LONGEST_PAUSE,
            fail_fast: false,
            keep_connected: false,
            retries: RetryBudget::default(),
            service: String::new(),
        }
    }
}

impl Settings {
    /// Up to `calls` are in flight at once; further ones wait for a place, the first to come first. Default: 64. More
    /// than 1,048,576 are taken as that.
    #[must_use]
    pub fn in_flight(mut self, calls: usize) -> Self {
        self.in_flight = calls;
        self
    }

    /// A call must be answered this long after it was made, all waits included, or by the
    /// [current](crate::Deadline::current) deadline if that is earlier. [`Duration::MAX`] is no limit. Default: 30 s.
    #[must_use]
    pub fn call_deadline(mut self, limit: Duration) -> Self {
        self.call = limit;
        self
    }

    /// An attempt to connect may take this long, whoever waits for it. Default: 10 s.
    #[must_use]
    pub fn connect_deadline(mut self, limit: Duration) -> Self {
        self.connect = limit;
        self
    }

    /// While more than this many bytes of calls are encoded and not written, no further call is encoded. A connection
    /// thus queues this much, one call, and 20 bytes for each call in flight that is given up. Default: 64 KiB.
    #[must_use]
    pub fn high_water(mut self, bytes: usize) -> Self {
        self.high_water = bytes;
        self
    }

    /// A peer that takes no byte for this long, while there are some for it, has its connection reset. Default: 30 s.
    #[must_use]
    pub fn write_stall(mut self, limit: Duration) -> Self {
        self.write_stall = limit;
        self
    }

    /// A peer that has said nothing at all for this long, and up to twice as long, while calls waited for it, gets no
    /// more calls on that connection: they go to a new one, and those in flight wait on for their own deadlines. So a
    /// peer that has vanished without a word, which TCP may take a quarter of an hour to notice, costs the calls of some
    /// seconds; one that is only slow costs a connection. [`Duration::MAX`] waits for ever. Default: 10 s.
    #[must_use]
    pub fn silence(mut self, limit: Duration) -> Self {
        self.silence = limit;
        self
    }

    /// The longest payload of a call and of a reply, in the RPC framing. A reply that is longer fails its call alone.
    /// Default: 1 MiB.
    #[must_use]
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = bytes;
        self
    }

    /// After a connection could not be made, the next attempt waits: `first` after one failure, twice as long after
    /// each further one, `longest` at the most, of which a half is left to chance. The first reply on a new connection
    /// ends it. Default: 50 ms to 5 s.
    #[must_use]
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        (self.first_pause, self.longest_pause) = (first, longest);
        self
    }

    /// Calls fail as soon as it is known that there is no connection: those that wait when an attempt fails, and those
    /// that are made before the next one is due. For a client beside others that may do better.
    #[must_use]
    pub fn fail_fast(mut self) -> Self {
        self.fail_fast = true;
        self
    }

    /// Calls wait for a connection, for as long as their deadline lets them, however often an attempt fails. The
    /// default: where there is one peer, to fail early would make a moment's outage one of a whole pause.
    #[must_use]
    pub fn wait_for_connection(mut self) -> Self {
        self.fail_fast = false;
        self
    }

    /// The client connects as soon as it is made, and again when a connection is lost, whether it is called or not;
    /// and it is not ready while it knows of no peer that answers. For balancing, where it is the default: an endpoint
    /// that is down is never chosen.
    #[must_use]
    pub fn keep_connected(mut self, on: bool) -> Self {
        self.keep_connected = on;
        self
    }

    /// How many calls are made a second time by themselves. Default: [`RetryBudget::default`].
    #[must_use]
    pub fn retries(mut self, budget: RetryBudget) -> Self {
        self.retries = budget;
        self
    }

    /// The `service` label of the metrics. Default: empty.
    #[must_use]
    pub fn service(mut self, name: impl Into<String>) -> Self {
        self.service = name.into();
        self
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (setting, size) in [
            ("in_flight", self.in_flight),
            ("high_water", self.high_water),
        ] {
            if size == 0 {
                return Err(ConfigError::zero(setting));
            }
        }
        if u32::try_from(self.high_water).is_err() {
            return Err(ConfigError::new("high_water", "must be below 4 GiB"));
        }
        for (setting, limit) in [
            ("call_deadline", self.call),
            ("connect_deadline", self.connect),
            ("write_stall", self.write_stall),
            ("silence", self.silence),
            ("backoff", self.first_pause),
        ] {
            if limit.is_zero() {
                return Err(ConfigError::zero(setting));
            }
        }
        if self.longest_pause < self.first_pause {
            let problem = "must not be longer at first than at the most";
            return Err(ConfigError::new("backoff", problem));
        }
        Ok(())
    }

    /// How many calls may be in flight.
    pub(super) fn places(&self) -> usize {
        self.in_flight.min(MOST_IN_FLIGHT)
    }
}

/// As deep as servers commonly let a connection go: more would only wait there.
const IN_FLIGHT: usize = 64;

/// What the number of a call's seat has room for in its id.
pub(super) const MOST_IN_FLIGHT: usize = 1 << 20;

/// As the deadline of a handler.
const CALL: Duration = Duration::from_secs(30);

/// Some lost packets and a handshake.
const CONNECT: Duration = Duration::from_secs(10);

/// One large write, as for replies.
const HIGH_WATER: usize = 64 * 1024;

/// As the write stall of `deadline`.
const WRITE_STALL: Duration = Duration::from_secs(30);

/// Longer than most calls take, and what a caller may lose without despair.
const SILENCE: Duration = Duration::from_secs(10);

/// Above what calls commonly are, below what hurts.
const MAX_PAYLOAD: usize = 1 << 20;

/// Some round trips: a server that was restarted is there again soon.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// What an operator finds acceptable between "it is up" and "it is called".
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
