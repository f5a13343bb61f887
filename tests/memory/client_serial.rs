//! One exchange after the other, each on a connection of its own while it lasts.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_test::{assert_ready, task};
use tokio_util::codec::{Decoder, Encoder};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_net::{
    Conn, Deadline,
    budget::Phase,
    client::{CallCause, InOrder, Lease, RetryBudget, Serial, Settings, Unpooled},
    frame::{LengthDelimited, RpcCode, RpcCodec, RpcFailure, RpcFrame},
    io::OpaqueIo,
    pool::{PoolLayer, Pooling},
};

use crate::{
    client::settle,
    support::{
        readings::recorded,
        rpc::{Peer, peers},
        service::{millis, secs},
    },
};

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// A pool that gives out what it is told to, and keeps what is given back.
#[derive(Clone, Default)]
struct Shelf {
    to_give: Arc<Mutex<VecDeque<Leased>>>,
    given_back: Arc<Mutex<Vec<DuplexStream>>>,
    deadlines: Arc<Mutex<Vec<Deadline>>>,
}

struct Leased {
    io: Option<DuplexStream>,
    is_reused: bool,
    breaks: Option<Breaks>,
    given_back: Arc<Mutex<Vec<DuplexStream>>>,
}

/// How a connection fails at the first write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Breaks {
    /// As a socket does.
    Plain,
    /// As a stream may that keeps bytes of its own.
    Doubtful,
}

impl Shelf {
    fn put(&self, is_reused: bool) -> Peer {
        let (near, far) = duplex(1 << 16);
        self.add(near, is_reused, None);
        Peer::new(far)
    }

    /// One that fails at the first write; with the other end, which is not to be dropped before that.
    fn put_broken(&self, breaks: Breaks) -> DuplexStream {
        let (near, far) = duplex(1);
        self.add(near, true, Some(breaks));
        far
    }

    fn add(&self, io: DuplexStream, is_reused: bool, breaks: Option<Breaks>) {
        self.to_give
            .lock()
            .unwrap()
            .push_back(Leased {
                io: Some(io),
                is_reused,
                breaks,
                given_back: self.given_back.clone(),
            });
    }

    fn given_back(&self) -> usize {
        self.given_back.lock().unwrap().len()
    }

    fn left(&self) -> usize {
        self.to_give.lock().unwrap().len()
    }
}

impl Service<()> for Shelf {
    type Response = Leased;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Leased>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        self.deadlines
            .lock()
            .unwrap()
            .push(Deadline::current());
        let next = self.to_give.lock().unwrap().pop_front();
        std::future::ready(next.ok_or_else(|| io::Error::other("the shelf is empty")))
    }
}

impl Lease for Leased {
    fn is_reused(&self) -> bool {
        self.is_reused
    }

    fn is_plain(&self) -> bool {
        self.breaks == Some(Breaks::Plain)
    }

    fn give_back(mut self) {
        let io = self.io.take().unwrap();
        self.given_back.lock().unwrap().push(io);
    }
}

impl Leased {
    fn io(&mut self) -> Pin<&mut DuplexStream> {
        Pin::new(self.io.as_mut().unwrap())
    }
}

impl AsyncRead for Leased {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.io().poll_read(cx, buf)
    }
}

impl AsyncWrite for Leased {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.breaks.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.io().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }
}

fn serial(settings: Settings) -> (Serial<Shelf, ()>, Shelf) {
    let shelf = Shelf::default();
    let codec = RpcCodec::max_payload(1024);
    let serial = Serial::with_protocol(codec, settings, shelf.clone(), ()).unwrap();
    (serial, shelf)
}

// === What is given back

