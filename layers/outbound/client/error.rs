use std::{error::Error, fmt, io, sync::Arc, time::Duration};

use crate::{
    base::error::{BoxError, NoTimer},
    middleware::frame::{RpcCode, RpcFailure},
    outbound::budget::{Phase, Spent},
};

/// An error that several calls have in common.
pub type SharedError = Arc<dyn Error + Send + Sync>;

/// Why a call has no reply.
///
/// What the peer says of its failure is told here and is no [source](Error::source) of it: a handler that fails because
/// its own call did, and lets that be its error, does not pass on as its own what somebody else said of himself, that
/// nothing was begun, say. [`to_failure`](Self::to_failure) makes of it what may be passed on.
#[derive(Debug)]
pub struct CallError {
    told: Box<Told>,
}

#[derive(Debug)]
struct Told {
    cause: CallCause,
    phase: Phase,
    times: [Duration; 3],
    never_started: bool,
    retried: bool,
}

/// What a [`CallError`] comes from.
#[derive(Debug)]
#[non_exhaustive]
pub enum CallCause {
    /// The time was up: the caller's, or the client's own [limit](super::Settings::call_deadline).
    Spent(Spent),
    /// The peer says that it failed, or that it would not begin, and why.
    Failed(RpcFailure),
    /// There is no connection: what the connector said.
    Connect(SharedError),
    /// The connection ended before the reply came: [`Disconnected`].
    Closed(SharedError),
    /// The call does not fit a frame; nothing was sent.
    Encode(BoxError),
    /// There is no runtime that could keep time and connect; nothing was sent.
    NoTimer(NoTimer),
}

impl CallError {
    pub(super) fn new(cause: CallCause, phase: Phase) -> Self {
        let never_started = match &cause {
            CallCause::Spent(spent) => spent.never_started(),
            CallCause::Failed(failure) => failure.was_never_started(),
            CallCause::Connect(_) | CallCause::Encode(_) | CallCause::NoTimer(_) => true,
            CallCause::Closed(_) => false,
        };
        Self {
            told: Box::new(Told {
                cause,
                phase,
                times: [Duration::ZERO; 3],
                never_started,
                retried: false,
            }),
        }
    }

    pub(super) fn spent(spent: Spent) -> Self {
        let (phase, times) = (spent.phase(), spent.times());
        Self::new(CallCause::Spent(spent), phase).after(times)
    }

    pub(super) fn failed(failure: RpcFailure) -> Self {
        Self::new(CallCause::Failed(failure), Phase::Calling)
    }

    pub(super) fn connect(error: SharedError) -> Self {
        Self::new(CallCause::Connect(error), Phase::Connecting)
    }

    /// The connection ended; `unsent` if not a byte of the call can have reached the peer.
    pub(super) fn closed(error: SharedError, unsent: bool) -> Self {
        let mut closed = Self::new(CallCause::Closed(error), Phase::Calling);
        closed.told.never_started = unsent;
        closed
    }

    /// The same, of a call that was so long in each phase.
    pub(super) fn after(mut self, times: [Duration; 3]) -> Self {
        self.told.times = times;
        self
    }

    /// The same, of a call that was made once more.
    pub(super) fn retried(mut self, retried: bool) -> Self {
        self.told.retried = retried;
        self
    }

    /// What it comes from.
    #[must_use]
    pub fn cause(&self) -> &CallCause {
        &self.told.cause
    }

