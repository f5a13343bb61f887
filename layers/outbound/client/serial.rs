use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        time::{KeepsTime, Timer, now},
    },
    conn::{Ambient, Deadline},
    middleware::frame::RpcCodec,
    outbound::{
        budget::{Phase, Spent},
        client::{
            CallCause, CallError, Lease, Protocol, Settings, SharedError,
            exchange::Exchange,
            metrics::Metrics,
            shared::{due, no_timer},
        },
    },
};

/// Makes one exchange after the other, each over a connection of its own while it lasts: taken from a pool, and given
/// back after a whole reply that nothing is wrong with.
///
/// **Where it goes**: around a pool, or any connector whose connections are a [`Lease`]. For peers that answer one call at
/// a time; [`Client`](super::Client) needs fewer connections where they take several.
///
/// A connection is given back after its reply, and closed in every other case: the call failed, was late, or was given
/// up; the peer leaves; there were bytes behind the reply. That is how a peer learns that nobody waits for it any more.
///
/// # What is done twice
///
/// A call is made a second time, once, if the connection had served others before and nobody can have begun with the
/// call: not a byte of it can have reached the peer, or the peer [refused](crate::frame::RpcCode::Refused) it. The second
/// time it is made on a connection that nobody has used, for which those that the pool still has are closed; and only as
/// long as the [budget](super::RetryBudget) lasts. What was written may have been processed, and is not; nor is what a
/// stream refused that is not [plain](Lease::is_plain).
///
/// # Readiness
///
/// Always ready. The wait for a connection is part of the call, within its deadline.
///
/// # Errors
///
/// [`CallError`].
///
/// # On drop
///
/// Dropping a call closes its connection.
pub struct Serial<C, T, P = RpcCodec> {
    connector: C,
    target: T,
    protocol: P,
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    metrics: Metrics,
    keeps_time: KeepsTime,
}

impl<C, T> Serial<C, T> {
    /// Exchanges in the RPC framing with `target`, with every setting at its default.
    #[must_use]
    pub fn new(connector: C, target: T) -> Self {
        let settings = Settings::default();
        let protocol = RpcCodec::max_payload(settings.max_payload);
        Self::unchecked(protocol, settings, connector, target)
    }
}

impl<C, T, P> Serial<C, T, P> {
    /// Exchanges in any [`Protocol`]. Of the settings, those of connections are the connector's own here: the deadline of
    /// a call, the retries and the `service` label count.
    ///
    /// # Errors
    ///
    /// A setting that cannot work.
    pub fn with_protocol(
        protocol: P,
        settings: Settings,
        connector: C,
        target: T,
    ) -> Result<Self, ConfigError> {
        settings.check()?;
        Ok(Self::unchecked(protocol, settings, connector, target))
    }

    fn unchecked(protocol: P, settings: Settings, connector: C, target: T) -> Self {
        Self {
            connector,
            target,
            protocol,
            shared: Arc::new(Shared {
                metrics: Metrics::new(&settings.service),
                keeps_time: KeepsTime::default(),
                settings,
            }),
        }
    }
}

