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
//! # Readiness
//!
//! Always ready: the wait for a peer is part of the call, within its deadline.
//!
//! # Errors
//!
//! Those of the clients ([`CallError`](crate::client::CallError)), or [`Spent`](crate::budget::Spent) if no peer was
//! there in time.

mod endpoints;
mod refreshing;
mod resting;

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use slab::Slab;
use tokio::time::Instant;
use tower::{
    balance::p2c::Balance,
    discover::Discover,
    load::{CompleteOnResponse, PeakEwmaDiscover},
};
use tower_service::Service;

pub use self::{
    endpoints::Endpoints,
    refreshing::Refreshing,
    resting::{Rested, Resting, RestingFuture},
};
use crate::{
    base::{
        error::{BoxError, ConfigError, find},
        time::{KeepsTime, Timer, now},
    },
    conn::{Ambient, Deadline},
    outbound::{
        budget::{Phase, Spent},
        client::{CallError, RetryBudget},
    },
};

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
    waiting: Arc<Waiting>,
    keeps_time: KeepsTime,
}

/// Those who wait for a peer: a change wakes them all, since the balance knows only the last who asked.
#[derive(Default)]
struct Waiting {
    wakers: Mutex<Slab<Waker>>,
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        let wakers: Vec<_> = lock(&self.wakers)
            .iter()
            .map(|(_, waker)| waker.clone())
            .collect();
        for waker in wakers {
            waker.wake();
        }
    }
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
                waiting: Arc::default(),
                keeps_time: KeepsTime::default(),
            }),
            limit: CALL,
            attempts: ATTEMPTS,
            budget: RetryBudget::default(),
        }
    }

    /// A call must be answered this long after it was made, the wait for a peer and all attempts included, or by the
    /// [current](Deadline::current) deadline if that is earlier. [`Duration::MAX`] is no limit. Default: 30 s.
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
        let begun = now();
        self.budget.deposit(begun);
        let (own, budget) = (Deadline::after(begun, self.limit), Deadline::current());
        BalancedFuture {
            stage: Stage::Waiting { since: begun },
            call,
            shared: Arc::clone(&self.shared),
            seat: Seat {
                waiting: Arc::clone(&self.shared.waiting),
                at: None,
            },
            deadline: own.min(budget),
            limit: (own < budget).then_some(self.limit),
            begun,
            calling: Duration::ZERO,
            left: self.attempts,
            budget: self.budget.clone(),
            timer: Timer::default(),
            request: PhantomData,
        }
    }
}

pin_project! {
    /// The future of [`Balanced`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives the call up, wherever it is.
    #[must_use = "futures do nothing unless polled"]
    pub struct BalancedFuture<B, F, Q> {
        #[pin]
        stage: Stage<F>,
        call: Q,
        shared: Arc<Shared<B>>,
        seat: Seat,
        deadline: Deadline,
        limit: Option<Duration>,
        begun: Instant,
        // In all attempts so far.
        calling: Duration,
        left: u32,
        budget: RetryBudget,
        #[pin]
        timer: Timer,
        request: PhantomData<fn(Q)>,
    }
}

pin_project! {
    #[project = StageProj]
    enum Stage<F> {
        Waiting { since: Instant },
        Calling { #[pin] future: F, since: Instant },
    }
}

/// A place among those who wait for a peer, if there is one.
struct Seat {
    waiting: Arc<Waiting>,
    at: Option<usize>,
}

impl Seat {
    fn take(&mut self, waker: &Waker) {
        let mut wakers = lock(&self.waiting.wakers);
        match self.at {
            Some(at) => wakers[at].clone_from(waker),
            None => self.at = Some(wakers.insert(waker.clone())),
        }
    }

    fn leave(&mut self) {
        if let Some(at) = self.at.take() {
            lock(&self.waiting.wakers).remove(at);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<B, Q> Future for BalancedFuture<B, B::Future, Q>
where
    B: Service<Q>,
    B::Error: Into<BoxError>,
    Q: Clone,
{
    type Output = Result<B::Response, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            match this.stage.as_mut().project() {
                StageProj::Waiting { .. } => {
                    let entered = Ambient::enter();
                    entered.set(Ambient::At(*this.deadline));
                    // Before the look, so that no change is missed.
                    this.seat.take(cx.waker());
                    let waker = Waker::from(Arc::clone(&this.shared.waiting));
                    let mut balance = lock(&this.shared.balance);
                    match balance.poll_ready(&mut Context::from_waker(&waker)) {
                        Poll::Ready(Ok(())) => {
                            let future = balance.call(this.call.clone());
                            drop(balance);
                            *this.left -= 1;
                            this.seat.leave();
                            let since = now();
                            this.stage
                                .set(Stage::Calling { future, since });
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                        Poll::Pending => {
                            drop((balance, entered));
                            let spent = ready!(self.as_mut().poll_late(cx));
                            return Poll::Ready(Err(spent.into()));
                        }
                    }
                }
                StageProj::Calling { future, since } => {
                    // Its own deadline is no later than this one.
                    let error = match ready!(future.poll(cx)) {
                        Ok(response) => return Poll::Ready(Ok(response)),
                        Err(error) => error.into(),
                    };
                    let may =
                        find::<CallError>(error.as_ref()).is_some_and(CallError::is_retryable);
                    let now = now();
                    if !may || *this.left == 0 || !this.budget.withdraw(now) {
                        return Poll::Ready(Err(error));
                    }
                    *this.calling += now.saturating_duration_since(*since);
                    this.stage
                        .set(Stage::Waiting { since: now });
                }
            }
        }
    }
}

impl<B, F, Q> BalancedFuture<B, F, Q> {
    fn poll_late(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Spent> {
        let mut this = self.project();
        let Some(by) = this.deadline.instant() else {
            return Poll::Pending;
        };
        this.timer.as_mut().arm(by);
        ready!(this.timer.poll(cx));
        this.seat.leave();
        let whole = now().saturating_duration_since(*this.begun);
        let waiting = whole.saturating_sub(*this.calling);
        let times = [waiting, Duration::ZERO, *this.calling];
        Poll::Ready(Spent::new(Phase::Waiting, times, *this.limit))
    }
}

impl<B, F, Q> fmt::Debug for BalancedFuture<B, F, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalancedFuture")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
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