    /// How far the call had come.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.told.phase
    }

    /// How long the call was in `phase`, as far as it came to be made.
    #[must_use]
    pub fn spent_in(&self, phase: Phase) -> Duration {
        self.told.times[phase as usize]
    }

    /// Whether it is certain that nobody has begun with the call, so that it may be made again, whatever it does.
    #[must_use]
    pub fn never_started(&self) -> bool {
        self.told.never_started
    }

    /// Whether it is worth making the call again elsewhere: it was [never started](Self::never_started), and neither
    /// its time nor the call itself is to blame.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match &self.told.cause {
            CallCause::Failed(failure) => failure.is_retryable(),
            CallCause::Connect(_) | CallCause::Closed(_) => self.told.never_started,
            CallCause::Spent(_) | CallCause::Encode(_) | CallCause::NoTimer(_) => false,
        }
    }

    /// Whether the client had made it a second time by itself already; it never does so a third time.
    #[must_use]
    pub fn was_retried(&self) -> bool {
        self.told.retried
    }

    /// What the peer said, if it is the peer that failed.
    #[must_use]
    pub fn failure(&self) -> Option<&RpcFailure> {
        match &self.told.cause {
            CallCause::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    /// What a handler may tell its own caller, whose request this call was made for: what went wrong, where the time went,
    /// and never that nothing was begun, since the handler was.
    #[must_use]
    pub fn to_failure(&self) -> RpcFailure {
        match &self.told.cause {
            CallCause::Spent(spent) => RpcFailure::new(RpcCode::Spent, spent.to_string()),
            CallCause::Failed(failure) => match failure.code() {
                // The peer was the one that spent it, and may not have had the time to say more.
                RpcCode::Spent | RpcCode::Late if failure.text().is_empty() => {
                    let spent = Spent::new(Phase::Calling, self.told.times, None);
                    RpcFailure::new(RpcCode::Spent, spent.to_string())
                }
                RpcCode::Spent | RpcCode::Late => {
                    RpcFailure::new(RpcCode::Spent, failure.text().to_owned())
                }
                _ => RpcFailure::new(RpcCode::Failed, failure.text().to_owned()),
            },
            _ => RpcFailure::new(RpcCode::Failed, self.to_string()),
        }
    }

    /// Whether it was time that ran out, whoever found it so: the client, by the caller's deadline or by its own
    /// [limit](super::Settings::call_deadline), or the peer, which says so of the time that it was given, and of what it
    /// gave to a call of its own. The caller may have some left: [`Deadline::current`](crate::Deadline::current) knows.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        match &self.told.cause {
            CallCause::Spent(_) => true,
            CallCause::Failed(failure) => failure.code() == RpcCode::Spent,
            _ => false,
        }
    }

    /// Where the time went, if it was the client that found it [used up](Self::is_spent).
    #[must_use]
    pub fn budget(&self) -> Option<&Spent> {
        match &self.told.cause {
            CallCause::Spent(spent) => Some(spent),
            _ => None,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.told.cause {
            CallCause::Spent(_) => f.write_str("call not done in time"),
            CallCause::Failed(failure) if self.is_spent() => {
                write!(f, "call not done in time at the peer: {failure}")
            }
            CallCause::Failed(failure) => write!(f, "call failed at the peer: {failure}"),
            CallCause::Connect(_) => f.write_str("no connection for the call"),
            CallCause::Closed(_) => f.write_str("connection ended before the reply"),
            CallCause::Encode(_) => f.write_str("call does not fit a frame"),
            CallCause::NoTimer(_) => f.write_str("no runtime for the call"),
        }?;
        f.write_str(if self.told.retried {
            " (second attempt)"
        } else {
            ""
        })
    }
}

impl Error for CallError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.told.cause {
            CallCause::Spent(error) => Some(error),
            CallCause::Failed(_) => None,
            CallCause::Connect(error) | CallCause::Closed(error) => Some(&**error),
            CallCause::Encode(error) => Some(&**error),
            CallCause::NoTimer(error) => Some(error),
        }
    }
}

/// How a connection of a client ended, while somebody still waited for a reply.
#[derive(Debug)]
#[non_exhaustive]
pub enum Disconnected {
    /// The peer ended it.
    Ended,
    /// The stream failed.
    Io(io::Error),
    /// The peer sent what it may not: no frame, or the answer to what was never asked.
    Protocol(BoxError),
    /// The peer said why it ends the connection.
    Told(RpcFailure),
    /// The peer has taken no byte for this long.
    Stalled(Duration),
    /// The task that drives the connection was ended with its runtime, or what it called panicked.
    Aborted,
}

impl fmt::Display for Disconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("peer closed the connection"),
            Self::Io(_) => f.write_str("stream failed"),
            Self::Protocol(_) => f.write_str("peer broke the protocol"),
            Self::Told(failure) => write!(f, "peer ended the connection: {failure}"),
            Self::Stalled(limit) => write!(f, "peer has taken no byte for {limit:?}"),
            Self::Aborted => f.write_str("task of the connection was ended"),
        }
    }
}

impl Error for Disconnected {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Protocol(error) => Some(&**error),
            Self::Ended | Self::Told(_) | Self::Stalled(_) | Self::Aborted => None,
        }
    }
}

/// The peer answered what it was never asked, or out of turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unasked {
    id: Option<u64>,
}

impl Unasked {
    pub(super) fn new(id: Option<u64>) -> Self {
        Self { id }
    }

    /// The id of what it answered, in a protocol that has ids.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        self.id
    }
}

impl fmt::Display for Unasked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            Some(id) => write!(f, "reply to {id}, which was not asked"),
            None => f.write_str("reply to nothing that was asked"),
        }
    }
}

impl Error for Unasked {}
