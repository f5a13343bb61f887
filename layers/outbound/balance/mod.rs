//! One service out of several peers: each call goes to the one of two that has the least to do.
//!
//! The choice is tower's own [`Balance`]: of two peers taken at random, that with the lower
//! [load](tower::load::PeakEwma), which is how long its calls take, the worst remembered longest, times how many it has.
//! Here is what it takes besides: where peers come from ([`Endpoints`], [`Refreshing`], or any
//! [`Discover`](tower::discover::Discover)), and [`Balanced`], which many tasks can share, keeps the budget of each call,
//! and takes a call that came to nothing before it began to another peer.
//!
//! ```
//! use std::net::SocketAddr;
//! use bytes::Bytes;
//! use tower::{ServiceExt, service_fn};
//! use tower_net::{balance::{Balanced, Endpoints}, client::MakeClient};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let connect = service_fn(async |to: SocketAddr| tokio::net::TcpStream::connect(to).await?.try_into());
//! # fn is<S: tower::Service<SocketAddr, Response = tower_net::Conn<tokio::net::TcpStream>>>(_: &S) {}
//! # is(&connect);
//! let make = MakeClient::new(connect);
//! let peers = ["127.0.0.1:7001".parse::<SocketAddr>()?, "127.0.0.1:7002".parse()?];
//! let balanced = Balanced::over(Endpoints::new(peers, |peer| make.make(*peer))?);
//! let call = balanced.oneshot(Bytes::from_static(b"how much?"));
//! # drop(call);
//! # Ok(())
//! # }
//! ```
//!
//! # A peer that is down
//!
//! A client that [keeps connected](crate::client::Settings::keep_connected), as those of
//! [`MakeClient`](crate::client::MakeClient) do, is not ready while its peer is not there, and so it is not chosen; it
//! goes on trying, with growing pauses, and is chosen again once it is connected. So of three peers one of which is dead
//! no call meets the dead one, but for the first after it has ended while nothing was under way, which is taken to
//! another as long as there is a budget for it. What a peer that dies had begun with may have been done, and fails; what it had not moves
//! to another. One that [refuses](crate::client::CallError::is_retryable) is left alone [for a moment](Resting), and the call
//! is taken elsewhere. A peer that answers quickly that it fails is quick, though: whether that makes it a bad one, only
//! the service knows.
//!
//! # Bounds
//!
//! Peers: as many as are given, or [so many](Refreshing::most) of a lookup. Calls: what the clients have places for, and
//! the callers' own futures, which wait for at most [so long](Balanced::call_deadline).
//!
//! # Order
//!
//! Those who wait for a peer are served in the order in which they came. So the first of them must be polled once it is
//! woken: a future that is first, and is kept without being polled, holds up those behind it until their deadlines.
//!
//! # Readiness
//!
//! Always ready: the wait for a peer is part of the call, within its deadline.
//!
//! # Errors
//!
//! Those of the clients ([`CallError`](crate::client::CallError)), or [`Spent`](crate::budget::Spent) if no peer was
//! there in time, or the one that was did not see to it that its call ended.

mod call;
mod endpoints;
mod line;
mod refreshing;
mod resting;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tower::{
    balance::p2c::Balance,
    discover::Discover,
    load::{CompleteOnResponse, PeakEwmaDiscover},
};
use tower_service::Service;

use self::line::Line;
pub use self::{
    call::BalancedFuture,
    endpoints::Endpoints,
    refreshing::Refreshing,
    resting::{Rested, Resting, RestingFuture},
};
use crate::{
    base::{
        error::{BoxError, ConfigError},
        time::KeepsTime,
    },
    outbound::client::RetryBudget,
};
#[cfg(doc)]
use crate::{conn::Deadline, outbound::client::CallError};

/// tower's balancing by peak-EWMA load, over the peers of `discover`.
///
/// It takes calls of one task at a time; [`Balanced`] lets many share it.
pub fn peak_ewma<D, Q>(discover: D) -> Balance<PeakEwmaDiscover<D>, Q>
where
    D: Discover,
    D::Key: std::hash::Hash,
    D::Service: Service<Q>,
    <D::Service as Service<Q>>::Error: Into<BoxError>,
    PeakEwmaDiscover<D>: Discover<Key = D::Key>,
    <PeakEwmaDiscover<D> as Discover>::Service: Service<Q>,
    <<PeakEwmaDiscover<D> as Discover>::Service as Service<Q>>::Error: Into<BoxError>,
{
    let completion = CompleteOnResponse::default();
    Balance::new(PeakEwmaDiscover::new(discover, RTT, DECAY, completion))
}

