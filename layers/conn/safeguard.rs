use std::{
    fmt,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

macro_rules! safeguards {
    ($( $(#[$doc:meta])* $name:ident = $label:literal, )*) => {
        /// One of the guards that a service in production should have: the checklist, as code.
        ///
        /// A connection marks each that it passes, so that a list says what is there and not what was meant
        /// to be. See [`ServerHandle::checklist`](crate::ServerHandle::checklist).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Safeguard {
            $( $(#[$doc])* $name, )*
        }

        impl Safeguard {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The fixed name in logs and reports.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $( Self::$name => $label, )*
                }
            }
        }
    };
}

safeguards! {
    /// How many connections are open is limited.
    ConnectionLimit = "connection_limit",
    /// The limit of descriptors was raised, and is watched.
    Descriptors = "descriptors",
    /// A drain ends in a time that was set.
    Drain = "drain",
    /// A silent peer is closed.
    FirstByte = "first_byte",
    /// A frame has a longest length.
    FrameCap = "frame_cap",
    /// No handler blocks for ever.
    Handler = "handler",
    /// A connection without requests is closed.
    Idle = "idle",
    /// Connections, bytes and ends are counted.
    Meter = "meter",
    /// How many connections of one peer are open is limited.
    PerPeerLimit = "per_peer_limit",
    /// A reply must be written in time.
    Reply = "reply",
    /// A request must be complete in time.
    Request = "request",
    /// A peer that takes nothing is closed.
    WriteStall = "write_stall",
}

impl fmt::Display for Safeguard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A set of safeguards.
#[derive(Debug, Default)]
pub(crate) struct Safeguards(AtomicU16);

impl Safeguards {
    /// Adds one. Only the owner of a connection does, so a load and a store are enough and no bus is locked.
    pub(crate) fn mark(&self, safeguard: Safeguard) {
        let marked = self.0.load(Relaxed) | bit(safeguard);
        self.0.store(marked, Relaxed);
    }

    /// The connection ends before its service: of what is behind that it could not pass anything.
    pub(crate) fn cut_short(&self) {
        let marked = self.0.load(Relaxed) | CUT_SHORT;
        self.0.store(marked, Relaxed);
    }

    pub(crate) fn is_cut_short(&self) -> bool {
        self.0.load(Relaxed) & CUT_SHORT != 0
    }

    /// Adds all of another set, which many may do at once.
    pub(crate) fn merge(&self, other: &Self) {
        let theirs = other.0.load(Relaxed) & !CUT_SHORT;
        // A look first: after the first few connections there is nothing new.
        if self.0.load(Relaxed) & theirs != theirs {
            self.0.fetch_or(theirs, Relaxed);
        }
    }

    pub(crate) fn has(&self, safeguard: Safeguard) -> bool {
        self.0.load(Relaxed) & bit(safeguard) != 0
    }
}

fn bit(safeguard: Safeguard) -> u16 {
    1 << safeguard as u8
}

/// No safeguard's.
const CUT_SHORT: u16 = 1 << 15;
const _: () = assert!(Safeguard::ALL.len() < 16, "there are more guards than bits");
