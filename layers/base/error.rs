//! Errors that several rooms share, and how to look inside one.
//!
//! A layer that cannot fail keeps its inner service's error. A layer that can fail has [`BoxError`],
//! holding a public struct of its own room: find it again with [`find`], whatever wrapped it on the way.

use std::{convert::Infallible, error::Error, fmt, io};

/// The error of a stack that can fail in more than one way.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Looks for an error of type `E` in `error` and everything that caused it, `io::Error`s opened as well.
///
/// ```
/// use std::io;
/// use tower_net::{deadline::Elapsed, error::find};
///
/// fn was_a_deadline(error: &io::Error) -> bool {
///     find::<Elapsed>(error).is_some()
/// }
/// # assert!(!was_a_deadline(&io::Error::other("no")));
/// ```
#[must_use]
pub fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // An `io::Error` names its content's source as its own, and so skips the content itself.
        let inside = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match inside {
            Some(inside) => Some(inside),
            None => error.source(),
        };
    }
    None
}

/// Whether `error` only says that the peer has gone: reset, broken pipe, aborted, or an end in the middle.
#[must_use]
pub fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof,
    };
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof
    )
}

/// A setting that cannot work, found when the layer or server is built and not in production.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    setting: &'static str,
    problem: String,
}

impl ConfigError {
    pub(crate) fn new(setting: &'static str, problem: impl Into<String>) -> Self {
        Self {
            setting,
            problem: problem.into(),
        }
    }

    /// The refusal of a limit of zero, which would let nobody in and look like a hang.
    pub(crate) fn zero(setting: &'static str) -> Self {
        Self::new(setting, "must not be zero")
    }

    /// The same for whoever passes a setting on that has another name there.
    #[cfg(feature = "guard")]
    pub(crate) fn of(self, setting: &'static str) -> Self {
        Self { setting, ..self }
    }

    /// The name of the setting, as its setter is called.
    #[must_use]
    pub fn setting(&self) -> &'static str {
        self.setting
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "setting `{}` {}", self.setting, self.problem)
    }
}

impl Error for ConfigError {}

/// For a setting that is of its type already, and takes what can be made into it.
impl From<Infallible> for ConfigError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl From<ConfigError> for io::Error {
    fn from(error: ConfigError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// The runtime has no time driver, so that no deadline could ever pass.
///
/// Build the runtime with `enable_time` or `enable_all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoTimer {
    runtime: bool,
}

impl NoTimer {
    pub(crate) fn no_runtime() -> Self {
        Self { runtime: false }
    }

    pub(crate) fn no_driver() -> Self {
        Self { runtime: true }
    }
}

impl fmt::Display for NoTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.runtime {
            f.write_str("deadlines need a runtime with its time driver enabled")
        } else {
            f.write_str("deadlines need a tokio runtime, and there is none here")
        }
    }
}

impl Error for NoTimer {}

impl From<NoTimer> for io::Error {
    fn from(error: NoTimer) -> Self {
        Self::new(io::ErrorKind::Unsupported, error)
    }
}
