use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use metrics::{Counter, Gauge, Label, counter, gauge};
use tower::discover::Change;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        time::{Timer, later, now},
    },
    conn::Deadline,
};

/// Peers by a name that is looked up again and again, in DNS or anywhere: a [`Discover`](tower::discover::Discover).
///
/// The resolver is any service that takes the name and answers with the keys of the peers, addresses for the most part.
/// What is new in an answer is made and comes in, what is missing goes: its calls are finished, and it gets no more. A
/// lookup that fails, takes too long or finds nothing changes nothing, and is made again sooner. So a resolver that is
/// down leaves everything as it was.
///
/// What a resolver of host names answers has no port as a rule: `make` adds it.
///
/// Lookups are made while somebody waits for a peer or calls one, not by a task: a service that is not called looks
/// nothing up.
pub struct Refreshing<R, N, K, M>
where
    R: Service<N>,
{
    resolver: R,
    name: N,
    make: M,
    known: BTreeSet<K>,
    changes: VecDeque<Step<K>>,
    state: State<R::Future>,
    timer: Pin<Box<Timer>>,
    failures: u32,
    every: Duration,
    limit: Duration,
    most: usize,
    metrics: Metrics,
}

enum Step<K> {
    Insert(K),
    Remove(K),
}

enum State<F> {
    /// Waits for the time of the next lookup, if the timer is set.
    Resting,
    /// Waits for the resolver to be ready.
    Asking,
    Looking(Pin<Box<F>>),
}

struct Metrics {
    ok: Counter,
    failed: Counter,
    endpoints: Gauge,
    /// What the gauge has of it.
    counted: f64,
}

impl<R, N, K, M> Refreshing<R, N, K, M>
where
    R: Service<N>,
{
    /// Looks `name` up with `resolver`, every 30 s, and makes a service of each key with `make`.
    pub fn new(resolver: R, name: N, make: M) -> Self {
        Self {
            resolver,
            name,
            make,
            known: BTreeSet::new(),
            changes: VecDeque::new(),
            state: State::Asking,
            timer: Box::pin(Timer::default()),
            failures: 0,
            every: EVERY,
            limit: LIMIT,
            most: MOST,
            metrics: Metrics::new(""),
        }
    }

    /// The next lookup begins so long after the last one has succeeded; after one that has not, in 1 s, 2 s, 4 s and so
    /// on up to this. Default: 30 s, which is what short-lived records commonly are given.
    ///
    /// # Errors
    ///
    /// Zero.
    pub fn every(mut self, period: Duration) -> Result<Self, ConfigError> {
        if period.is_zero() {
            return Err(ConfigError::zero("every"));
        }
        self.every = period;
        Ok(self)
    }

    /// A lookup may take this long. Default: 5 s.
    ///
    /// # Errors
    ///
    /// Zero.
    pub fn lookup_deadline(mut self, limit: Duration) -> Result<Self, ConfigError> {
        if limit.is_zero() {
            return Err(ConfigError::zero("lookup_deadline"));
        }
        self.limit = limit;
        Ok(self)
    }

    /// So many keys of an answer are taken, the lowest; the rest is left out. Default: 128.
    ///
    /// # Errors
    ///
    /// Zero.
    pub fn most(mut self, keys: usize) -> Result<Self, ConfigError> {
        if keys == 0 {
            return Err(ConfigError::zero("most"));
        }
        self.most = keys;
        Ok(self)
    }

    /// The `service` label of the metrics. Default: empty.
    #[must_use]
    pub fn service(mut self, name: &str) -> Self {
        self.metrics = Metrics::new(name);
        self
    }
}

impl<R, N, K, M> Unpin for Refreshing<R, N, K, M> where R: Service<N> {}

