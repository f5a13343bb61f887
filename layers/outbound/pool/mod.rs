//! Keeps connections to others, and gives them out again.
//!
//! A connector is a service that opens a connection to a target. A pool around it is a connector as well, whose
//! connections come from a dial or from somebody who [gave one back](Conn::reuse).
//!
//! **Where it goes**: around everything that belongs to a connection for its whole life, outermost:
//! `connect → timeout → PROXY header → TLS → meter → pool`. What belongs to a single exchange comes outside of it.
//!
//! ```
//! use std::net::SocketAddr;
//! use tokio::{io::{AsyncReadExt, AsyncWriteExt}, net::TcpStream};
//! use tower::{Layer, Service, service_fn};
//! use tower_net::pool::{PoolLayer, Pooling, Served};
//!
//! # async fn run(server: SocketAddr) -> Result<(), tower_net::error::BoxError> {
//! let connector = service_fn(async |to: SocketAddr| TcpStream::connect(to).await?.try_into());
//! let mut pool = PoolLayer::new("echo", Pooling::default())?.layer(connector);
//!
//! for served in [Served::Dialled, Served::Idle] {
//!     let mut conn = pool.call(server).await?;
//!     assert_eq!(conn.acquired().served(), served);
//!     conn.write_all(b"ping").await?;
//!     conn.read_exact(&mut [0; 4]).await?;
//!     conn.reuse(); // a whole exchange that went well
//! }
//! # Ok(())
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! #     let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
//! #     let server = listener.local_addr().unwrap();
//! #     let echo = async {
//! #         let (mut read, mut write) = listener.accept().await.unwrap().0.into_split();
//! #         tokio::io::copy(&mut read, &mut write).await.unwrap();
//! #     };
//! #     let (_, ran) = tokio::join!(echo, run(server));
//! #     ran.unwrap();
//! # }
//! ```
//!
//! # A get
//!
//! ```text
//!             ┌ one is idle ─ is it silent? ── yes ─────────────────────────────► served: idle
//!             │                     └── no: closed, the next
//!  call ──────┤ there is a place, or an idle one elsewhere makes room ─► dial ──► served: dialled
//!             │                                                           │┌────► served: late
//!             ├ all places are taken ─► queue ─► the first of ────────────┴┤
//!             │                                  a dial, a connection given back
//!             └ too many wait, or the target is down ───────────────────────────► refused at once
//! ```
//!
//! A get that finds nothing idle begins with its first poll: it dials or stands in line then, behind all who were
//! polled before it, and its time runs from then on. One that is dropped before that has taken nothing.
//!
//! One that waits takes whichever comes first, its own dial or a connection that somebody gives back; the other is
//! kept for whoever comes next. Those who wait for a target are served in the order of their coming. A dial that
//! fails is the failure of whoever asked for it, unless that one was given another connection since, be it a dead one;
//! and lets the next one dial.
//!
//! One deadline covers all of it, however many connections turn out to be dead: [`Pooling::within`], or the
//! [`Deadline`](crate::Deadline) of the caller's request if that is earlier, which is the one that is current where the
//! pool is called. It does not cover the dial, which has
//! [a limit of its own](Pooling::dial_within) and goes on when its caller has left, unless somebody who waits for
//! another target needs its place: else callers with little time would never get a connection at all. The pool's own
//! task keeps these deadlines; a get in another runtime keeps its own as well, if that runtime can keep time, for the
//! pool's may not run.
//!
//! At the total, a connection that comes back goes to those who wait for its own target, since that costs no dial. It
//! is closed, and its place is somebody else's, where nobody waits for that target; where somebody has waited longer for
//! a target that has no connection at all; or where somebody has waited so much longer for another that about as much
//! has been asked of the pool since as it has places. So nobody starves beside a busy target, and two busy ones do not
//! take from each other in turn.
//!
//! # What comes back
//!
//! A connection is used again only if whoever had it says so, by [`Conn::reuse`]; dropped, it is closed. So one whose
//! exchange failed, timed out or was cancelled half-way is never seen again, and nobody has to remember that.
//!
//! While it is idle its stream is watched, through TLS as well: one that its peer ends, or that says something nobody
//! asked for, is closed at once by the pool's own task. A get looks once more, without a round trip: it reads a byte
//! without waiting if the runtime has heard anything, and asks the kernel, which knows a moment sooner: whether
//! something has arrived, or through TLS, where that may be a ticket, whether it is the end. So does a get that waited
//! and is given what somebody gave back. That costs no time to speak of, and leaves the moment between the look and the
//! first byte: a failure on a connection that
//! [is reused](Acquired::is_reused), before any reply, is no failure of the request.
//!
//! # Identity
//!
//! A connection may be announced as somebody's, by a PROXY header or a client certificate. Whoever gets it is taken for
//! that one. So what a connection is announced as **must be part of the target**, or of the key that
//! [`PoolLayer::keyed`] takes from it.
//!
//! # Bounds
//!
//! Places, the queue, idle connections and all times are those of [`Pooling`]. A target is remembered as long as it
//! has a connection or somebody who waits, or is to be [kept warm](Pool::keep_warm); one that could not be reached some
//! seconds longer, and of those no more than there are places.
//!
//! # Cost
//!
//! A get of an idle connection takes one short lock, allocates nothing, moves a pointer however large the stream is,
//! and asks the kernel for the one socket that it gives out. Giving back takes the lock once more. Neither reads the
//! clock: how old a connection is and since when it has been idle is for the pool's own task to say, which closes it
//! late by a sixty-fourth of the time that it may be idle at the most, and by as much as its runtime is late.
//!
//! A get that waits takes the lock with the call, with its first poll and with each one that follows, and some times
//! more if it dials. It reads the clock with its first poll; when it is served, unless somebody has read it since it
//! was given what it gets; and where it is polled while there is nothing for it, unless its time is unlimited. It asks
//! the kernel as well, clones no connector and allocates nothing, unless it dials or keeps its own time.
//!
//! Where somebody came to wait because all places were in use, a clone of the pool that had called for that target last
//! does not look with its next call, which is likely to wait as well. That takes no lock, and its first poll takes what
//! is idle by then: with one lock as well, but the clock is read once.
//!
//! # With and without
//!
//! The same calls of four bytes over the loopback, 16 tasks, with a connection each and out of a pool, by the example
//! `pool_or_not` (two cores, client and server on both):
//!
//! | | without, 2000 calls/s asked for | with | without, 12,000 asked for | with |
//! |---|---|---|---|---|
//! | calls | 16,000 | 16,000 | 24,000 | 24,000 |
//! | calls/s | 1993 | 1993 | 11,716 | 11,735 |
//! | connects | 16,000 | 12 | 24,000 | 16 |
//! | sockets in TIME_WAIT at the end | 10,216 | 0 | 14,115 | 0 |
//! | microseconds a call | 1185 | 1136 | 1483 | 1191 |
//!
//! A pool that is asked for a connection while none is idle dials, and whoever gives one back first serves that get
//! all the same: so there are a few connects more or fewer by the run, 12 to 20 in these.
//!
//! This kernel uses a port in TIME_WAIT again after a second on the loopback; to another machine it does not, and the
//! 28,232 ports that it has for one address last for 470 connections a second.
//!
//! # Own tasks
//!
//! One for the pool, which ends with the last of its clones and handles, and one for each dial. They run in the
//! runtime in which the layer was made, or in [another](Pooling::runtime). When that runtime ends, the pool closes.
//!
//! # Readiness
//!
//! Always. The connector is made ready, and called, when a dial is due.
//!
//! # Errors
//!
//! [`PoolError`], which says what the get was waiting for.
//!
//! # Cancel safety
//!
//! A get that is dropped leaves the queue without a trace, and gives back what it was given. One that was never polled
//! was never in the queue, and counts as nothing.
//!
//! # On drop
//!
//! With the last clone and handle all idle connections are closed. Those in use go on, and are closed when they are
//! given back.