impl<C: Clone, T: Clone, P: Clone> Clone for Serial<C, T, P> {
    fn clone(&self) -> Self {
        Self {
            connector: self.connector.clone(),
            target: self.target.clone(),
            protocol: self.protocol.clone(),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<C, T, P> fmt::Debug for Serial<C, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serial")
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}

impl<C, T, P> Serial<C, T, P> {
    /// What it takes its connections from.
    pub fn connector(&self) -> &C {
        &self.connector
    }

    /// Makes a call.
    pub fn send<Q>(&self, call: Q) -> SerialFuture<C, T, P, Q>
    where
        C: Service<T> + Clone,
        T: Clone,
        P: Clone,
    {
        let shared = Arc::clone(&self.shared);
        shared.metrics.in_flight.increment(1.0);
        let begun = now();
        shared.settings.retries.deposit(begun);
        let (deadline, limit) = due(begun, shared.settings.call);
        SerialFuture {
            stage: Stage::Begun,
            call,
            connector: self.connector.clone(),
            target: self.target.clone(),
            protocol: self.protocol.clone(),
            account: Account {
                shared,
                deadline,
                limit,
                begun,
                phase: Phase::Waiting,
                since: begun,
                times: [Duration::ZERO; 3],
                is_over: false,
            },
            again: false,
            stale: 0,
            timer: Timer::default(),
        }
    }
}

impl<C, T, P, Q> Service<Q> for Serial<C, T, P>
where
    C: Service<T> + Clone,
    C::Response: Lease,
    C::Error: Into<BoxError>,
    T: Clone,
    P: Protocol<Q>,
    Q: Clone,
{
    type Response = P::Reply;
    type Error = CallError;
    type Future = SerialFuture<C, T, P, Q>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        Poll::Ready(
            self.shared
                .keeps_time
                .check()
                .map_err(no_timer),
        )
    }

    fn call(&mut self, call: Q) -> Self::Future {
        self.send(call)
    }
}

pin_project! {
    /// The future of [`Serial`]: the reply, or why there is none.
    ///
    /// # Cancel safety
    ///
    /// Dropping it gives the call up, and closes the connection that it has.
    #[must_use = "futures do nothing unless polled"]
    pub struct SerialFuture<C, T, P, Q>
    where
        C: Service<T>,
    {
        #[pin]
        stage: Stage<C::Future, C::Response, P>,
        call: Q,
        connector: C,
        target: T,
        // Cloned for each connection: what one has read is nothing to the next.
        protocol: P,
        account: Account,
        // The second attempt.
        again: bool,
        // Connections that were closed for it, since others had used them.
        stale: u32,
        #[pin]
        timer: Timer,
    }
}

pin_project! {
    #[project = StageProj]
    #[project_replace = StageReplace]
    enum Stage<F, L, P> {
        Begun,
        // The connector is being made ready.
        Asking,
        Connecting { #[pin] connecting: F },
        Exchanging { exchange: Exchange<L, P> },
    }
}

/// What a call has spent, and what is counted of it.
struct Account {
    shared: Arc<Shared>,
    deadline: Deadline,
    limit: Option<Duration>,
    begun: Instant,
    phase: Phase,
    since: Instant,
    times: [Duration; 3],
    is_over: bool,
}

impl Account {
    /// From now on it is in `phase`.
    fn turn(&mut self, phase: Phase) -> Instant {
        let now = now();
        self.times[self.phase as usize] += now.saturating_duration_since(self.since);
        (self.phase, self.since) = (phase, now);
        now
    }

    fn spent(&mut self) -> CallError {
        let phase = self.phase;
        self.turn(phase);
        CallError::spent(Spent::new(phase, self.times, self.limit))
    }

    fn end<R>(&mut self, outcome: Result<R, CallError>) -> Result<R, CallError> {
        self.is_over = true;
        let took = now().saturating_duration_since(self.begun);
        match &outcome {
            Ok(_) => self.shared.metrics.answered(took),
            Err(error) => self.shared.metrics.failed(error, took),
        }
        outcome
    }

    fn may_retry(&self) -> bool {
        let Shared {
            settings, metrics, ..
        } = &*self.shared;
        let may = settings.retries.withdraw(now());
        metrics.retry(may);
        may
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let metrics = &self.shared.metrics;
        metrics.in_flight.decrement(1.0);
        if !self.is_over {
            metrics.cancelled(now().saturating_duration_since(self.begun));
        }
    }
}

impl<C, T, P, Q> Future for SerialFuture<C, T, P, Q>
where
    C: Service<T>,
    C::Response: Lease,
    C::Error: Into<BoxError>,
    T: Clone,
    P: Protocol<Q>,
    Q: Clone,
{
    type Output = Result<P::Reply, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = {
            // What connects, and what is called, finds the deadline of this call.
            let entered = Ambient::enter();
            entered.set(Ambient::At(self.account.deadline));
            self.as_mut().poll_call(cx)
        };
        let outcome = match polled {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => {
                let mut this = self.as_mut().project();
                let Some(by) = this.account.deadline.instant() else {
                    return Poll::Pending;
                };
                if !this.timer.is_armed() {
                    this.timer.as_mut().arm(by);
                }
                ready!(this.timer.poll(cx));
                Err(this.account.spent())
            }
        };
        let mut this = self.project();
        // Whatever connection it still has is closed.
        this.stage.set(Stage::Begun);
        Poll::Ready(this.account.end(outcome))
    }
}

impl<C, T, P, Q> SerialFuture<C, T, P, Q>
where
    C: Service<T>,
    C::Response: Lease,
    C::Error: Into<BoxError>,
    T: Clone,
    P: Protocol<Q>,
    Q: Clone,
{
    fn poll_call(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<P::Reply, CallError>> {
        loop {
            let mut this = self.as_mut().project();
            match this.stage.as_mut().project() {
                StageProj::Begun => {
                    if let Err(error) = this.account.shared.keeps_time.check() {
                        return Poll::Ready(Err(no_timer(error)));
                    }
                    let now = this.account.turn(Phase::Waiting);
                    let deadline = this.account.deadline.instant();
                    if deadline.is_some_and(|by| by <= now) {
                        return Poll::Ready(Err(this.account.spent()));
                    }
                    this.account.phase = Phase::Connecting;
                    this.stage.set(Stage::Asking);
                }
                StageProj::Asking => {
                    if let Err(error) = ready!(this.connector.poll_ready(cx)) {
                        return Poll::Ready(Err(no_connection(error)));
                    }
                    let connecting = this.connector.call(this.target.clone());
                    this.stage
                        .set(Stage::Connecting { connecting });
                }
                StageProj::Connecting { connecting } => {
                    let lease = match ready!(connecting.poll(cx)) {
                        Ok(lease) => lease,
                        Err(error) => return Poll::Ready(Err(no_connection(error))),
                    };
                    if *this.again && lease.is_reused() && *this.stale < MOST_STALE {
                        *this.stale += 1;
                        drop(lease);
                        this.stage.set(Stage::Asking);
                        continue;
                    }
                    let now = this.account.turn(Phase::Calling);
                    let by = this.account.deadline.instant();
                    let left = by.map(|by| by.saturating_duration_since(now));
                    if left == Some(Duration::ZERO) {
                        // It was not used.
                        lease.give_back();
                        this.account.phase = Phase::Connecting;
                        return Poll::Ready(Err(this.account.spent()));
                    }
                    let mut exchange = Exchange::new(lease, this.protocol.clone());
                    if let Err(error) = exchange.ask(left, this.call.clone()) {
                        exchange.lease.give_back();
                        let cause = CallCause::Encode(error);
                        return Poll::Ready(Err(CallError::new(cause, Phase::Waiting)));
                    }
                    this.stage
                        .set(Stage::Exchanging { exchange });
                }
                StageProj::Exchanging { exchange } => {
                    let end = ready!(exchange.poll(cx));
                    let may_be_used = exchange.lease.is_reused() && !*this.again;
                    let (outcome, is_clean) = match end {
                        Ok(end) => end,
                        Err(disconnected) => {
                            let error: SharedError = Arc::new(disconnected);
                            (Err(CallError::closed(error, !exchange.has_begun)), false)
                        }
                    };
                    let again = outcome
                        .as_ref()
                        .is_err_and(|error| may_be_used && error.is_retryable());
                    if is_clean {
                        let stage = this
                            .stage
                            .as_mut()
                            .project_replace(Stage::Begun);
                        if let StageReplace::Exchanging { exchange } = stage {
                            exchange.lease.give_back();
                        }
                    }
                    if again && this.account.may_retry() {
                        *this.again = true;
                        this.account.turn(Phase::Connecting);
                        this.stage.set(Stage::Asking);
                        continue;
                    }
                    let again = *this.again;
                    this.account.turn(Phase::Calling);
                    let times = this.account.times;
                    return Poll::Ready(outcome.map_err(|error| error.after(times).retried(again)));
                }
            }
        }
    }
}

fn no_connection(error: impl Into<BoxError>) -> CallError {
    CallError::connect(SharedError::from(error.into()))
}

/// Connections that are closed for a second attempt; beyond it, it is made on one that others have used. As many as a
/// pool keeps for a target by default, and some.
const MOST_STALE: u32 = 128;
