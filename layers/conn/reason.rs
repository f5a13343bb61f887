use std::fmt;

macro_rules! reasons {
    ($( $(#[$doc:meta])* $name:ident = $label:literal, )*) => {
        /// Why a connection ended: one reason each, the same in errors, metrics, logs and reports.
        ///
        /// The first reason that is given wins. What follows from it (a read that fails because the
        /// connection was cut) never replaces it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum CloseReason {
            $( $(#[$doc])* $name, )*
        }

        impl CloseReason {
            /// Every reason there is, for whoever makes one counter for each.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The fixed name in metrics, logs and reports.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $( Self::$name => $label, )*
                }
            }
        }
    };
}

reasons! {
    /// The task was dropped from outside: the runtime went away, or somebody aborted it.
    Aborted = "aborted",
    /// It reached its maximum age and left, or was cut after the grace.
    Age = "age",
    /// It was still open when the drain's time was up.
    Cut = "cut",
    /// It left, in order, because the server drains.
    Drain = "drain",
    /// The request-level service failed, and there was no reply to send for it.
    Error = "error",
    /// No byte came within the first-byte deadline.
    FirstByte = "first_byte",
    /// A handler took longer than the handler deadline.
    Handler = "handler",
    /// Nothing moved for the idle timeout, between requests.
    Idle = "idle",
    /// The connection limit was reached.
    Limit = "limit",
    /// Bytes moved more slowly than the minimum rate.
    MinRate = "min_rate",
    /// A frame was longer than the limit.
    Oversize = "oversize",
    /// A handler panicked.
    Panic = "panic",
    /// The peer closed the connection.
    Peer = "peer",
    /// The peer broke the protocol.
    Protocol = "protocol",
    /// A reply was not written within the reply deadline.
    Reply = "reply",
    /// A request was not complete within the request deadline.
    Request = "request",
    /// The peer reset the connection, or it broke.
    Reset = "reset",
    /// The service ended it of its own accord, with or without an error. (Also what a peer's end comes to in a
    /// stack that does not look at the stream: `peer` and `reset` are seen by meter, deadline and frame.)
    Served = "served",
    /// No byte could be written for the write-stall timeout.
    WriteStall = "write_stall",
}

impl CloseReason {
    /// Whether the close is a reset: for a peer that will not read, what is unsent is not worth keeping.
    #[must_use]
    pub fn resets(self) -> bool {
        matches!(
            self,
            Self::Cut | Self::Limit | Self::MinRate | Self::Reply | Self::WriteStall
        )
    }

    /// Whether the reason is a peer's or our own fault, and worth more than a debug line.
    #[must_use]
    pub fn is_fault(self) -> bool {
        !matches!(
            self,
            Self::Age | Self::Drain | Self::Idle | Self::Peer | Self::Served
        )
    }

    /// The reason's place in [`ALL`](Self::ALL).
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}