mod ages;
mod books;
mod dial;
mod error;
mod fates;
mod get;
mod handle;
mod health;
mod keeper;
mod line;
mod metrics;
mod places;
mod queue;
mod returns;
mod rounds;
mod settings;
mod shared;
mod stream;
mod turns;
mod waiters;
mod warmth;
mod watch;

use std::{fmt, hash::Hash, sync::Arc};

use tokio::runtime::Handle;
use tower_layer::Layer;
use tower_service::Service;

pub use self::{
    error::{DialElapsed, DialPanicked, PoolCause, PoolError, PoolPhase},
    get::{GetFuture, Pool},
    handle::{PoolHandle, Snapshot},
    health::ConnectBackoff,
    settings::Pooling,
    stream::{Acquired, PooledIo, Served},
};
use self::{
    get::{Key, KeyOf},
    metrics::Metrics,
    shared::Shared,
};
use crate::{base::error::ConfigError, base::io::Io, conn::Conn};

/// Keeps the connections of a connector. See the [module](self).
///
/// Each connector that it is layered on has a pool of its own.
pub struct PoolLayer<T, K = T> {
    pooling: Pooling,
    runtime: Handle,
    metrics: Arc<Metrics>,
    key: Arc<KeyOf<T, K>>,
}

impl<T: Clone + 'static> PoolLayer<T> {
    /// Connections to equal targets are alike. `name` is the value of the `pool` label in the metrics, whose handles
    /// are made here, once: install the recorder first.
    ///
    /// The target is cloned for every dial.
    ///
    /// # Errors
    ///
    /// A setting that cannot work; or there is no runtime here that can keep time, and
    /// [none was given](Pooling::runtime).
    pub fn new(name: impl Into<String>, pooling: Pooling) -> Result<Self, ConfigError> {
        Self::known_by(name, pooling, Arc::new(itself))
    }
}

fn itself<T>(target: &T) -> Key<'_, T> {
    Key::Itself(target)
}

