//! How a connection goes on whose requests have ids: replies as they come, bounds, cancels, wakes.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::{Notify, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_test::{assert_pending, task};
use tokio_util::codec::{Decoder, Encoder};
use tower::{ServiceBuilder, limit::GlobalConcurrencyLimitLayer, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, Deadline,
    error::BoxError,
    frame::{
        CodecError, Delimited, FrameLayer, Framing, Incoming, LengthDelimited, Outgoing, Request,
        RpcCodec, RpcFrame, RpcLayer,
    },
    io::OpaqueIo,
};
use tower_service::Service;

use crate::support::{
    io::{Drip, Script, Vectored},
    peer::{Peer, serve},
    random::Random,
    readings::{Readings, recorded},
    service::{millis, obey, secs},
};

pub(crate) const MAX: usize = 1_000;

pub(crate) fn multiplexed() -> Framing {
    Framing::default().multiplexed(4)
}

pub(crate) fn layer(framing: Framing) -> RpcLayer {
    RpcLayer::with_framing(RpcCodec::max_payload(MAX), framing).unwrap()
}

/// A client of the RPC framing.
pub(crate) struct Caller {
    pub(crate) peer: Peer,
    codec: RpcCodec,
    input: BytesMut,
}

impl Caller {
    /// Of a service that obeys.
    pub(crate) fn new(framing: Framing) -> Self {
        Self::of(layer(framing).layer(service_fn(obey)))
    }

    pub(crate) fn of<S>(service: S) -> Self
    where
        S: Service<Conn<DuplexStream>, Response = (), Error: Into<BoxError>, Future: Send>,
        S: Send + 'static,
    {
        Self::from(Peer::of(service))
    }

    pub(crate) fn from(peer: Peer) -> Self {
        Self {
            peer,
            codec: RpcCodec::max_payload(1 << 20),
            input: BytesMut::new(),
        }
    }

    pub(crate) async fn send(&mut self, frame: RpcFrame) {
        self.peer.send(wire([frame])).await;
    }

    pub(crate) async fn ask(&mut self, id: u64, request: &str) {
        self.send(ask(id, request)).await;
    }

    pub(crate) async fn ask_within(&mut self, id: u64, budget: Duration, request: &str) {
        let deadline = Deadline::within(budget);
        self.send(RpcFrame::request(id, deadline, request.to_owned()))
            .await;
    }

    pub(crate) async fn cancel(&mut self, id: u64) {
        self.send(RpcFrame::cancel(id)).await;
    }

    /// The next frame in words; `end` at the end of the stream.
    pub(crate) async fn hear(&mut self) -> String {
        let week = secs(7 * 86_400);
        loop {
            if let Some(frame) = self
                .codec
                .decode(&mut self.input)
                .unwrap()
            {
                return words(&frame);
            }
            let read = self.peer.io.read_buf(&mut self.input);
            if timeout(week, read)
                .await
                .expect("it is heard of")
                .unwrap()
                == 0
            {
                assert!(self.input.is_empty(), "an end inside a frame");
                return "end".to_owned();
            }
        }
    }

    /// The next frames, as many as are `expected`.
    pub(crate) async fn hears<const N: usize>(&mut self, expected: [&str; N]) {
        for expected in expected {
            assert_eq!(self.hear().await, expected);
        }
    }

    pub(crate) async fn hears_nothing_for(&mut self, time: Duration) -> bool {
        assert!(self.input.is_empty());
        self.peer.hears_nothing_for(time).await
    }
}

pub(crate) fn ask(id: u64, request: &str) -> RpcFrame {
    RpcFrame::request(id, Deadline::NEVER, request.to_owned())
}

pub(crate) fn wire(frames: impl IntoIterator<Item = RpcFrame>) -> BytesMut {
    let mut wire = BytesMut::new();
    for frame in frames {
        RpcCodec::max_payload(1 << 20)
            .encode(frame, &mut wire)
            .unwrap();
    }
    wire
}

fn words(frame: &RpcFrame) -> String {
    match frame {
        RpcFrame::Reply { id, payload, .. } => {
            format!("{id} {}", String::from_utf8_lossy(payload))
        }
        RpcFrame::Failure { id, failure, .. } => format!("{id} !{failure}"),
        RpcFrame::Leaving { last, .. } => format!("leaving after {last}"),
        other => panic!("{other:?} from a server"),
    }
}