/// A balance that many share. See the [module](self).
///
/// Clones share it, and the budget for retries; a setting changed after that is only the clone's own.
pub struct Balanced<B> {
    shared: Arc<Shared<B>>,
    limit: Duration,
    attempts: u32,
    budget: RetryBudget,
}

struct Shared<B> {
    balance: Mutex<B>,
    /// Those who wait for a peer.
    line: Arc<Line>,
    keeps_time: KeepsTime,
}

impl<D, Q> Balanced<Balance<PeakEwmaDiscover<Rested<D>>, Q>>
where
    Rested<D>: Discover,
    <Rested<D> as Discover>::Key: std::hash::Hash,
    <Rested<D> as Discover>::Service: Service<Q>,
    <<Rested<D> as Discover>::Service as Service<Q>>::Error: Into<BoxError>,
    PeakEwmaDiscover<Rested<D>>: Discover<Key = <Rested<D> as Discover>::Key>,
    <PeakEwmaDiscover<Rested<D>> as Discover>::Service: Service<Q>,
    <<PeakEwmaDiscover<Rested<D>> as Discover>::Service as Service<Q>>::Error: Into<BoxError>,
{
    /// Balances over the peers of `discover`, by [`peak_ewma`], and lets one that [refuses](Resting) rest.
    #[must_use]
    pub fn over(discover: D) -> Self {
        Self::new(peak_ewma(Rested::new(discover)))
    }
}

impl<B> Balanced<B> {
    /// Shares `balance`, which may be any service that becomes ready by itself.
    #[must_use]
    pub fn new(balance: B) -> Self {
        Self {
            shared: Arc::new(Shared {
                balance: Mutex::new(balance),
                line: Arc::default(),
                keeps_time: KeepsTime::default(),
            }),
            limit: CALL,
            attempts: ATTEMPTS,
            budget: RetryBudget::default(),
        }
    }

    /// A call must be answered this long after it was made, the wait for a peer and all attempts included, or by the
    /// [current](Deadline::current) deadline if that is earlier; else it is dropped, whatever it is doing.
    /// [`Duration::MAX`] is no limit. Default: 30 s.
    ///
    /// # Errors
    ///
    /// Zero.
    pub fn call_deadline(mut self, limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::zero("call_deadline"));
        }
        self.limit = limit;
        Ok(self)
    }

    /// A call is made so many times at the most, each time anew to a peer that is ready, as long as it is
    /// [certain](CallError::is_retryable) that nobody has begun with it. Default: 3.
    ///
    /// # Errors
    ///
    /// Zero.
    pub fn attempts(mut self, attempts: u32) -> Result<Self, ConfigError> {
        if attempts == 0 {
            return Err(ConfigError::zero("attempts"));
        }
        self.attempts = attempts;
        Ok(self)
    }

    /// How many attempts beyond the first there may be in all. Default: [`RetryBudget::default`].
    #[must_use]
    pub fn retries(mut self, budget: RetryBudget) -> Self {
        self.budget = budget;
        self
    }
}

impl<B> Clone for Balanced<B> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            limit: self.limit,
            attempts: self.attempts,
            budget: self.budget.clone(),
        }
    }
}

impl<B> fmt::Debug for Balanced<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balanced")
            .field("call_deadline", &self.limit)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

impl<B, Q> Service<Q> for Balanced<B>
where
    B: Service<Q>,
    B::Error: Into<BoxError>,
    Q: Clone,
{
    type Response = B::Response;
    type Error = BoxError;
    type Future = BalancedFuture<B, B::Future, Q>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(
            self.shared
                .keeps_time
                .check()
                .map_err(Into::into),
        )
    }

    fn call(&mut self, call: Q) -> Self::Future {
        BalancedFuture::begin(self, call)
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// What a peer is taken to need for a call before one has been measured: not so much that a new one is not asked.
const RTT: Duration = Duration::from_millis(10);

/// After so long the worst that was seen counts a third: as Finagle has it.
const DECAY: Duration = Duration::from_secs(10);

/// As the deadline of a client's call.
const CALL: Duration = Duration::from_secs(30);

/// Two more peers: with one of three dead, and one that has just died.
const ATTEMPTS: u32 = 3;