impl<T, K> PoolLayer<T, K> {
    /// Connections to targets with equal keys are alike, whatever else there is to a target. What a connection is
    /// announced as must be part of the key: see [identity](self#identity).
    ///
    /// `key` is called once or twice for a get, by the call, by the first poll or by both, and is to say the same each
    /// time; where it panics, so does that call or that poll, after which a get can be polled again. Keys are made and
    /// dropped without a lock, but compared, hashed and cloned with that of the pool: none of this may ask the pool.
    ///
    /// # Errors
    ///
    /// As [`new`](PoolLayer::new).
    pub fn keyed<F>(name: impl Into<String>, pooling: Pooling, key: F) -> Result<Self, ConfigError>
    where
        F: Fn(&T) -> K + Send + Sync + 'static,
    {
        // Said of what it takes, so that it may take anything for as long as that is there.
        fn of<T, K>(key: impl Fn(&T) -> Key<'_, K> + Send + Sync + 'static) -> Arc<KeyOf<T, K>> {
            Arc::new(key)
        }
        Self::known_by(name, pooling, of(move |target| Key::Made(key(target))))
    }

    fn known_by(
        name: impl Into<String>,
        pooling: Pooling,
        key: Arc<KeyOf<T, K>>,
    ) -> Result<Self, ConfigError> {
        Ok(Self {
            runtime: pooling.check()?,
            metrics: Arc::new(Metrics::new(&name.into())),
            pooling,
            key,
        })
    }
}

impl<T, K> Clone for PoolLayer<T, K> {
    fn clone(&self) -> Self {
        Self {
            pooling: self.pooling.clone(),
            runtime: self.runtime.clone(),
            metrics: Arc::clone(&self.metrics),
            key: Arc::clone(&self.key),
        }
    }
}

impl<T, K> fmt::Debug for PoolLayer<T, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolLayer")
            .field("pooling", &self.pooling)
            .finish_non_exhaustive()
    }
}

impl<C, T, K, I> Layer<C> for PoolLayer<T, K>
where
    C: Service<T, Response = Conn<I>>,
    K: Hash + Eq + Clone + Send + 'static,
    I: Io,
{
    type Service = Pool<C, T, K, I>;

    /// Begins the pool's own task.
    fn layer(&self, connector: C) -> Self::Service {
        let pooling = self.pooling.clone();
        let shared = Shared::new(pooling, self.runtime.clone(), Arc::clone(&self.metrics));
        keeper::keep(&shared);
        Pool::new(connector, Arc::clone(&self.key), shared)
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready, time::Duration};

    use tokio::{
        io::{DuplexStream, duplex},
        task::yield_now,
    };
    use tokio_test::{assert_pending, task};

    use super::*;
    use crate::base::{io::GuardedIo, time::count::CLOCK_READS};

    type Near = GuardedIo<DuplexStream, DuplexStream>;

    fn pool(
        pooling: Pooling,
    ) -> impl Service<u16, Response = Conn<PooledIo<Near>>, Error: fmt::Debug> {
        let connector = tower::service_fn(|_: u16| {
            let (near, far) = duplex(1);
            ready(Ok::<_, Infallible>(Conn::new(
                GuardedIo::new(near, far),
                (),
            )))
        });
        PoolLayer::new("quiet", pooling)
            .unwrap()
            .layer(connector)
    }

    #[tokio::test(start_paused = true)]
    async fn a_get_of_an_idle_connection_and_giving_it_back_read_no_clock() {
        let mut pool = pool(Pooling::default().max_lifetime(Duration::from_secs(3600)));
        pool.call(1).await.unwrap().reuse();
        yield_now().await;

        let before = CLOCK_READS.get();
        for _ in 0..1_000 {
            assert!(pool.call(1).await.unwrap().reuse());
            yield_now().await;
        }

        assert_eq!(CLOCK_READS.get() - before, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn after_one_that_waited_no_more_than_the_next_get_reads_the_clock_whatever_it_is_for() {
        for order in [[1, 2], [2, 1]] {
            let mut pool = pool(Pooling::default().max_open_per_target(1));
            pool.call(2).await.unwrap().reuse();
            let held = pool.call(1).await.unwrap();
            let mut waits = task::spawn(pool.call(1));
            assert_pending!(waits.poll());
            held.reuse();
            waits.await.unwrap().reuse();
            yield_now().await;

            let before = CLOCK_READS.get();
            for to in order {
                for _ in 0..1_000 {
                    assert!(pool.call(to).await.unwrap().reuse());
                    yield_now().await;
                }
            }

            assert_eq!(CLOCK_READS.get() - before, 1, "{order:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_wait_for_each_other_a_get_reads_the_clock_once() {
        let mut pool = pool(Pooling::default().max_open(1));
        let mut held = pool.call(1).await.unwrap();
        let mut next = task::spawn(pool.call(1));
        assert_pending!(next.poll());
        yield_now().await;

        let before = CLOCK_READS.get();
        for _ in 0..1_000 {
            assert!(held.reuse());
            let mut last = task::spawn(pool.call(1));
            assert_pending!(last.poll());
            held = next.await.unwrap();
            next = last;
        }

        assert_eq!(CLOCK_READS.get() - before, 1_000);
    }
}