// === Order

#[tokio::test(start_paused = true)]
async fn replies_come_as_they_are_ready() {
    let mut caller = Caller::new(multiplexed());
    let start = Instant::now();

    caller.ask(1, "wait 300 one").await;
    caller.ask(2, "wait 100 two").await;
    caller.ask(3, "three").await;
    caller.ask(4, "wait 200 four").await;

    caller
        .hears(["3 three", "2 two", "4 four", "1 one"])
        .await;
    assert_eq!(start.elapsed(), millis(300));
    caller.ask(5, "five").await;
    caller.hears(["5 five"]).await;
    assert_eq!(caller.peer.leave().await, Some(CloseReason::Peer));
}

#[tokio::test(start_paused = true)]
async fn pipelined_replies_have_their_ids_and_come_in_order() {
    for framing in [Framing::default(), Framing::default().pipelined(4)] {
        let mut caller = Caller::new(framing);

        caller.ask(1, "wait 300 one").await;
        caller.ask(5, "five").await;
        caller.ask(7, "wait 100 seven").await;
        caller.ask(8, "").await;

        caller
            .hears(["1 one", "5 five", "7 seven", "8 "])
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_is_not_held_back_by_half_of_the_next_frame_nor_by_a_late_one() {
    let mut caller = Caller::new(multiplexed());
    let mut bytes = wire([ask(1, "wait 500 one"), ask(2, "two"), ask(3, "three")]);
    let rest = bytes.split_off(bytes.len() - 3);

    caller.peer.send(bytes).await;
    caller.hears(["2 two"]).await;
    caller.peer.send(rest).await;

    caller.hears(["3 three", "1 one"]).await;
}

#[tokio::test(start_paused = true)]
async fn frames_may_come_and_go_byte_by_byte() {
    let (near, mut far) = duplex(64);
    let service = layer(multiplexed()).layer(service_fn(obey));
    let (_, _served) = serve(Drip::new(near), service);
    let expected = wire([RpcFrame::reply(1, "one"), RpcFrame::reply(2, "two")]);

    far.write_all(&wire([ask(1, "one"), ask(2, "wait 10 two")]))
        .await
        .unwrap();
    let mut heard = vec![0; expected.len()];
    far.read_exact(&mut heard)
        .await
        .unwrap();

    assert_eq!(heard, expected);
}

#[tokio::test(start_paused = true)]
async fn whatever_the_pieces_and_the_pace_every_request_is_answered_once() {
    for seed in 1..=200 {
        let mut random = Random::new(seed);
        let depth = random.among(1, 9);
        let ordered = random.below(4) == 0;
        let framing = if ordered {
            Framing::default().pipelined(depth)
        } else {
            Framing::default().multiplexed(depth)
        };
        let framing = framing.high_water(random.pick(&[1, 50, 500, 65_536]));
        let room = random.pick(&[1, 7, 64, 4_096]);
        let service = layer(framing).layer(service_fn(obey));
        let mut caller = Caller::from(Peer::with_room(room, service));
        let (mut sent, mut expected, mut id) = (BytesMut::new(), BTreeMap::new(), 0);
        for _ in 0..random.among(1, 60) {
            id += random.among(1, 4) as u64;
            let length = random.among(0, 200);
            let (request, reply) = match random.below(6) {
                0 | 1 => (format!("wait {length} {id}"), id.to_string()),
                2 => (format!("long {length}"), "x".repeat(length)),
                3 => (format!("fail {length}"), "!failed".to_owned()),
                4 => (
                    "y".repeat(MAX + length + 1),
                    format!(
                        "!longer than a frame may be, never started: {} bytes are over the limit of {MAX}",
                        MAX + length + 1
                    ),
                ),
                _ => (id.to_string(), id.to_string()),
            };
            sent.extend(wire([ask(id, &request)]));
            expected.insert(id, format!("{id} {reply}"));
        }

        let mut writing = Random::new(seed);
        let (mut read, mut write) = caller.peer.split();
        let asking = tokio::spawn(async move {
            let mut rest = &sent[..];
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(writing.among(1, 100).min(rest.len()));
                write.write_all(piece).await.unwrap();
                sleep(millis(writing.pick(&[0, 0, 30]))).await;
                rest = later;
            }
            write.shutdown().await.unwrap();
        });
        let (mut heard, mut input) = (Vec::new(), BytesMut::new());
        while read.read_buf(&mut input).await.unwrap() > 0 {
            while let Some(frame) = caller.codec.decode(&mut input).unwrap() {
                heard.push(words(&frame));
            }
            sleep(millis(random.pick(&[0, 0, 5]))).await;
        }

        asking.await.unwrap();
        if !ordered {
            heard.sort_by_key(|word| {
                word.split(' ')
                    .next()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap()
            });
        }
        let expected: Vec<_> = expected.into_values().collect();
        assert_eq!(heard, expected, "seed {seed}");
        assert!(caller.peer.ended().await.is_ok(), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn replies_that_are_ready_together_go_out_in_one_write_and_a_flush() {
    let (sink, calls) = Vectored::pair();
    let asked = wire([ask(1, "one"), ask(2, "two"), ask(3, "three")]);
    let io = tokio::io::join(Script::new().bytes(asked), sink);

    let service = layer(multiplexed()).layer(service_fn(obey));
    let (_, _served) = serve(OpaqueIo::new(io), service);
    sleep(millis(1)).await;

    let [writes, vectored, flushes, _] = calls.counts();
    assert_eq!((writes + vectored, flushes), (1, 1));
}

// === Bounds

/// Counts who is inside at once.
#[derive(Debug, Default)]
struct Inside {
    now: AtomicUsize,
    most: AtomicUsize,
    ever: AtomicUsize,
}

/// Obeys, and counts.
fn counted(
    inside: &Arc<Inside>,
) -> impl Service<
    Request<Bytes>,
    Response = String,
    Error = io::Error,
    Future = impl Future<Output = io::Result<String>> + Send,
> + Clone
+ Send
+ 'static {
    struct Out(Arc<Inside>);
    impl Drop for Out {
        fn drop(&mut self) {
            self.0.now.fetch_sub(1, Relaxed);
        }
    }
    let inside = Arc::clone(inside);
    service_fn(move |request: Request<Bytes>| {
        inside.ever.fetch_add(1, Relaxed);
        let now = inside.now.fetch_add(1, Relaxed) + 1;
        inside.most.fetch_max(now, Relaxed);
        let out = Out(Arc::clone(&inside));
        async move {
            let _out = out;
            obey(request).await
        }
    })
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_depth_are_ever_in_flight() {
    for depth in [1, 3, 64, 200] {
        let inside = Arc::new(Inside::default());
        let framing = Framing::default().multiplexed(depth);
        let mut caller = Caller::of(layer(framing).layer(counted(&inside)));
        let mut random = Random::new(depth as u64);

        let all = (1..=500).map(|id| ask(id, &format!("wait {} x", random.below(50))));
        caller.peer.send(wire(all)).await;
        let mut heard: Vec<String> = Vec::new();
        for _ in 0..500 {
            heard.push(caller.hear().await);
        }

        heard.sort();
        heard.dedup();
        assert_eq!(heard.len(), 500);
        assert_eq!(inside.now.load(Relaxed), 0);
        assert_eq!(inside.most.load(Relaxed), depth);
    }
}

#[tokio::test(start_paused = true)]
async fn with_the_depth_in_flight_one_more_is_taken_in_and_then_nothing_is_read() {
    let inside = Arc::new(Inside::default());
    let service = layer(multiplexed()).layer(counted(&inside));
    let mut peer = Peer::with_room(64, service);
    let (_read, mut write) = peer.split();
    let sent = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&sent);
    let asking = tokio::spawn(async move {
        for id in 1..=20_000 {
            let one = wire([ask(id, "wait 999999 x")]);
            if write.write_all(&one).await.is_err() {
                break;
            }
            counting.fetch_add(1, Relaxed);
        }
    });

    sleep(secs(20)).await;

    assert_eq!(inside.ever.load(Relaxed), 4);
    // What one read brought, and the pipe: not thousands.
    assert!(sent.load(Relaxed) < 10, "{sent:?}");
    asking.abort();
}

#[tokio::test(start_paused = true)]
async fn refusals_that_keep_their_place_stay_within_the_depth() {
    let (layer, metrics) = recorded(|| layer(Framing::default().pipelined(4)));
    let mut caller = Caller::of(layer.layer(service_fn(obey)));
    let refused = || metrics.of("tower_net_requests_total", &[("outcome", "refused")]);
    let mut all = wire([ask(1, "wait 1000 one")]);
    for id in 2..=40 {
        all.extend(wire([ask(id, &"x".repeat(MAX + 1))]));
    }

    caller.peer.send(all).await;
    sleep(millis(500)).await;
    let while_it_runs = refused();
    caller.hears(["1 one"]).await;
    for id in 2..=40 {
        let heard = caller.hear().await;
        assert!(heard.starts_with(&format!("{id} !longer")), "{heard}");
    }

    assert_eq!((while_it_runs, refused()), (3.0, 39.0));
}

#[tokio::test(start_paused = true)]
async fn refusals_that_nobody_reads_stay_below_the_mark() {
    let (layer, metrics) = recorded(|| layer(multiplexed().high_water(1_000)));
    let service = layer.layer(service_fn(obey));
    let mut peer = Peer::with_room(500, service);
    let (_read, mut write) = peer.split();
    let asking = tokio::spawn(async move {
        for id in 1.. {
            let mut odd = wire([ask(id, "")]);
            odd[6] = 0x80;
            if write.write_all(&odd).await.is_err() {
                break;
            }
        }
    });
    sleep(secs(10)).await;

    // Each is told in about fifty bytes: a thousand are queued, and the pipe is full.
    let refused = metrics.of("tower_net_requests_total", &[("outcome", "refused")]);
    assert!((15.0..40.0).contains(&refused), "{refused}");
    asking.abort();
}

#[tokio::test(start_paused = true)]
async fn above_the_high_water_mark_nothing_is_taken_until_half_of_it_is_gone() {
    let taken = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&taken);
    let handler = service_fn(move |_: Request<Bytes>| {
        seen.fetch_add(1, Relaxed);
        std::future::ready(Ok::<_, BoxError>([b'x'; 80]))
    });
    let framing = multiplexed().high_water(1_000);
    let mut peer = Peer::with_room(300, layer(framing).layer(handler));
    let (mut read, mut write) = peer.split();
    let asking = tokio::spawn(async move {
        for id in 1.. {
            if write
                .write_all(&wire([ask(id, "")]))
                .await
                .is_err()
            {
                break;
            }
        }
    });

    sleep(secs(1)).await;
    let full = taken.load(Relaxed);
    read.read_exact(&mut [0; 100])
        .await
        .unwrap();
    sleep(secs(1)).await;
    let above_half = taken.load(Relaxed);
    read.read_exact(&mut [0; 200])
        .await
        .unwrap();
    sleep(secs(1)).await;
    let below_half = taken.load(Relaxed);

    assert_eq!((full, above_half), (10, 10));
    assert!(below_half > 10 && below_half <= 20, "{below_half}");
    asking.abort();
}

#[tokio::test(start_paused = true)]
async fn late_replies_are_bounded_by_the_mark_as_well() {
    let done = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&done);
    let handler = service_fn(move |_: Request<Bytes>| {
        let seen = Arc::clone(&seen);
        async move {
            sleep(millis(10)).await;
            seen.fetch_add(1, Relaxed);
            Ok::<_, BoxError>([b'x'; 80])
        }
    });
    let framing = Framing::default()
        .multiplexed(100)
        .high_water(1_000)
        .reply_deadline(Duration::MAX);
    let mut peer = Peer::with_room(300, layer(framing).layer(handler));
    let (mut read, mut write) = peer.split();
    let all = wire((1..=100).map(|id| ask(id, "")));
    let asking = tokio::spawn(async move { write.write_all(&all).await });

    sleep(secs(100)).await;
    let full = done.load(Relaxed);
    read.read_exact(&mut [0; 100 * 100])
        .await
        .unwrap();

    // A thousand bytes queued, of which 300 go into the pipe.
    assert!(full <= 13, "{full}");
    assert_eq!(done.load(Relaxed), 100);
    asking.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn handlers_are_not_blamed_while_the_peer_does_not_take_its_replies() {
    let framing = multiplexed()
        .high_water(100)
        .handler_deadline(secs(5))
        .reply_deadline(Duration::MAX);
    let service = layer(framing).layer(service_fn(obey));
    let mut caller = Caller::from(Peer::with_room(200, service));

    caller.ask(1, "long 900").await;
    caller.ask(2, "wait 3000 two").await;
    caller.ask(3, "wait 4000 three").await;
    sleep(secs(60)).await;

    assert_eq!(caller.hear().await.len(), 902);
    caller.hears(["2 two", "3 three"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_stock_limit_is_shared_by_the_connections_and_freed_by_each() {
    let limit = GlobalConcurrencyLimitLayer::with_semaphore(Arc::new(Semaphore::new(1)));
    let service = ServiceBuilder::new()
        .layer(layer(multiplexed()))
        .layer(limit)
        .service_fn(obey);
    let (mut one, mut other) = (Caller::of(service.clone()), Caller::of(service));

    one.ask(1, "wait 1000 one").await;
    sleep(millis(10)).await;
    other.ask(1, "other").await;

    assert!(
        other
            .hears_nothing_for(millis(500))
            .await
    );
    one.hears(["1 one"]).await;
    other.hears(["1 other"]).await;
}

#[tokio::test(start_paused = true)]
async fn the_instance_that_was_made_ready_is_the_one_called() {
    // A mock panics when it is called without having been made ready, and a clone of it is not ready.
    let (service, mut handle) = tower_test::mock::pair::<Request<Bytes>, String>();
    let mut caller = Caller::of(layer(multiplexed()).layer(service));

    for id in 1..=3 {
        caller.ask(id, "x").await;
        let (_, answer) = handle.next_request().await.unwrap();
        answer.send_response("done".to_owned());
        assert_eq!(caller.hear().await, format!("{id} done"));
    }
}

// === Cancel

#[tokio::test(start_paused = true)]
async fn a_cancel_drops_the_handler_and_nothing_is_answered() {
    for framing in [multiplexed(), Framing::default().pipelined(4)] {
        for beside in [0, 1, 2] {
            let inside = Arc::new(Inside::default());
            let mut caller = Caller::of(layer(framing.clone()).layer(counted(&inside)));
            for id in 0..=beside {
                caller.ask(1 + id, "wait 1000 x").await;
            }
            sleep(millis(100)).await;

            caller.cancel(1).await;
            sleep(millis(1)).await;

            assert_eq!(inside.now.load(Relaxed), beside as usize);
            for id in 1..=beside {
                assert_eq!(caller.hear().await, format!("{} x", 1 + id));
            }
            caller.ask(9, "nine").await;
            caller.hears(["9 nine"]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_is_seen_with_the_depth_in_flight_and_makes_room() {
    let inside = Arc::new(Inside::default());
    let mut caller = Caller::of(layer(multiplexed()).layer(counted(&inside)));
    caller.ask(1, "wait 100 one").await;
    for id in 2..=4 {
        caller.ask(id, "wait 20000 x").await;
    }
    caller.cancel(3).await;
    caller.ask(5, "five").await;
    caller.hears(["5 five"]).await;
    caller.ask(6, "wait 20000 x").await;

    // One more than there is room for waits, and a cancel behind it is seen once that has been taken.
    caller.ask(7, "wait 20000 x").await;
    caller.cancel(2).await;
    caller.ask(8, "eight").await;
    sleep(millis(50)).await;
    assert_eq!(inside.now.load(Relaxed), 4);

    caller.hears(["1 one", "8 eight"]).await;
    assert_eq!(inside.now.load(Relaxed), 3);
    assert_eq!(inside.most.load(Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_room_is_cancelled_by_what_is_behind_it() {
    let inside = Arc::new(Inside::default());
    let framing = Framing::default().multiplexed(1);
    let mut caller = Caller::of(layer(framing).layer(counted(&inside)));
    caller
        .peer
        .send(wire([
            ask(1, "wait 100 one"),
            ask(2, "wait 1000 two"),
            RpcFrame::cancel(2),
            ask(3, "three"),
        ]))
        .await;

    caller.hears(["1 one", "3 three"]).await;
    assert_eq!(inside.now.load(Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_of_what_is_not_in_flight_is_nothing() {
    let mut caller = Caller::new(multiplexed());
    caller.ask(1, "one").await;
    caller.hears(["1 one"]).await;

    caller.cancel(1).await;
    caller.cancel(77).await;
    caller.cancel(u64::MAX).await;
    caller.ask(2, "wait 10 two").await;
    caller.cancel(1).await;

    caller.hears(["2 two"]).await;
}

#[tokio::test(start_paused = true)]
async fn cancels_of_everything_at_once_leave_nothing_behind() {
    let inside = Arc::new(Inside::default());
    let framing = Framing::default().multiplexed(100);
    let mut caller = Caller::of(layer(framing).layer(counted(&inside)));
    for round in 0..3 {
        let ids = round * 100 + 1..=round * 100 + 100;
        let asked = ids
            .clone()
            .map(|id| ask(id, "wait 5000 x"));
        caller.peer.send(wire(asked)).await;
        sleep(millis(1)).await;
        assert_eq!(inside.now.load(Relaxed), 100);

        caller
            .peer
            .send(wire(ids.map(RpcFrame::cancel)))
            .await;
        sleep(millis(1)).await;

        assert_eq!(inside.now.load(Relaxed), 0);
    }
    caller.ask(1_000, "still here").await;
    caller.hears(["1000 still here"]).await;
}

// === Wakes

/// A handler that waits to be told, and counts how often it is polled.
#[derive(Debug, Default, Clone)]
struct Told {
    handlers: Arc<Mutex<BTreeMap<String, Handler>>>,
}

/// How one is told, and how often it was polled.
type Handler = (Arc<Notify>, Arc<AtomicUsize>);

impl Told {
    async fn handle(self, request: Request<Bytes>) -> io::Result<Bytes> {
        let (told, polls) = self.of(std::str::from_utf8(request.message()).unwrap());
        let mut told = Box::pin(async move { told.notified().await });
        poll_fn(|cx| {
            polls.fetch_add(1, Relaxed);
            told.as_mut().poll(cx)
        })
        .await;
        Ok(request.into_message())
    }

    fn of(&self, name: &str) -> Handler {
        let mut handlers = self.handlers.lock().unwrap();
        handlers
            .entry(name.to_owned())
            .or_default()
            .clone()
    }

    fn polls(&self, name: &str) -> usize {
        self.of(name).1.load(Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_that_wait_only_who_is_woken_is_polled() {
    for framing in [
        Framing::default().multiplexed(200),
        Framing::default().pipelined(200),
    ] {
        let told = Told::default();
        let handler = told.clone();
        let service = service_fn(move |request| handler.clone().handle(request));
        let mut caller = Caller::of(layer(framing).layer(service));
        let all = (1..=150).map(|id| ask(id, &id.to_string()));
        caller.peer.send(wire(all)).await;
        sleep(millis(1)).await;
        let before: Vec<_> = (1..=150)
            .map(|id| told.polls(&id.to_string()))
            .collect();

        told.of("1").0.notify_one();
        caller.hears(["1 1"]).await;
        told.of("120").0.notify_one();
        sleep(millis(1)).await;

        // Each was polled at its start; the first two again, when they ceased to be one alone.
        assert!(before.iter().all(|polls| *polls <= 2), "{before:?}");
        assert_eq!(before.iter().sum::<usize>(), 152);
        let after: usize = (1..=150)
            .map(|id| told.polls(&id.to_string()))
            .sum();
        assert_eq!(after, 154);
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_wakes_itself_does_not_keep_others_from_their_turn() {
    let handler = service_fn(async |request: Request<Bytes>| {
        if &request.message()[..] == b"restless" {
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::<()>::Pending
            })
            .await;
        }
        sleep(millis(10)).await;
        Ok::<_, BoxError>(request.into_message())
    });
    let (near, mut far) = duplex(1_000);
    let mut service = layer(multiplexed()).layer(handler);
    let mut served = task::spawn(service.call(Conn::new(near, ())));
    far.write_all(&wire([ask(1, "restless"), ask(2, "two")]))
        .await
        .unwrap();

    assert_pending!(served.poll());
    assert!(served.is_woken());
    for _ in 0..10 {
        assert_pending!(served.poll());
        assert!(served.is_woken());
    }
    tokio::time::advance(millis(10)).await;
    assert_pending!(served.poll());

    let expected = wire([RpcFrame::reply(2, "two")]);
    let mut heard = vec![0; expected.len()];
    far.read_exact(&mut heard)
        .await
        .unwrap();
    assert_eq!(heard, expected);
}

#[tokio::test(start_paused = true)]
async fn a_waker_that_outlives_its_handler_does_no_harm() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeping = Arc::clone(&kept);
    let handler = service_fn(move |request: Request<Bytes>| {
        let kept = Arc::clone(&keeping);
        async move {
            poll_fn(|cx| {
                kept.lock()
                    .unwrap()
                    .push(cx.waker().clone());
                Poll::Ready(())
            })
            .await;
            obey(request).await
        }
    });
    let mut caller = Caller::of(layer(multiplexed()).layer(handler));
    for round in 0..3 {
        for id in 1..=3 {
            caller
                .ask(round * 3 + id, "wait 10 x")
                .await;
        }
        for _ in 1..=3 {
            caller.hear().await;
        }
        for waker in kept.lock().unwrap().iter() {
            waker.wake_by_ref();
        }
    }
    caller.peer.leave().await;

    for waker in kept.lock().unwrap().drain(..) {
        waker.wake();
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_keeps_a_connection_that_has_ended() {
    for requests in [&["one"][..], &["wait 10 x"; 3], &["fail 10"; 3], &["panic"]] {
        let mut caller = Caller::new(multiplexed());
        for (id, request) in (1..).zip(requests) {
            caller.ask(id, request).await;
        }
        let info = Arc::downgrade(&caller.peer.info);
        sleep(millis(20)).await;

        caller.peer.leave().await;

        assert!(info.upgrade().is_none(), "{requests:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn handlers_of_a_dropped_connection_are_dropped_with_it() {
    for requests in [1, 3] {
        let inside = Arc::new(Inside::default());
        let mut service = layer(multiplexed()).layer(counted(&inside));
        let asked = (1..=requests).map(|id| ask(id, "wait 10 x"));
        let io = Script::new().bytes(wire(asked));
        let mut call = task::spawn(service.call(Conn::new(io, ())));
        assert_pending!(call.poll());
        let running = inside.now.load(Relaxed);

        drop(call);

        assert_eq!((running as u64, inside.now.load(Relaxed)), (requests, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn taken_apart_it_gives_back_what_lies_between_the_stream_and_the_handlers() {
    let mut service = layer(multiplexed()).layer(service_fn(obey));
    let (near, mut far) = duplex(256);
    let call = service.call(Conn::new(near, ()));
    far.write_all(&wire([ask(1, "long 300"), ask(2, "wait 10 x")]))
        .await
        .unwrap();
    far.write_all(b"\0\0").await.unwrap();
    let mut call = task::spawn(call);
    assert_pending!(call.poll());

    let parts = call.into_inner().into_parts().unwrap();

    assert_eq!(&parts.read[..], b"\0\0");
    assert_eq!(parts.unwritten.len(), 320 - 256);
}

// === Metrics, settings, codecs of one's own

#[tokio::test(start_paused = true)]
async fn each_request_is_counted_by_what_became_of_it() {
    let (layer, metrics): (_, Readings) =
        recorded(|| layer(multiplexed().handler_deadline(secs(2))));
    let mut caller = Caller::of(layer.layer(service_fn(obey)));

    caller.ask(1, "at once").await;
    caller.ask(2, "wait 10 x").await;
    caller.ask(3, "wait 20 x").await;
    caller
        .hears(["1 at once", "2 x", "3 x"])
        .await;
    caller.ask(4, "fail").await;
    caller.ask(5, "fail 10").await;
    caller.ask(6, "panic").await;
    caller.ask(7, "panic 10").await;
    caller.ask(8, "wait 3000 x").await;
    caller.ask(9, "wait 3000 x").await;
    caller.cancel(9).await;
    caller
        .ask(10, &"x".repeat(MAX + 1))
        .await;
    for _ in 0..6 {
        caller.hear().await;
    }

    let of = |outcome| metrics.of("tower_net_requests_total", &[("outcome", outcome)]);
    assert_eq!(of("ok"), 3.0);
    assert_eq!(of("failed"), 5.0);
    assert_eq!(of("cancelled"), 1.0);
    assert_eq!(of("refused"), 1.0);
    assert_eq!(metrics.of("tower_net_request_seconds", &[]), 8.0);
    assert_eq!(metrics.of("tower_net_write_queue_bytes", &[]), 0.0);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    for (framing, setting) in [
        (Framing::default().multiplexed(0), "multiplexed"),
        (Framing::default().pipelined(0), "pipelined"),
        (
            Framing::default().refusal_budget(0, secs(1)),
            "refusal_budget",
        ),
        (
            Framing::default().refusal_budget(1, Duration::ZERO),
            "refusal_budget",
        ),
    ] {
        let refused = RpcLayer::with_framing(RpcCodec::max_payload(9), framing);
        assert_eq!(refused.unwrap_err().setting(), setting);
    }
    let by_order = FrameLayer::with_framing(Delimited::lines(9), multiplexed());
    assert_eq!(by_order.unwrap_err().setting(), "multiplexed");
    // The last word counts.
    let framing = multiplexed().pipelined(3);
    assert!(FrameLayer::with_framing(LengthDelimited::max_frame(9), framing).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_payload_over_the_default_buffer_needs_no_other_setting() {
    let service = RpcLayer::new(9 << 20).layer(service_fn(async |request: Request<Bytes>| {
        Ok::<_, BoxError>(request.message().len().to_string())
    }));
    let mut caller = Caller::from(Peer::with_room(1 << 20, service));
    let large = RpcFrame::request(1, Deadline::NEVER, vec![b'x'; 9 << 20]);
    let mut bytes = BytesMut::new();
    RpcCodec::max_payload(9 << 20)
        .encode(large, &mut bytes)
        .unwrap();

    caller.peer.send(bytes).await;

    caller.hears(["1 9437184"]).await;
}

/// Lines that begin with an id, which may be used again once it is answered.
#[derive(Debug, Clone)]
struct Numbered(Delimited);

impl Decoder for Numbered {
    type Item = Incoming<Bytes>;
    type Error = CodecError;

    fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Incoming<Bytes>>, CodecError> {
        Ok(self.0.decode(input)?.map(|line| {
            let text = std::str::from_utf8(&line).unwrap();
            match text.split_once(' ') {
                None => Incoming::Nothing,
                Some((id, "stop")) => Incoming::Cancel {
                    id: id.parse().unwrap(),
                },
                Some((id, message)) => Incoming::Request {
                    id: id.parse().unwrap(),
                    left: None,
                    message: Bytes::copy_from_slice(message.as_bytes()),
                },
            }
        }))
    }
}

impl Encoder<Outgoing<String>> for Numbered {
    type Error = CodecError;

    fn encode(&mut self, message: Outgoing<String>, out: &mut BytesMut) -> Result<(), CodecError> {
        match message {
            Outgoing::Reply { id, reply } => self
                .0
                .encode(format!("{id} {reply}"), out),
            Outgoing::Failure { id, failure } => self
                .0
                .encode(format!("{id} !{failure}"), out),
            _ => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_codec_of_ones_own_is_multiplexed_too() {
    let layer = RpcLayer::with_framing(Numbered(Delimited::lines(100)), multiplexed()).unwrap();
    let mut peer = Peer::of(layer.layer(service_fn(obey)));

    peer.send("5 wait 20 five\nping\n3 three\n4 wait 10 four\n7 wait 10 x\n7 stop\n3 again\n")
        .await;

    for reply in ["3 three", "3 again", "4 four", "5 five"] {
        assert_eq!(peer.hear().await, reply);
    }
    peer.send("5 five\n3 wait 10 three\n3 twice\n")
        .await;
    for reply in [
        "5 five",
        "3 three",
        "0 !not of this protocol: request id 3 cannot be used, or not again",
    ] {
        assert_eq!(peer.hear().await, reply);
    }
    assert_eq!(peer.leave().await, Some(CloseReason::Protocol));
}
