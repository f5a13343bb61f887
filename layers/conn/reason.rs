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
    /// The peer opens connections faster than it may.
    ConnectRate = "connect_rate",
    /// It was still open when the drain's time was up.
    Cut = "cut",
    /// Its first bytes are of no protocol that is served here, or did not say of which in time.
    Detect = "detect",
    /// It left, in order, because the server drains.
    Drain = "drain",
    /// The request-level service failed, and there was no reply to send for it.
    Error = "error",
    /// Its network is not let in.
    Filter = "filter",
    /// No byte came within the first-byte deadline, or while a PROXY header or a handshake was due.
    FirstByte = "first_byte",
    /// One side of a tunnel had ended, and nothing came from the other within the half-close deadline.
    HalfClose = "half_close",
    /// A handler took longer than the handler deadline.
    Handler = "handler",
    /// A TLS handshake was begun and not finished in time.
    Handshake = "handshake",
    /// A TLS handshake failed.
    HandshakeFailed = "handshake_failed",
    /// Too many handshakes were under way.
    HandshakeLimit = "handshake_limit",
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
    /// Its peer has too many connections open.
    PerPeerLimit = "per_peer_limit",
    /// The process is short of descriptors, memory or time.
    Pressure = "pressure",
    /// The peer broke the protocol.
    Protocol = "protocol",
    /// What should be a PROXY header is none, or comes from where none may come from.
    ProxyHeader = "proxy_header",
    /// A PROXY header was begun and not finished in time.
    ProxyTimeout = "proxy_timeout",
    /// It was idle, and made room when the process was short of something.
    Reclaimed = "reclaimed",
    /// A reply was not written within the reply deadline.
    Reply = "reply",
    /// A request was not complete within the request deadline.
    Request = "request",
    /// The peer reset the connection, or it broke.
    Reset = "reset",
    /// The service ended it of its own accord, with or without an error. (Also what a peer's end comes to in a
    /// stack that does not look at the stream: `peer` and `reset` are seen by meter, deadline and frame.)
    Served = "served",
    /// What it was to be forwarded to could not be reached, or broke.
    Upstream = "upstream",
    /// No byte could be written for the write-stall timeout.
    WriteStall = "write_stall",
}

impl CloseReason {
    /// Whether the close is a reset: of a connection that is refused before anything is read, of a peer that
    /// will not read, for whom what is unsent is not worth keeping, or of one side of a tunnel whose other side did not
    /// end in order either.
    #[must_use]
    pub fn resets(self) -> bool {
        self.is_refusal()
            || matches!(
                self,
                Self::Cut
                    | Self::HalfClose
                    | Self::MinRate
                    | Self::Reply
                    | Self::Upstream
                    | Self::WriteStall
            )
    }

    /// Whether the connection was turned away by a limit or rule before it was served.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::ConnectRate
                | Self::Filter
                | Self::HandshakeLimit
                | Self::Limit
                | Self::PerPeerLimit
                | Self::Pressure
        )
    }

    /// Whether the reason is a peer's or our own fault, and worth more than a debug line.
    ///
    /// A handshake that fails is mostly a probe's: the layer itself tells those apart that are worth a line.
    #[must_use]
    pub fn is_fault(self) -> bool {
        !matches!(
            self,
            Self::Age
                | Self::Drain
                | Self::HandshakeFailed
                | Self::Idle
                | Self::Peer
                | Self::Reclaimed
                | Self::Served
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
