//! Sheds connections by what the process is short of: descriptors, memory, time, or a figure of your own.
//!
//! **Where it goes**: right below the meter, so that a refusal costs nothing but is counted; above a
//! [`DeadlineLayer`](crate::deadline::DeadlineLayer), which tells it who is idle and whose limits it shortens.
//!
//! ```
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//! use tower_net::{deadline::DeadlineLayer, pressure::{PressureLayer, Thresholds}};
//!
//! let pressure = PressureLayer::new(
//!     Thresholds::default()
//!         .descriptors(0.8, 0.95)
//!         .memory(3 << 30, 4 << 30)
//!         .lag(Duration::from_millis(50), Duration::from_millis(500)),
//! )?;
//! let readings = pressure.handle();
//! let stack = ServiceBuilder::new().layer(pressure).layer(DeadlineLayer::default());
//! assert_eq!(readings.level(), 0.0);
//! # drop(stack);
//! # Ok::<(), tower_net::error::ConfigError>(())
//! ```
//!
//! # What it does, and when
//!
//! Each resource has a *soft* and a *hard* point, and a level between them: zero up to the soft point, one from the hard
//! point on. The highest level counts.
//!
//! | level | what happens | to whom |
//! |---|---|---|
//! | above 0 | the longest idle are told to leave, 32 in a tick, with [`CloseReason::Reclaimed`] | those idle for a second or more |
//! | 1/8, 2/8, … | first-byte and idle limits shrink, down to a [share](Thresholds::shrink_to) of a tenth, and never below 1 s | all |
//! | 1 | a reset, with [`CloseReason::Pressure`] | newcomers |
//!
//! So those who do nothing make room before anybody is refused, and one that is being served is never touched: a request
//! under way is finished, whatever the level. Time is no such room: an idle connection takes none, and would come back
//! with a handshake. So lag refuses newcomers, and does neither of the other two.
//!
//! A layer in a [dry run](PressureLayer::dry_run) may stand beside one that is not, to try out other points. Of two
//! that shorten limits, the one whose level changed last has the word: put all resources into one.
//!
//! Idle is who waits for its peer and nothing else, below a `DeadlineLayer`; without one nobody is taken to be
//! idle. A framed connection leaves by itself when it is told; a raw service has to listen to
//! [`told_to_leave`](crate::ConnInfo::told_to_leave), or it stays.
//!
//! # Looking inside a full process
//!
//! A listener for operators (health, metrics, an admin page) must answer when nothing else does: leave this layer out of
//! its stack. What is exempt from a layer by its [network](PressureLayer::exempt) is neither refused nor reclaimed
//! nor shortened, nor does it start the measuring. Descriptors are the process's, so the hard point leaves room
//! for both: that is why it is below 1.
//!
//! # How it measures
//!
//! One task for all clones of a layer, from its first connection on and until the last clone and connection are gone. Every
//! [tick](Thresholds::every) it reads `/proc/self/statm`, sees how late it comes itself (the lesser of two ticks in
//! a row, since one is a hiccup), asks the figures that are your own, and looks at 1024 of its connections. Descriptors are
//! counted off the runtime's threads, once a second, and every tick from the soft point on, but in a tenth of the time
//! at the most; in between, connections that open and close are added and subtracted, so that the hard point holds in a burst as well.
//!
//! A connection that waits for a far timer is woken when its limits shrink, if it is idle: at most 1024 connections in
//! a tick, and each at most eight times on the way up, since limits shrink in eighths and are only lengthened
//! again after a second at a lower level.
//!
//! # Readiness
//!
//! The inner service's. The first time, it also checks that the runtime can keep time.
//!
//! # Errors
//!
//! [`Overloaded`] for a connection that was refused; it was reset, and nothing of it was read.
//!
//! # On drop
//!
//! Dropping the future drops the stream, and with it what the layer knows of the connection.

mod measure;
mod registry;
mod rounds;
mod settings;

use std::{
    error::Error,
    fmt, io,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::{GuardedIo, Io},
    },
    conn::{Admission, CloseReason, Conn, ConnInfo, Networks},
};

use self::{measure::Readings, rounds::Shared};
pub use self::{measure::Resource, registry::Enrolled, settings::Thresholds};

/// Sheds connections by what the process is short of. See the [module](self).
#[derive(Debug, Clone)]
pub struct PressureLayer {
    shared: Arc<Shared>,
    exempt: Arc<Networks>,
}

impl PressureLayer {
    /// With these thresholds. Without any of them it does nothing at all.
    ///
    /// Layers cloned from this one share what is measured.
    ///
    /// # Errors
    ///
    /// A soft point that is not above zero and below its hard point; a share above one; a tick of zero; memory or
    /// descriptors that cannot be measured here, or a share of a memory limit where there is none; two figures
    /// of one name.
    pub fn new(thresholds: Thresholds) -> Result<Self, ConfigError> {
        Ok(Self {
            shared: Shared::new(thresholds)?,
            exempt: Arc::default(),
        })
    }

    /// Leaves out connections whose peer, as it is known at this place in the stack, is in one of these networks.
    /// Default: none.
    #[must_use]
    pub fn exempt(mut self, networks: Networks) -> Self {
        self.exempt = Arc::new(networks);
        self
    }

