//! Clients on real sockets: servers that end connections as they like, and one budget over a chain of services.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream as StdStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::{net::TcpStream, task::JoinSet, time::Instant};
use tokio_util::codec::{Decoder, Encoder};
use tower::{Layer, Service, service_fn};
use tower_net::{
    Conn, Deadline, Server,
    budget::Phase,
    client::{CallError, Client, RetryBudget, Serial, Settings, Unpooled},
    frame::{Request, RpcCode, RpcCodec, RpcFailure, RpcFrame, RpcLayer},
    listen::Tcp,
    pool::{PoolLayer, Pooling},
};

use crate::{
    peer::soon,
    support::{
        process::PATIENCE,
        random::Random,
        service::{millis, secs},
    },
};

fn connector()
-> impl Service<SocketAddr, Response = Conn<TcpStream>, Error = io::Error, Future: Send>
+ Clone
+ Send
+ 'static {
    service_fn(async |to: SocketAddr| TcpStream::connect(to).await?.try_into())
}

/// A server of threads that speaks the RPC framing by hand, one connection after another, and ends each as it is told.
struct Rude {
    addr: SocketAddr,
    /// Requests that were read whole.
    begun: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

/// One connection of it.
struct Speaker {
    stream: StdStream,
    codec: RpcCodec,
    input: BytesMut,
}

impl Speaker {
    /// The next request; none at the end of the stream.
    fn request(&mut self) -> Option<(u64, Bytes)> {
        loop {
            match self
                .codec
                .decode(&mut self.input)
                .unwrap()
            {
                Some(RpcFrame::Request { id, payload, .. }) => return Some((id, payload)),
                Some(_) => continue,
                None => {}
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) | Err(_) => return None,
                Ok(read) => self
                    .input
                    .extend_from_slice(&chunk[..read]),
            }
        }
    }

    fn say(&mut self, frames: impl IntoIterator<Item = RpcFrame>) {
        let mut output = BytesMut::new();
        for frame in frames {
            self.codec
                .encode(frame, &mut output)
                .unwrap();
        }
        // A client that has gone has heard enough.
        let _gone = self.stream.write_all(&output);
    }
}

impl Rude {
    fn serve(behave: impl Fn(&mut Speaker, &AtomicUsize) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let rude = Self {
            addr: listener.local_addr().unwrap(),
            begun: Arc::default(),
            connections: Arc::default(),
        };
        let (begun, connections) = (rude.begun.clone(), rude.connections.clone());
        let behave = Arc::new(behave);
        thread::spawn(move || {
            for stream in listener.incoming() {
                connections.fetch_add(1, Relaxed);
                let (behave, begun) = (behave.clone(), begun.clone());
                thread::spawn(move || {
                    let mut speaker = Speaker {
                        stream: stream.unwrap(),
                        codec: RpcCodec::max_payload(1 << 20),
                        input: BytesMut::new(),
                    };
                    behave(&mut speaker, &begun);
                });
            }
        });
        rude
    }

    fn begun(&self) -> usize {
        self.begun.load(Relaxed)
    }

    fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

/// Makes so many calls from each of so many tasks; returns those that failed.
async fn call(client: &Client, tasks: usize, calls: usize) -> Vec<CallError> {
    let mut callers = JoinSet::new();
    for task in 0..tasks {
        let client = client.clone();
        callers.spawn(async move {
            let mut failed = Vec::new();
            for call in 0..calls {
                let call = Bytes::from(format!("{task}.{call}"));
                match client.send(call.clone()).await {
                    Ok(reply) => assert_eq!(reply, call),
                    Err(error) => failed.push(error),
                }
            }
            failed
        });
    }
    callers
        .join_all()
        .await
        .into_iter()
        .flatten()
        .collect()
}

// === Servers that end connections

#[tokio::test]
async fn a_server_that_says_that_it_leaves_costs_no_call_however_often_it_does() {
    let rude = Rude::serve(|speaker, begun| {
        for _ in 0..3 {
            let Some((id, payload)) = speaker.request() else {
                return;
            };
            begun.fetch_add(1, Relaxed);
            speaker.say([RpcFrame::reply(id, payload)]);
        }
        let Some((id, payload)) = speaker.request() else {
            return;
        };
        begun.fetch_add(1, Relaxed);
        speaker.say([RpcFrame::leaving(id), RpcFrame::reply(id, payload)]);
        // Until the client has left as well.
        while speaker.request().is_some() {}
    });
    let client = Client::new(connector(), rude.addr);

    let failed = call(&client, 8, 50).await;

    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(rude.begun(), 400);
    assert_eq!(rude.connections(), 100);
}

#[tokio::test]
async fn a_server_that_just_closes_costs_only_what_it_may_have_begun() {
    let rude = Rude::serve(|speaker, begun| {
        for _ in 0..5 {
            let Some((id, payload)) = speaker.request() else {
                return;
            };
            begun.fetch_add(1, Relaxed);
            speaker.say([RpcFrame::reply(id, payload)]);
        }
    });
    let client = Client::new(connector(), rude.addr);

    let failed = call(&client, 4, 50).await;

    // Nobody is told that a call failed of which it is certain that it was not begun, with a fresh connection to be had.
    let certain = failed
        .iter()
        .filter(|error| error.never_started() && !error.was_retried());
    assert_eq!(certain.count(), 0, "{failed:?}");
    assert!(rude.begun() >= 200 - failed.len());
}

/// Waits for what comes without waiting in the kernel.
async fn until_there<T>(mut look: impl FnMut() -> Option<T>) -> T {
    soon(async {
        loop {
            if let Some(there) = look() {
                return there;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn an_end_that_the_kernel_knows_of_and_the_runtime_does_not_yet_costs_no_call() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let settings = Settings::default().retries(RetryBudget::none());
    let client = Client::with_settings(settings, connector(), addr).unwrap();

    for turn in 0..20 {
        let call = tokio::spawn(client.send(Bytes::from_static(b"x")));
        let (stream, _) = until_there(|| listener.accept().ok()).await;
        stream.set_nonblocking(true).unwrap();
        let mut speaker = Speaker {
            stream,
            codec: RpcCodec::max_payload(1024),
            input: BytesMut::new(),
        };
        let (id, payload) = until_there(|| speaker.request()).await;
        speaker.say([RpcFrame::reply(id, payload)]);
        assert_eq!(call.await.unwrap().unwrap(), "x");
        if turn % 2 == 0 {
            speaker.say([RpcFrame::leaving(id)]);
        }
        // Nothing is waited for until the next call is made.
        drop(speaker);
    }
}

#[tokio::test]
async fn a_server_that_resets_ends_in_the_middle_or_says_too_much_is_survived() {
    let turn = AtomicUsize::new(0);
    let rude = Rude::serve(move |speaker, begun| {
        let Some((id, payload)) = speaker.request() else {
            return;
        };
        begun.fetch_add(1, Relaxed);
        match turn.fetch_add(1, Relaxed) % 4 {
            0 => {
                speaker.say([RpcFrame::reply(id, payload)]);
                // Words that nobody asked for.
                speaker.say([RpcFrame::reply(id + (1 << 30), "stray")]);
            }
            1 => {
                let _gone = speaker
                    .stream
                    .write_all(&[0, 0, 0, 99, 1, 2]);
            }
            2 => {
                let socket = SockRef::from(&speaker.stream);
                socket
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
            }
            _ => {
                speaker.say([RpcFrame::reply(id, payload)]);
                while let Some((id, payload)) = speaker.request() {
                    begun.fetch_add(1, Relaxed);
                    speaker.say([RpcFrame::reply(id, payload)]);
                }
            }
        }
    });
    let client = Client::new(connector(), rude.addr);

    // One at a time: each that fails was begun, and in the end there is a connection that lasts.
    let mut failed = 0;
    for number in 0..100 {
        let call = Bytes::from(number.to_string());
        match client.send(call.clone()).await {
            Ok(reply) => assert_eq!(reply, call),
            Err(error) => {
                assert!(!error.never_started(), "{error:?}");
                failed += 1;
            }
        }
    }

    assert!((2..=3).contains(&failed), "{failed}");
    assert_eq!(client.in_flight(), 0);
}

#[tokio::test]
async fn a_server_that_comes_back_is_found_again_by_calls_that_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(connector(), addr);
    let call = tokio::spawn(client.send(Bytes::from_static(b"x")));
    // It has met nobody.
    while client.connections() == 0 {
        tokio::task::yield_now().await;
    }

    let echo =
        service_fn(async |request: Request<Bytes>| Ok::<_, RpcFailure>(request.into_message()));
    let server = Server::new(Tcp::bind(addr).await.unwrap()).serve(RpcLayer::new(1024).layer(echo));
    let handle = server.handle();
    let serving = tokio::spawn(server.into_future());

    assert_eq!(call.await.unwrap().unwrap(), "x");
    drop(client);
    handle.shutdown();
    let report = serving.await.unwrap().unwrap();
    assert_eq!((report.opened(), report.cut()), (1, 0));
}

#[tokio::test]
async fn a_drain_loses_no_call() {
    let begun = Arc::new(AtomicUsize::new(0));
    let count = begun.clone();
    let echo = service_fn(move |request: Request<Bytes>| {
        count.fetch_add(1, Relaxed);
        async { Ok::<_, RpcFailure>(request.into_message()) }
    });
    let stack = RpcLayer::new(1024).layer(echo);
    // Two servers, one after the other at what the client takes for one address.
    let now: Arc<Mutex<SocketAddr>> = Arc::new(Mutex::new(([127, 0, 0, 1], 1).into()));
    let mut servers = Vec::new();
    for _ in 0..2 {
        let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Server::new(listener).serve(stack.clone());
        let handle = server.handle();
        servers.push((addr, handle, tokio::spawn(server.into_future())));
    }
    *now.lock().unwrap() = servers[0].0;
    let target = now.clone();
    let connect = service_fn(move |()| {
        let to = *target.lock().unwrap();
        async move { TcpStream::connect(to).await?.try_into() }
    });
    let client = Client::new(connect, ());
    let calling = {
        let client = client.clone();
        tokio::spawn(async move { call(&client, 16, 500).await })
    };
    while begun.load(Relaxed) < 1000 {
        tokio::task::yield_now().await;
    }

    // In the middle of it.
    *now.lock().unwrap() = servers[1].0;
    servers[0].1.shutdown();

    let failed = calling.await.unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(begun.load(Relaxed), 16 * 500);
    drop(client);
    for (_, handle, serving) in servers {
        handle.shutdown();
        let report = serving.await.unwrap().unwrap();
        assert_eq!(report.cut(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_of_many_threads_given_up_at_random_leave_nothing_behind_and_mix_nothing_up() {
    let at_work = Arc::new(AtomicUsize::new(0));
    let count = at_work.clone();
    let echo = service_fn(move |request: Request<Bytes>| {
        let at_work = count.clone();
        async move {
            struct AtWork(Arc<AtomicUsize>);
            impl Drop for AtWork {
                fn drop(&mut self) {
                    self.0.fetch_sub(1, Relaxed);
                }
            }
            at_work.fetch_add(1, Relaxed);
            let _at_work = AtWork(at_work);
            let message = request.into_message();
            if message.len() % 3 == 0 {
                tokio::time::sleep(millis(message.len() as u64 % 4)).await;
            }
            Ok::<_, RpcFailure>(message)
        }
    });
    let server = serve(echo).await;
    let settings = Settings::default().in_flight(16);
    let client = Client::with_settings(settings, connector(), server).unwrap();

    let mut callers = JoinSet::new();
    for caller in 0..64 {
        let client = client.clone();
        callers.spawn(async move {
            let mut random = Random::new(caller);
            let mut answered = 0;
            for number in 0..100 {
                let call = format!(
                    "{caller}.{number}.{}",
                    "x".repeat(random.below(200) as usize)
                );
                let calling = client.send(Bytes::from(call.clone()));
                if random.below(3) == 0 {
                    let patience = Duration::from_micros(random.below(3000));
                    if let Ok(reply) = tokio::time::timeout(patience, calling).await {
                        assert_eq!(reply.unwrap(), call);
                        answered += 1;
                    }
                } else {
                    assert_eq!(calling.await.unwrap(), call);
                    answered += 1;
                }
            }
            answered
        });
    }
    let answered: usize = callers
        .join_all()
        .await
        .into_iter()
        .sum();

    assert!(answered >= 64 * 50, "{answered}");
    assert_eq!((client.in_flight(), client.connections()), (0, 1));
    drop(client);
    while at_work.load(Relaxed) > 0 {
        tokio::task::yield_now().await;
    }
}

// === One exchange after the other

#[tokio::test]
async fn pooled_exchanges_with_a_server_that_closes_when_it_likes_fail_only_if_they_may_have_been_begun()
 {
    let rude = Rude::serve(|speaker, begun| {
        for _ in 0..2 {
            let Some((id, payload)) = speaker.request() else {
                return;
            };
            begun.fetch_add(1, Relaxed);
            speaker.say([RpcFrame::reply(id, payload)]);
        }
    });
    let pool = PoolLayer::new("rude", Pooling::default())
        .unwrap()
        .layer(connector());
    let serial = Serial::new(pool, rude.addr);

    let mut failed = 0;
    for number in 0..100 {
        let call = Bytes::from(number.to_string());
        match serial.send(call.clone()).await {
            Ok(reply) => assert_eq!(reply, call),
            Err(error) => {
                assert!(!error.never_started(), "{error:?}");
                failed += 1;
            }
        }
    }

    // What is seen in time costs nothing; what is not was written.
    assert!(rude.begun() >= 100 - failed, "{failed} failed");
    assert!(rude.connections() >= (100 - failed) / 2);
}

#[tokio::test]
async fn unpooled_each_exchange_has_a_connection_of_its_own() {
    let rude = Rude::serve(|speaker, _| {
        while let Some((id, payload)) = speaker.request() {
            speaker.say([RpcFrame::reply(id, payload)]);
        }
    });
    let serial = Serial::new(Unpooled::new(connector()), rude.addr);

    for _ in 0..10 {
        serial
            .send(Bytes::from_static(b"x"))
            .await
            .unwrap();
    }

    assert_eq!(rude.connections(), 10);
}

// === One budget over a chain

/// When what happened, by name.
type Diary = Arc<Mutex<Vec<(&'static str, Instant)>>>;

async fn serve<S>(service: S) -> SocketAddr
where
    S: Service<Request<Bytes>, Response = Bytes, Error = RpcFailure> + Clone + Send + 'static,
    S::Future: Send,
{
    let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let stack = RpcLayer::new(1024).layer(service);
    tokio::spawn(
        Server::new(listener)
            .serve(stack)
            .into_future(),
    );
    addr
}

#[tokio::test]
async fn over_a_chain_of_three_one_of_which_hangs_every_hop_gives_up_within_the_budget() {
    const BUDGET: Duration = millis(500);
    let diary = Diary::default();
    let note = |diary: &Diary, what| {
        diary
            .lock()
            .unwrap()
            .push((what, Instant::now()))
    };
    let book = diary.clone();
    let c = serve(service_fn(move |_: Request<Bytes>| {
        note(&book, "c begins");
        std::future::pending::<Result<Bytes, RpcFailure>>()
    }))
    .await;
    let hop = |who: [&'static str; 2], next: SocketAddr| {
        let (next, diary) = (Client::new(connector(), next), diary.clone());
        serve(service_fn(move |request: Request<Bytes>| {
            note(&diary, who[0]);
            let budget = Deadline::current().less(millis(100));
            let call = budget.scope(next.send(request.into_message()));
            let diary = diary.clone();
            async move {
                let reply = call.await;
                note(&diary, who[1]);
                reply.map_err(|error: CallError| {
                    let spent = error
                        .budget()
                        .map(|spent| spent.phase());
                    assert!(spent.is_none_or(|phase| phase == Phase::Calling));
                    error.to_failure()
                })
            }
        }))
    };
    let b = hop(["b begins", "b gives up"], c).await;
    let a = hop(["a begins", "a gives up"], b).await;
    let client = Client::new(connector(), a);

    let begun = Instant::now();
    let call = Deadline::within(BUDGET).scope(async {
        client
            .send(Bytes::from_static(b"x"))
            .await
    });
    let error = tokio::time::timeout(PATIENCE, call)
        .await
        .unwrap()
        .unwrap_err();
    let ended = Instant::now();

    // On a machine that belongs to others meanwhile, the first may be late before it hears from the others.
    match error.failure() {
        Some(failure) => {
            assert_eq!(failure.code(), RpcCode::Spent);
            assert!(
                failure
                    .text()
                    .starts_with("budget spent calling"),
                "{failure}"
            );
        }
        None => assert_eq!(error.budget().unwrap().phase(), Phase::Calling),
    }
    assert!(!error.never_started());
    assert!(ended - begun >= BUDGET - millis(201), "{:?}", ended - begun);
    // Nobody begins anything after it.
    tokio::time::sleep(BUDGET).await;
    let diary = diary.lock().unwrap();
    let begins = diary
        .iter()
        .filter(|(what, _)| what.ends_with("begins"));
    assert!(
        begins
            .clone()
            .all(|(_, at)| *at < ended),
        "{diary:?}"
    );
    assert_eq!(begins.count(), 3, "{diary:?}");
}

#[tokio::test]
async fn a_deadline_that_travels_is_one_that_the_server_keeps() {
    let seen = Arc::new(Mutex::new(None));
    let see = seen.clone();
    let server = serve(service_fn(move |request: Request<Bytes>| {
        *see.lock().unwrap() = Some(Deadline::current().remaining());
        async { Ok(request.into_message()) }
    }))
    .await;
    let settings = Settings::default().call_deadline(secs(20));
    let client = Client::with_settings(settings, connector(), server).unwrap();

    client
        .send(Bytes::from_static(b"x"))
        .await
        .unwrap();

    let left = seen.lock().unwrap().unwrap();
    assert!(left <= secs(20) && left > Duration::ZERO, "{left:?}");
}
