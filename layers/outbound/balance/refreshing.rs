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
use tokio::task::JoinHandle;
use tower::discover::Change;
use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError},
        time::{Timer, later, now},
    },
    conn::{Ambient, Deadline},
    outbound::budget,
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
/// A lookup is begun by the call that finds it due, if there are peers without waiting for it: a service that is not
/// called looks nothing up. Once begun it is a task of its own, with its own [deadline](Self::lookup_deadline) as the
/// [current](Deadline::current) one: whoever happened to begin it may give up, and his deadline is none of the lookup's.
/// One that panics has failed. With the stream the lookup is dropped.
///
/// # Panics
///
/// When it is polled outside a runtime that keeps time.
pub struct Refreshing<R, N, K, M> {
    resolver: R,
    name: N,
    make: M,
    known: BTreeSet<K>,
    changes: VecDeque<Step<K>>,
    state: State<K>,
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

enum State<K> {
    /// Waits for the time of the next lookup, if the timer is set.
    Resting,
    /// Waits for the resolver to be ready.
    Asking,
    Looking(Lookup<K>),
}

/// A lookup that is under way; it is dropped with this.
struct Lookup<K> {
    task: JoinHandle<Result<BTreeSet<K>, BoxError>>,
}

impl<K> Drop for Lookup<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Metrics {
    ok: Counter,
    failed: Counter,
    endpoints: Gauge,
    /// What the gauge has of it.
    counted: f64,
}

impl<R, N, K, M> Refreshing<R, N, K, M> {
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

    /// A lookup may take this long. [`Duration::MAX`] is no limit. Default: 5 s.
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

impl<R, N, K, M> Unpin for Refreshing<R, N, K, M> {}

impl<R, N, K, M, S, E> Stream for Refreshing<R, N, K, M>
where
    R: Service<N, Future: Send + 'static>,
    R::Response: IntoIterator<Item = K>,
    R::Error: Into<BoxError>,
    N: Clone,
    K: Ord + Clone + fmt::Debug + Send + 'static,
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
                State::Asking => match ready!(this.poll_ask(cx)) {
                    Ok(lookup) => this.state = State::Looking(lookup),
                    Err(error) => this.failed(error),
                },
                State::Looking(lookup) => match ready!(Pin::new(&mut lookup.task).poll(cx)) {
                    Ok(Ok(found)) => this.found(found),
                    Ok(Err(error)) => this.failed(error),
                    Err(error) => this.failed(error),
                },
            }
        }
    }
}

impl<R, N, K, M> Refreshing<R, N, K, M> {
    /// Begins a lookup once the resolver is ready for one.
    fn poll_ask(&mut self, cx: &mut Context<'_>) -> Poll<Result<Lookup<K>, BoxError>>
    where
        R: Service<N, Future: Send + 'static>,
        R::Response: IntoIterator<Item = K>,
        R::Error: Into<BoxError>,
        N: Clone,
        K: Ord + Send + 'static,
    {
        let entered = Ambient::enter();
        entered.set(Ambient::Outside);
        if let Err(error) = ready!(self.resolver.poll_ready(cx)) {
            return Poll::Ready(Err(error.into()));
        }
        let limit = self.limit;
        let deadline = Deadline::within(limit);
        entered.set(Ambient::At(deadline));
        let looking = self.resolver.call(self.name.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "it ends with the lookup's deadline, or with who has its handle"
        )]
        let task = tokio::spawn(async move {
            let keys = budget::within(limit, looking).await?;
            let keys = keys.map_err(Into::into)?;
            Ok(keys.into_iter().collect())
        });
        Poll::Ready(Ok(Lookup { task }))
    }
}

impl<R, N, K, M> Refreshing<R, N, K, M>
where
    K: Ord + Clone,
{
    fn found(&mut self, mut found: BTreeSet<K>) {
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