impl<R, N, K, M, S, E> Stream for Refreshing<R, N, K, M>
where
    R: Service<N>,
    R::Response: IntoIterator<Item = K>,
    R::Error: Into<BoxError>,
    N: Clone,
    K: Ord + Clone + fmt::Debug,
    M: FnMut(&K) -> Result<S, E>,
    E: Into<BoxError>,
{
    type Item = Result<Change<K, S>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match this.changes.pop_front() {
                Some(Step::Remove(key)) => return Poll::Ready(Some(Ok(Change::Remove(key)))),
                Some(Step::Insert(key)) => match (this.make)(&key) {
                    Ok(service) => return Poll::Ready(Some(Ok(Change::Insert(key, service)))),
                    Err(error) => {
                        // Tried again with the next answer.
                        let error: BoxError = error.into();
                        tracing::warn!(?key, error = &*error, "no service made for a peer");
                        this.known.remove(&key);
                        continue;
                    }
                },
                None => {}
            }
            this.metrics.know(this.known.len());
            match &mut this.state {
                State::Resting => {
                    ready!(this.timer.as_mut().poll(cx));
                    this.state = State::Asking;
                }
                State::Asking => match ready!(this.resolver.poll_ready(cx)) {
                    Ok(()) => {
                        let deadline = Deadline::within(this.limit);
                        let looking = this.resolver.call(this.name.clone());
                        this.state = State::Looking(Box::pin(looking));
                        if let Some(by) = deadline.instant() {
                            this.timer.as_mut().arm(by);
                        }
                    }
                    Err(error) => this.failed(error),
                },
                State::Looking(looking) => match looking.as_mut().poll(cx) {
                    Poll::Ready(Ok(keys)) => this.found(keys),
                    Poll::Ready(Err(error)) => this.failed(error),
                    Poll::Pending => {
                        ready!(this.timer.as_mut().poll(cx));
                        let limit = this.limit;
                        this.failed(format!("lookup not done within {limit:?}"));
                    }
                },
            }
        }
    }
}

impl<R, N, K, M> Refreshing<R, N, K, M>
where
    R: Service<N>,
    K: Ord + Clone,
{
    fn found(&mut self, keys: impl IntoIterator<Item = K>) {
        let mut found: BTreeSet<_> = keys.into_iter().collect();
        while found.len() > self.most {
            found.pop_last();
        }
        if found.is_empty() {
            return self.failed("nothing found");
        }
        let gone = self.known.difference(&found).cloned();
        self.changes
            .extend(gone.map(Step::Remove));
        let new = found.difference(&self.known).cloned();
        self.changes
            .extend(new.map(Step::Insert));
        self.known = found;
        self.failures = 0;
        self.metrics.ok.increment(1);
        self.rest(self.every);
    }

    fn failed(&mut self, error: impl Into<BoxError>) {
        let error = error.into();
        tracing::warn!(
            error = &*error,
            kept = self.known.len(),
            "lookup of peers failed"
        );
        self.metrics.failed.increment(1);
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.rest(pause.min(self.every));
    }

    fn rest(&mut self, pause: Duration) {
        self.state = State::Resting;
        // A time that never comes: the timer is as good as unset, and what is known stays.
        self.timer = Box::pin(Timer::default());
        if let Some(at) = later(now(), pause) {
            self.timer.as_mut().arm(at);
        }
    }
}

impl<R, N, K, M> fmt::Debug for Refreshing<R, N, K, M>
where
    R: Service<N>,
    N: fmt::Debug,
    K: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refreshing")
            .field("name", &self.name)
            .field("known", &self.known)
            .field("every", &self.every)
            .finish_non_exhaustive()
    }
}

impl Metrics {
    fn new(service: &str) -> Self {
        let service = Label::new("service", service.to_owned());
        let with = |outcome| vec![service.clone(), Label::new("outcome", outcome)];
        Self {
            ok: counter!("tower_net_balance_lookups_total", with("ok")),
            failed: counter!("tower_net_balance_lookups_total", with("failed")),
            endpoints: gauge!("tower_net_balance_endpoints", vec![service.clone()]),
            counted: 0.0,
        }
    }

    fn know(&mut self, endpoints: usize) {
        let endpoints = endpoints as f64;
        if endpoints != self.counted {
            self.endpoints
                .increment(endpoints - self.counted);
            self.counted = endpoints;
        }
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.endpoints.decrement(self.counted);
    }
}

/// What short-lived records commonly are given.
const EVERY: Duration = Duration::from_secs(30);

/// As resolvers commonly give up.
const LIMIT: Duration = Duration::from_secs(5);

/// More would be no list of peers, but a mistake.
const MOST: usize = 128;

/// After a lookup that failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