    /// Only counts whom it would have refused or told to leave, in `tower_net_dry_run_total`, and shortens no limit. An
    /// idle connection is counted again once it has moved in between. Holds for all clones. Default: off.
    #[must_use]
    pub fn dry_run(self, on: bool) -> Self {
        self.shared.dry_run.store(on, Relaxed);
        self
    }

    /// A view of what is measured and done.
    #[must_use]
    pub fn handle(&self) -> PressureHandle {
        PressureHandle {
            readings: Arc::clone(&self.shared.readings),
        }
    }
}

impl<S> Layer<S> for PressureLayer {
    type Service = Pressure<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Pressure {
            inner,
            shared: Arc::clone(&self.shared),
            exempt: Arc::clone(&self.exempt),
        }
    }
}

/// The service of [`PressureLayer`].
#[derive(Debug, Clone)]
pub struct Pressure<S> {
    inner: S,
    shared: Arc<Shared>,
    exempt: Arc<Networks>,
}

impl<S> Pressure<S> {
    /// Lets a connection in, or says what there is not enough of.
    fn admit(&self, info: &Arc<ConnInfo>) -> Result<Enrolled, Overloaded> {
        let is_exempt = || {
            let contains = |ip| self.exempt.contains(ip);
            !self.exempt.is_empty() && info.peer().ip().is_some_and(contains)
        };
        if !self.shared.measures() || is_exempt() {
            return Ok(Enrolled::nowhere());
        }
        rounds::keep_going(&self.shared);
        if let Some(overloaded) = self.shared.readings.overloaded() {
            if self.shared.refuse() {
                return Err(overloaded);
            }
        }
        Ok(Enrolled::with(&self.shared, info))
    }
}

impl<S, I> Service<Conn<I>> for Pressure<S>
where
    S: Service<Conn<GuardedIo<I, Enrolled>>>,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Admission<S::Future, Overloaded>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.shared.check_time()?;
        ready!(self.inner.poll_ready(cx)).map_err(Into::into)?;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, conn: Conn<I>) -> Self::Future {
        match self.admit(conn.info()) {
            Ok(enrolled) => {
                let conn = conn.map_io(|io| GuardedIo::new(io, enrolled));
                Admission::admitted(self.inner.call(conn))
            }
            Err(overloaded) => {
                conn.refuse(CloseReason::Pressure);
                Admission::refused(overloaded)
            }
        }
    }
}

/// Reads what a layer measures and does; see [`PressureLayer::handle`]. It does not keep the measuring going.
#[derive(Debug, Clone)]
pub struct PressureHandle {
    readings: Arc<Readings>,
}

impl PressureHandle {
    /// The highest level: from 0, up to every soft point, to 1, at a hard point. As of the last tick.
    #[must_use]
    pub fn level(&self) -> f32 {
        self.levels()
            .map(|(_, level)| level)
            .fold(0.0, f32::max)
    }

    /// The level of each resource that has thresholds.
    pub fn levels(&self) -> impl Iterator<Item = (Resource, f32)> {
        self.readings.levels()
    }

    /// Connections that the layer has let in and that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.readings.open.load(Relaxed)
    }

    /// Connections refused so far; in a dry run, those that would have been.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.readings.refused.load(Relaxed)
    }

    /// Connections told to leave so far because they were idle; in a dry run, those that would have been.
    #[must_use]
    pub fn reclaimed(&self) -> u64 {
        self.readings.reclaimed.load(Relaxed)
    }
}

/// The process is short of something: this connection was refused before a byte of it was read.
///
/// Nothing was started, so the peer may safely try again, best a while later.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Overloaded {
    resource: Resource,
    measured: f64,
    threshold: f64,
}

impl Overloaded {
    fn new(resource: Resource, measured: f64, threshold: f64) -> Self {
        Self {
            resource,
            measured,
            threshold,
        }
    }

    /// What it is short of.
    #[must_use]
    pub fn resource(&self) -> Resource {
        self.resource
    }

    /// What was measured, in the unit of the [`Resource`].
    #[must_use]
    pub fn measured(&self) -> f64 {
        self.measured
    }

    /// The hard point, in the same unit.
    #[must_use]
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// The level of the resource: always 1, where newcomers are refused.
    #[must_use]
    pub fn level(&self) -> f32 {
        1.0
    }

    /// Whether the refused work was never begun: always.
    #[must_use]
    pub fn never_started(&self) -> bool {
        true
    }
}

impl fmt::Display for Overloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (measured, threshold) = (self.measured, self.threshold);
        match self.resource {
            Resource::Descriptors => write!(
                f,
                "short of descriptors: {measured:.3} of the limit are open, {threshold} may be"
            ),
            Resource::Memory => write!(
                f,
                "short of memory: {measured} bytes are resident, {threshold} may be"
            ),
            Resource::Lag => write!(
                f,
                "short of time: the runtime is {measured:.3} s late, {threshold} s are let pass"
            ),
            Resource::Own(name) => write!(f, "short of {name}: level is {measured}"),
        }
    }
}

impl Error for Overloaded {}

impl From<Overloaded> for io::Error {
    fn from(error: Overloaded) -> Self {
        Self::new(io::ErrorKind::ConnectionRefused, error)
    }
}
