//! The pools, each with eight places.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::hint::black_box;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, yield_now};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_net::Conn;
use tower_net::io::Io;
use tower_net::pool::{PoolLayer, Pooling};

use crate::cpu;

pub(super) struct Contestant {
    pub(super) name: &'static str,
    /// One task, so many times.
    pub(super) alone: fn(u32) -> Duration,
    /// Sixty-four tasks between them: on one thread the CPU time, on more the time it takes.
    pub(super) shared: fn(Work) -> Duration,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) gets: u32,
    pub(super) threads: Option<usize>,
    /// Whether a task lets others go on while it has a connection.
    pub(super) held: bool,
}

const PLACES: usize = 8;
const TASKS: u32 = 64;

pub(super) const CONTESTANTS: &[Contestant] = &[
    Contestant {
        name: "stack",
        alone: |gets| stack_alone(gets, false),
        shared: |work| stack_shared(work, false),
    },
    // It knows how long it has waited, for which a clock is read.
    Contestant {
        name: "stack_timed",
        alone: |gets| stack_alone(gets, true),
        shared: |work| stack_shared(work, true),
    },
    // Without a bound of its own, an age or a look at the connection.
    Contestant {
        name: "hyper_cache",
        alone: |gets| {
            let mut cache = hyper_util::client::pool::cache::builder().build(Connector);
            alone(async move {
                for _ in 0..gets {
                    let ready = cache.ready().await.expect("ready");
                    let conn = ready
                        .call(addr())
                        .await
                        .expect("a connection");
                    black_box(conn.inner());
                }
            })
        },
        shared: |work| {
            let cache = hyper_util::client::pool::cache::builder().build(Connector);
            let places = Arc::new(Semaphore::new(PLACES));
            shared(work, move |turns| {
                let (mut cache, places) = (cache.clone(), Arc::clone(&places));
                async move {
                    for _ in 0..turns {
                        let place = places
                            .acquire()
                            .await
                            .expect("never closed");
                        let ready = cache.ready().await.expect("ready");
                        let conn = ready
                            .call(addr())
                            .await
                            .expect("a connection");
                        meanwhile(work.held).await;
                        black_box(conn.inner());
                        drop(conn);
                        drop(place);
                    }
                }
            })
        },
    },
    Contestant {
        name: "deadpool",
        alone: |gets| {
            let pool = deadpool();
            alone(async move {
                for _ in 0..gets {
                    black_box(&*pool.get().await.expect("a connection"));
                }
            })
        },
        shared: |work| {
            let pool = deadpool();
            shared(work, move |turns| {
                let pool = pool.clone();
                async move {
                    for _ in 0..turns {
                        let conn = pool.get().await.expect("a connection");
                        meanwhile(work.held).await;
                        black_box(&*conn);
                    }
                }
            })
        },
    },
    // It can test at each check-out, which is off here: a test is a round trip.
    Contestant {
        name: "bb8",
        alone: |gets| {
            alone(async move {
                let pool = bb8().await;
                for _ in 0..gets {
                    black_box(&*pool.get().await.expect("a connection"));
                }
            })
        },
        shared: |work| {
            let runtime = runtime(work.threads);
            let pool = runtime.block_on(bb8());
            shared_on(runtime, work, move |turns| {
                let pool = pool.clone();
                async move {
                    for _ in 0..turns {
                        let conn = pool.get().await.expect("a connection");
                        meanwhile(work.held).await;
                        black_box(&*conn);
                    }
                }
            })
        },
    },
    Contestant {
        name: "ours",
        alone: |gets| {
            alone(async move {
                let mut pool = layer().layer(Connector);
                for _ in 0..gets {
                    let conn = pool
                        .call(addr())
                        .await
                        .expect("a connection");
                    black_box(&conn);
                    conn.reuse();
                }
            })
        },
        shared: |work| {
            let runtime = runtime(work.threads);
            let entered = runtime.enter();
            let pool = layer().layer(Connector);
            drop(entered);
            shared_on(runtime, work, move |turns| {
                let mut pool = pool.clone();
                async move {
                    for _ in 0..turns {
                        let conn = pool
                            .call(addr())
                            .await
                            .expect("a connection");
                        meanwhile(work.held).await;
                        black_box(&conn);
                        conn.reuse();
                    }
                }
            })
        },
    },
    // With real sockets, each of which the kernel is asked about.
    Contestant {
        name: "ours_tcp",
        alone: |gets| {
            alone(async move {
                let (server, listener) = listener().await;
                let mut pool = layer().layer(service_fn(|to: SocketAddr| async move {
                    Conn::try_from(TcpStream::connect(to).await?)
                }));
                for _ in 0..gets {
                    let conn = pool
                        .call(server)
                        .await
                        .expect("a connection");
                    black_box(&conn);
                    conn.reuse();
                }
                drop(listener);
            })
        },
        shared: |work| {
            let runtime = runtime(work.threads);
            let (server, listener) = runtime.block_on(listener());
            let entered = runtime.enter();
            let pool = layer().layer(service_fn(|to: SocketAddr| async move {
                Conn::try_from(TcpStream::connect(to).await?)
            }));
            drop(entered);
            let taken = shared_on(runtime, work, move |turns| {
                let mut pool = pool.clone();
                async move {
                    for _ in 0..turns {
                        let conn = pool
                            .call(server)
                            .await
                            .expect("a connection");
                        meanwhile(work.held).await;
                        black_box(&conn);
                        conn.reuse();
                    }
                }
            });
            drop(listener);
            taken
        },
    },
];

