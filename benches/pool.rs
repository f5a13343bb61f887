//! What it costs to get a connection out of a pool and to give it back.

#[allow(dead_code, reason = "nothing here needs a peer that speaks")]
mod harness;

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use harness::Scene;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Semaphore,
    task::{JoinSet, yield_now},
};
use tower::{Layer, Service};
use tower_net::{
    Conn,
    io::Io,
    pool::{Pool, PoolLayer, Pooling},
};

const SCENES: &[Scene] = &[
    ("a mutexed stack", |rounds| {
        let stack = Mutex::new(vec![Conn::new(Silent, ())]);
        run(async {
            for _ in 0..rounds {
                let conn = pop(&stack);
                push(&stack, conn);
            }
        });
    }),
    ("pool", |rounds| {
        run(async {
            let mut pool = pool(8);
            for _ in 0..rounds {
                get_and_give_back(&mut pool, 1).await;
            }
        });
    }),
    ("pool, two targets in turn", |rounds| {
        run(async {
            let mut pool = pool(8);
            for round in 0..rounds {
                get_and_give_back(&mut pool, round % 2).await;
            }
        });
    }),
    ("pool, a new connection each time", |rounds| {
        run(async {
            let mut pool = pool(8);
            for _ in 0..rounds {
                drop(
                    pool.call(1)
                        .await
                        .expect("a connection"),
                );
            }
        });
    }),
    ("a mutexed stack and a semaphore, 64 on 8", |rounds| {
        run(async {
            let conns = (0..8).map(|_| Conn::new(Silent, ()));
            let stack = Arc::new((Mutex::new(conns.collect::<Vec<_>>()), Semaphore::new(8)));
            many(rounds, |turns| {
                let stack = Arc::clone(&stack);
                async move {
                    for _ in 0..turns {
                        let permit = stack
                            .1
                            .acquire()
                            .await
                            .expect("never closed");
                        let conn = pop(&stack.0);
                        yield_now().await;
                        push(&stack.0, conn);
                        drop(permit);
                    }
                }
            })
            .await;
        });
    }),
    ("pool, 64 on 8", |rounds| {
        run(async {
            let pool = pool(8);
            many(rounds, |turns| {
                let mut pool = pool.clone();
                async move {
                    for _ in 0..turns {
                        let conn = pool
                            .call(1)
                            .await
                            .expect("a connection");
                        yield_now().await;
                        conn.reuse();
                    }
                }
            })
            .await;
        });
    }),
];

fn main() {
    harness::main("pool", "a get and what is given back", SCENES);
}

type Silents = Pool<Connector, u64, u64, Silent>;

fn pool(open: usize) -> Silents {
    let pooling = Pooling::default().max_open(open);
    let layer = PoolLayer::new("bench", pooling).expect("good settings");
    layer.layer(Connector)
}

async fn get_and_give_back(pool: &mut Silents, to: u64) {
    let conn = pool
        .call(to)
        .await
        .expect("a connection");
    conn.reuse();
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

/// Sixty-four tasks that do so much between them.
async fn many<F>(rounds: u64, mut task: impl FnMut(u64) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for place in 0..64 {
        tasks.spawn(task((rounds + place) / 64));
    }
    tasks.join_all().await;
}

fn run(scene: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .expect("a runtime")
        .block_on(scene);
}

#[derive(Debug, Clone, Copy)]
struct Connector;

impl Service<u64> for Connector {
    type Response = Conn<Silent>;
    type Error = Infallible;
    type Future = Ready<Result<Conn<Silent>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: u64) -> Self::Future {
        ready(Ok(Conn::new(Silent, ())))
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