#[tokio::test(start_paused = true)]
async fn a_connection_is_given_back_after_a_whole_reply() {
    let (serial, shelf) = serial(Settings::default());
    let mut peer = shelf.put(false);

    let call = tokio::spawn(serial.send(text("x")));
    peer.echo().await;

    assert_eq!(call.await.unwrap().unwrap(), "x");
    assert_eq!(shelf.given_back(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_in_the_peers_own_words_is_a_whole_reply() {
    let (serial, shelf) = serial(Settings::default());
    let mut peer = shelf.put(false);
    let call = tokio::spawn(serial.send(text("x")));
    let asked = peer.asked().await;
    let failure = RpcFailure::new(RpcCode::Failed, "no");
    peer.say(RpcFrame::failure(asked.id, failure.clone()))
        .await;

    let error = call.await.unwrap().unwrap_err();

    assert_eq!(error.failure(), Some(&failure));
    assert_eq!(shelf.given_back(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_which_anything_is_doubtful_is_closed() {
    let (serial, shelf) = serial(Settings::default().call_deadline(secs(1)));
    for what in [
        "late",
        "given up",
        "more behind",
        "leaving",
        "ended",
        "nothing",
        "garbage",
    ] {
        let mut peer = shelf.put(false);
        let call = tokio::spawn(serial.send(text("x")));
        let asked = peer.asked().await;
        match what {
            "given up" => call.abort(),
            "more behind" => {
                let mut bytes = Vec::from(&b"\0\0\0\x10\x01\x02\0\x10"[..]);
                bytes.extend(asked.id.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.push(0);
                peer.raw(&bytes).await;
            }
            "leaving" => {
                peer.say(RpcFrame::leaving(asked.id))
                    .await;
                peer.reply(asked.id, "").await;
            }
            "ended" => {
                peer.reply(asked.id, "").await;
                let mut io = peer.into_io();
                io.shutdown().await.unwrap();
                // Kept, so that nothing but the end is seen.
                peer = Peer::new(io);
            }
            "nothing" => drop(std::mem::replace(&mut peer, shelf.put(false))),
            "garbage" => peer.raw(b"HTTP/1.1 400").await,
            _ => {}
        }
        let outcome = call.await;
        let is_reply = matches!(what, "more behind" | "leaving" | "ended");
        assert_eq!(
            outcome.is_ok_and(|outcome| outcome.is_ok()),
            is_reply,
            "{what}"
        );
        if what == "ended" {
            // It may have been read before the end was: then the pool will find out.
            shelf.given_back.lock().unwrap().clear();
        }
        assert_eq!(shelf.given_back(), 0, "{what}");
        shelf.to_give.lock().unwrap().clear();
    }
}

#[tokio::test(start_paused = true)]
async fn ids_rise_on_a_connection_whoever_uses_it() {
    let (one, shelf) = serial(Settings::default());
    let other = Serial::new(shelf.clone(), ());
    let mut peer = shelf.put(false);
    let mut last = 0;
    for turn in 0..4 {
        let call = match turn % 2 {
            0 => tokio::spawn(one.send(text("x"))),
            _ => tokio::spawn(other.send(text("x"))),
        };
        let id = peer.echo().await.id;
        call.await.unwrap().unwrap();
        assert!(id > last);
        last = id;
        let io = shelf
            .given_back
            .lock()
            .unwrap()
            .pop()
            .unwrap();
        shelf.add(io, true, None);
    }
}

// === Once more

#[tokio::test(start_paused = true)]
async fn a_call_that_could_not_be_written_to_a_used_connection_is_made_again_on_a_fresh_one() {
    let ((serial, shelf), readings) = recorded(|| serial(Settings::default().service("x")));
    let _broken = shelf.put_broken(Breaks::Plain);
    // Those that the pool still has are as old.
    let _used = [shelf.put(true), shelf.put(true)];
    let mut fresh = shelf.put(false);

    let call = tokio::spawn(serial.send(text("x")));
    assert_eq!(fresh.echo().await.text, "x");

    assert_eq!(call.await.unwrap().unwrap(), "x");
    assert_eq!((shelf.left(), shelf.given_back()), (0, 1));
    let labels = [("service", "x"), ("outcome", "retried")];
    assert_eq!(readings.of("tower_net_client_retries_total", &labels), 1.0);
}

#[tokio::test(start_paused = true)]
async fn what_a_stream_may_have_sent_in_a_write_that_failed_is_not_made_again() {
    let (serial, shelf) = serial(Settings::default());
    let _broken = shelf.put_broken(Breaks::Doubtful);
    let _fresh = shelf.put(false);

    let error = serial
        .send(text("x"))
        .await
        .unwrap_err();

    assert!(!error.never_started() && !error.was_retried(), "{error:?}");
    assert_eq!(shelf.left(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_here_already_is_seen_before_a_call_is_written() {
    let (serial, shelf) = serial(Settings::default());
    // What is written to it goes nowhere, and does not fail.
    let (near, mut far) = duplex(1 << 16);
    far.shutdown().await.unwrap();
    shelf.add(near, true, None);
    let mut fresh = shelf.put(false);

    let call = tokio::spawn(serial.send(text("x")));

    assert_eq!(fresh.echo().await.text, "x");
    assert_eq!(call.await.unwrap().unwrap(), "x");
    let mut written = Vec::new();
    far.read_to_end(&mut written)
        .await
        .unwrap();
    assert!(written.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_others_have_left_behind_is_nobodys_answer() {
    let shelf = Shelf::default();
    let frames = InOrder::new(LengthDelimited::max_frame(1024));
    let serial = Serial::with_protocol(frames, Settings::default(), shelf.clone(), ()).unwrap();
    let (near, mut far) = duplex(1 << 16);
    far.write_all(b"\0\0\0\x05stray")
        .await
        .unwrap();
    shelf.add(near, true, None);
    let (near, mut fresh) = duplex(1 << 16);
    shelf.add(near, false, None);

    let call = tokio::spawn(serial.send(text("x")));
    fresh
        .write_all(b"\0\0\0\x03own")
        .await
        .unwrap();

    assert_eq!(call.await.unwrap().unwrap(), "own");
}

/// Numbers its frames, as a codec may that has a state: the peer would know one that comes out of turn.
#[derive(Clone, Default)]
struct Numbered {
    written: u8,
}

impl Encoder<Bytes> for Numbered {
    type Error = io::Error;

    fn encode(&mut self, frame: Bytes, out: &mut BytesMut) -> io::Result<()> {
        self.written += 1;
        out.put_u8(self.written);
        out.put_slice(&frame);
        Ok(())
    }
}

impl Decoder for Numbered {
    type Item = Bytes;
    type Error = io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> io::Result<Option<Bytes>> {
        Ok((!input.is_empty()).then(|| input.split().freeze()))
    }
}

#[tokio::test(start_paused = true)]
async fn each_connection_has_a_codec_of_its_own() {
    let shelf = Shelf::default();
    let numbered = InOrder::new(Numbered::default());
    let serial = Serial::with_protocol(numbered, Settings::default(), shelf.clone(), ()).unwrap();
    let _broken = shelf.put_broken(Breaks::Plain);
    let (near, mut fresh) = duplex(1 << 16);
    shelf.add(near, false, None);

    let call = tokio::spawn(serial.send(text("x")));
    let mut written = [0; 2];
    fresh
        .read_exact(&mut written)
        .await
        .unwrap();
    fresh.write_all(b"y").await.unwrap();

    assert_eq!(&written, b"\x01x");
    assert_eq!(call.await.unwrap().unwrap(), "y");
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_on_a_used_connection_is_made_again_and_not_a_third_time() {
    let (serial, shelf) = serial(Settings::default());
    let (mut used, mut fresh) = (shelf.put(true), shelf.put(false));
    let call = tokio::spawn(serial.send(text("x")));
    used.refuse().await;
    fresh.refuse().await;

    let error = call.await.unwrap().unwrap_err();

    assert!(error.was_retried() && error.never_started());
    // Both have answered, and nothing is wrong with either.
    assert_eq!(shelf.given_back(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_processed_is_not_made_again_nor_what_failed_on_a_fresh_connection() {
    let (serial, shelf) = serial(Settings::default());
    let mut used = shelf.put(true);
    let call = tokio::spawn(serial.send(text("x")));
    used.asked().await;
    drop(used);
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error.cause(), CallCause::Closed(_)), "{error}");
    assert!(!error.never_started());

    let mut fresh = shelf.put(false);
    let call = tokio::spawn(serial.send(text("x")));
    fresh.refuse().await;
    let error = call.await.unwrap().unwrap_err();
    assert!(error.never_started() && !error.was_retried());
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_nothing_is_made_again() {
    let (serial, shelf) = serial(Settings::default().retries(RetryBudget::none()));
    let _broken = shelf.put_broken(Breaks::Plain);
    let _fresh = shelf.put(false);

    let error = serial
        .send(text("x"))
        .await
        .unwrap_err();

    assert!(error.is_retryable() && !error.was_retried());
    assert_eq!(shelf.left(), 1);
}

// === Deadlines

#[tokio::test(start_paused = true)]
async fn the_pool_knows_the_deadline_and_the_peer_what_is_left_of_it() {
    let (serial, shelf) = serial(Settings::default());
    let mut peer = shelf.put(false);
    let budget = Deadline::within(secs(2));

    let call = tokio::spawn(budget.scope(async move { serial.send(text("x")).await }));

    assert_eq!(peer.echo().await.left, Some(secs(2)));
    call.await.unwrap().unwrap();
    assert_eq!(*shelf.deadlines.lock().unwrap(), [budget]);
}

#[tokio::test(start_paused = true)]
async fn where_the_time_went_is_told() {
    let (connector, mut peers) = peers(1 << 16);
    let slow = service_fn(move |()| {
        let connecting = connector.clone().oneshot(());
        async move {
            sleep(millis(30)).await;
            connecting.await
        }
    });
    let settings = Settings::default().call_deadline(millis(100));
    let codec = RpcCodec::max_payload(1024);
    let serial = Serial::with_protocol(codec, settings, Unpooled::new(slow), ()).unwrap();
    let begun = Instant::now();

    let error = serial
        .send(text("x"))
        .await
        .unwrap_err();

    assert_eq!(begun.elapsed(), millis(100));
    let spent = error.budget().unwrap();
    assert_eq!(spent.phase(), Phase::Calling);
    assert_eq!(spent.spent_in(Phase::Connecting), millis(30));
    assert_eq!(spent.spent_in(Phase::Calling), millis(70));
    // And the connection is closed, which is how the peer knows.
    let mut peer = peers.next().await;
    peer.asked().await;
    assert_eq!(peer.frame().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_takes_no_connection() {
    let (serial, shelf) = serial(Settings::default());
    let _peer = shelf.put(false);

    let none = Deadline::within(std::time::Duration::ZERO);
    let error = none
        .scope(async { serial.send(text("x")).await })
        .await
        .unwrap_err();

    assert_eq!(error.phase(), Phase::Waiting);
    assert!(error.never_started());
    assert_eq!(shelf.left(), 1);
}

#[test]
fn without_a_runtime_it_says_so() {
    let (serial, _shelf) = serial(Settings::default());

    let error = assert_ready!(task::spawn(serial.send(text("x"))).poll()).unwrap_err();

    assert!(matches!(error.cause(), CallCause::NoTimer(_)), "{error}");
}

// === With the pool

#[tokio::test(start_paused = true)]
async fn exchanges_share_the_connections_of_a_pool() {
    let (arriving, mut peers) = mpsc::unbounded_channel();
    let connector = service_fn(move |()| {
        let (near, far) = duplex(1 << 16);
        arriving.send(far).unwrap();
        std::future::ready(Ok::<_, io::Error>(Conn::new(near, ())))
    });
    let pool = PoolLayer::new("x", Pooling::default())
        .unwrap()
        .layer(connector);
    let frames = InOrder::new(LengthDelimited::max_frame(1024));
    let serial = Serial::with_protocol(frames, Settings::default(), pool, ()).unwrap();
    tokio::spawn(async move {
        while let Some(mut io) = peers.recv().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(&mut io);
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });

    for number in 0..10 {
        let call = Bytes::from(format!("call {number}"));
        let reply = serial.send(call.clone()).await.unwrap();
        assert_eq!(reply, call);
    }

    let snapshot = {
        // All on one connection, which is idle now.
        settle().await;
        serial.connector().handle().snapshot()
    };
    assert_eq!((snapshot.open(), snapshot.idle()), (1, 1));
}

// === Nothing can be written any more

#[tokio::test(start_paused = true)]
async fn an_answer_to_half_a_call_is_heard_although_the_rest_cannot_be_written() {
    // The peer has seen enough, and its answer is heard of later than that it takes no more.
    let script = |answer: &[u8]| {
        tokio_test::io::Builder::new()
            .write(b"\0\0\0\x05he")
            .write_error(io::ErrorKind::BrokenPipe.into())
            .wait(millis(1))
            .read(answer)
            .build()
    };
    for (answer, heard) in [(&b"\0\0\0\x02no"[..], Some("no")), (b"", None)] {
        let only = Arc::new(Mutex::new(Some(script(answer))));
        let connect = service_fn(move |()| {
            let io = only.lock().unwrap().take();
            let conn = io.map(|io| Conn::new(OpaqueIo::new(io), ()));
            std::future::ready(conn.ok_or_else(|| io::Error::other("there is one only")))
        });
        let protocol = InOrder::new(LengthDelimited::max_frame(1024));
        let connector = Unpooled::new(connect);
        let serial = Serial::with_protocol(protocol, Settings::default(), connector, ()).unwrap();

        let outcome = serial.send(text("hello")).await;

        match heard {
            Some(heard) => assert_eq!(outcome.unwrap(), heard),
            None => assert!(!outcome.unwrap_err().never_started()),
        }
    }
}