fn stack_alone(gets: u32, timed: bool) -> Duration {
    let stack = stack();
    alone(async move {
        for _ in 0..gets {
            black_box(timed.then(Instant::now));
            let conn = pop(&stack);
            push(&stack, black_box(conn));
        }
    })
}

fn stack_shared(work: Work, timed: bool) -> Duration {
    let (stack, places) = (Arc::new(stack()), Arc::new(Semaphore::new(PLACES)));
    shared(work, move |turns| {
        let (stack, places) = (Arc::clone(&stack), Arc::clone(&places));
        async move {
            for _ in 0..turns {
                black_box(timed.then(Instant::now));
                let place = places
                    .acquire()
                    .await
                    .expect("never closed");
                let conn = pop(&stack);
                meanwhile(work.held).await;
                push(&stack, black_box(conn));
                drop(place);
            }
        }
    })
}

// === How they are run

/// The CPU time of this thread, without what comes before the first get and after the last.
fn alone(gets: impl Future<Output = ()>) -> Duration {
    let runtime = runtime(None);
    let begun = cpu::of_this_thread().expect("a clock");
    runtime.block_on(gets);
    cpu::of_this_thread().expect("a clock") - begun
}

fn shared<F>(work: Work, task: impl FnMut(u32) -> F) -> Duration
where
    F: Future<Output = ()> + Send + 'static,
{
    shared_on(runtime(work.threads), work, task)
}

fn shared_on<F>(runtime: Runtime, work: Work, mut task: impl FnMut(u32) -> F) -> Duration
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut run = |gets| {
        let tasks: Vec<_> = (0..TASKS).map(|_| task(gets)).collect();
        let (begun, wall) = (cpu::of_this_thread().expect("a clock"), Instant::now());
        runtime.block_on(async {
            let mut set = JoinSet::new();
            for task in tasks {
                set.spawn(task);
            }
            set.join_all().await;
        });
        (
            cpu::of_this_thread().expect("a clock") - begun,
            wall.elapsed(),
        )
    };
    // Who waits once lets others wait: so all is open before it counts.
    run(1);
    let (of_this_thread, wall) = run(work.gets / TASKS);
    match work.threads {
        None => of_this_thread,
        Some(_) => wall,
    }
}

async fn meanwhile(held: bool) {
    if held {
        yield_now().await;
    }
}

fn runtime(threads: Option<usize>) -> Runtime {
    let runtime = match threads {
        None => Builder::new_current_thread()
            .enable_all()
            .build(),
        Some(threads) => Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build(),
    };
    runtime.expect("a runtime")
}

// === What they hold

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7000))
}

async fn listener() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    (
        listener
            .local_addr()
            .expect("an address"),
        listener,
    )
}

fn stack() -> Mutex<Vec<Conn<Silent>>> {
    let conns = (0..PLACES).map(|_| Conn::new(Silent, addr()));
    Mutex::new(conns.collect())
}

fn pop(stack: &Mutex<Vec<Conn<Silent>>>) -> Conn<Silent> {
    let mut stack = stack.lock().expect("nobody panics");
    stack
        .pop()
        .expect("there is one for each")
}

fn push(stack: &Mutex<Vec<Conn<Silent>>>, conn: Conn<Silent>) {
    stack
        .lock()
        .expect("nobody panics")
        .push(conn);
}

fn layer() -> PoolLayer<SocketAddr> {
    let hour = Duration::from_secs(3600);
    let pooling = Pooling::default()
        .max_open(PLACES)
        .max_lifetime(hour);
    PoolLayer::new("bench", pooling).expect("good settings")
}

fn deadpool() -> deadpool::managed::Pool<Manager> {
    let builder = deadpool::managed::Pool::builder(Manager).max_size(PLACES);
    builder.build().expect("good settings")
}

async fn bb8() -> bb8::Pool<Manager> {
    let builder = bb8::Pool::builder()
        .max_size(PLACES as u32)
        .test_on_check_out(false);
    builder
        .build(Manager)
        .await
        .expect("good settings")
}

#[derive(Debug, Clone, Copy)]
struct Manager;

impl deadpool::managed::Manager for Manager {
    type Type = Conn<Silent>;
    type Error = Infallible;

    async fn create(&self) -> Result<Conn<Silent>, Infallible> {
        Ok(Conn::new(Silent, addr()))
    }

    async fn recycle(
        &self,
        _: &mut Conn<Silent>,
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Infallible> {
        Ok(())
    }
}

impl bb8::ManageConnection for Manager {
    type Connection = Conn<Silent>;
    type Error = Infallible;

    async fn connect(&self) -> Result<Conn<Silent>, Infallible> {
        Ok(Conn::new(Silent, addr()))
    }

    async fn is_valid(&self, _: &mut Conn<Silent>) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut Conn<Silent>) -> bool {
        false
    }
}

#[derive(Debug, Clone, Copy)]
struct Connector;

impl Service<SocketAddr> for Connector {
    type Response = Conn<Silent>;
    type Error = Infallible;
    type Future = Ready<Result<Conn<Silent>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: SocketAddr) -> Self::Future {
        ready(Ok(Conn::new(Silent, addr())))
    }
}

/// A peer that says nothing.
#[derive(Debug)]
struct Silent;

impl Io for Silent {}

impl AsyncRead for Silent {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Silent {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
