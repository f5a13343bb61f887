//! Why a connection is gone, and why somebody has got none.

use std::time::Duration;

use crate::base::error::BoxError;

macro_rules! labelled {
    ($( #[$doc:meta] )* $name:ident { $( #[$each:meta] $case:ident = $label:literal, )* }) => {
        $( #[$doc] )*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum $name {
            $( #[$each] $case, )*
        }

        impl $name {
            pub(super) const LABELS: &'static [&'static str] = &[$( $label, )*];
        }
    };
}

labelled! {
    /// Why a connection of the pool was closed.
    Gone {
        /// It had lived long enough.
        Age = "age",
        /// Its stream failed, or came to its end, while it was in use.
        Broken = "broken",
        /// The pool was closed.
        Closed = "closed",
        /// Whoever had it did not give it back.
        Dropped = "dropped",
        /// Its peer ended it while it was idle.
        Ended = "ended",
        /// It was idle, and made room for a connection to another target.
        Evicted = "evicted",
        /// It had been idle long enough.
        Idle = "idle",
        /// The pool was told to begin anew.
        Renewed = "renewed",
        /// Its peer sent what nobody had asked for.
        Stray = "stray",
        /// There were enough of them.
        Surplus = "surplus",
    }
}

labelled! {
    /// How a get ended.
    Outcome {
        /// With a connection that was idle.
        Idle = "idle",
        /// With one that somebody gave back meanwhile.
        Late = "late",
        /// With one that was dialled for it.
        Dialled = "dialled",
        /// The target is not dialled for a while.
        Backoff = "backoff",
        /// The pool is closed.
        Closed = "closed",
        /// The dial failed.
        Connect = "connect",
        /// Time was up.
        Elapsed = "elapsed",
        /// Too many waited.
        QueueFull = "queue_full",
        /// The caller went away.
        Left = "left",
    }
}

/// Why somebody has got no connection.
#[derive(Debug)]
pub(super) enum Refusal {
    Backoff { failures: u32, left: Duration },
    Closed,
    Connect(BoxError),
    Elapsed { connecting: bool },
    QueueFull { bound: usize },
}
