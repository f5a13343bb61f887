//! What is done twice, and what is not: calls that are lost with their connection, moved, refused.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    sync::mpsc,
    time::{Instant, sleep},
};
use tower::{Layer, Service, service_fn};
use tower_net::{
    Conn,
    budget::Phase,
    client::{CallError, Client, RetryBudget, Serial, Settings},
    frame::{RpcCode, RpcFailure, RpcFrame},
    io::Io,
    pool::{PoolLayer, Pooling},
};

use crate::{
    client::{client, settle},
    support::{
        readings::recorded,
        rpc::{Peer, Peers, peers},
        service::secs,
    },
};

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn sent(
    client: &Client,
    call: &'static str,
) -> tokio::task::JoinHandle<Result<Bytes, CallError>> {
    let call = tokio::spawn(client.send(text(call)));
    settle().await;
    call
}

/// A client whose connection has served before, with room for a few bytes only: 400 of a call are never all written.
async fn used(settings: Settings) -> (Client, Peers, Peer) {
    let (connector, mut peers) = peers(256);
    let client = Client::with_settings(settings, connector, ()).unwrap();
    let call = tokio::spawn(client.send(text("before")));
    let mut peer = peers.next().await;
    peer.echo().await;
    call.await.unwrap().unwrap();
    (client, peers, peer)
}

fn long() -> Bytes {
    Bytes::from(vec![b'x'; 400])
}

// === Lost with the connection

#[tokio::test(start_paused = true)]
async fn calls_of_which_no_byte_was_written_are_made_again_once_the_others_fail() {
    let ((client, mut peers), readings) = recorded(|| {
        let (connector, peers) = peers(256);
        let settings = Settings::default().service("x");
        (
            Client::with_settings(settings, connector, ()).unwrap(),
            peers,
        )
    });
    let call = tokio::spawn(client.send(text("before")));
    let mut peer = peers.next().await;
    peer.echo().await;
    call.await.unwrap().unwrap();
    let begun = tokio::spawn(client.send(long()));
    settle().await;
    let behind = [sent(&client, "one").await, sent(&client, "two").await];

    drop(peer);

    let error = begun.await.unwrap().unwrap_err();
    assert!(!error.never_started());
    let mut peer = peers.next().await;
    assert_eq!(peer.echo().await.text, "one");
    assert_eq!(peer.echo().await.text, "two");
    for call in behind {
        call.await.unwrap().unwrap();
    }
    let labels = [("service", "x"), ("outcome", "retried")];
    assert_eq!(readings.of("tower_net_client_retries_total", &labels), 2.0);
}

#[tokio::test(start_paused = true)]
async fn on_a_fresh_connection_nothing_is_made_again() {
    let (connector, mut peers) = peers(256);
    let client = Client::new(connector, ());
    let begun = tokio::spawn(client.send(long()));
    settle().await;
    let behind = sent(&client, "behind").await;

    drop(peers.io().await);

    assert!(
        !begun
            .await
            .unwrap()
            .unwrap_err()
            .never_started()
    );
    let error = behind.await.unwrap().unwrap_err();
    // But the caller may.
    assert!(error.never_started() && error.is_retryable() && !error.was_retried());
    settle().await;
    assert!(peers.try_next().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_was_made_again_is_not_a_third_time() {
    let (client, mut peers, peer) = used(Settings::default()).await;
    let _begun = tokio::spawn(client.send(long()));
    settle().await;
    let behind = sent(&client, "behind").await;
    drop(peer);

    // The second connection serves somebody else first, and is stuck in the same way.
    let mut peer = peers.next().await;
    let asked = peer.asked().await;
    assert_eq!(asked.text, "behind");
    let refused = RpcFailure::never_started(RpcCode::Refused, "");
    peer.say(RpcFrame::failure(asked.id, refused))
        .await;

    let error = behind.await.unwrap().unwrap_err();
    assert!(error.was_retried() && error.never_started());
    assert_eq!(
        error.to_string(),
        "call failed at the peer: refused, never started (second attempt)"
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_nothing_is_made_again() {
    let budget = RetryBudget::new(0, 1).unwrap();
    let ((client, mut peers), readings) = recorded(|| {
        let (connector, peers) = peers(256);
        let settings = Settings::default()
            .retries(budget)
            .service("x");
        (
            Client::with_settings(settings, connector, ()).unwrap(),
            peers,
        )
    });
    let call = tokio::spawn(client.send(text("before")));
    let mut peer = peers.next().await;
    peer.echo().await;
    call.await.unwrap().unwrap();
    let _begun = tokio::spawn(client.send(long()));
    settle().await;
    let behind: Vec<_> = (0..20)
        .map(|_| tokio::spawn(client.send(text("behind"))))
        .collect();
    settle().await;

    drop(peer);
    tokio::spawn(peers.next().await.serve());

    let mut made_again = 0;
    for call in behind {
        match call.await.unwrap() {
            Ok(_) => made_again += 1,
            Err(error) => assert!(error.is_retryable() && !error.was_retried(), "{error:?}"),
        }
    }
    assert_eq!(made_again, 10);
    let labels = [("service", "x"), ("outcome", "no_budget")];
    assert_eq!(readings.of("tower_net_client_retries_total", &labels), 10.0);
}

#[tokio::test(start_paused = true)]
async fn a_second_attempt_has_the_deadline_of_the_first() {
    let (client, mut peers, peer) = used(Settings::default().call_deadline(secs(3))).await;
    let _begun = tokio::spawn(client.send(long()));
    settle().await;
    let call = sent(&client, "x").await;
    sleep(secs(2)).await;
    drop(peer);
    let mut peer = peers.next().await;
    assert_eq!(peer.asked().await.left, Some(secs(1)));

    let error = call.await.unwrap().unwrap_err();

    let spent = error.budget().unwrap();
    assert_eq!(spent.after(), secs(3));
    assert_eq!(spent.spent_in(Phase::Calling), secs(3));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_here_already_is_seen_before_a_call_is_written() {
    let (client, mut peers, peer) = used(Settings::default().retries(RetryBudget::none())).await;

    // Both before the connection looks.
    drop(peer);
    let call = tokio::spawn(client.send(text("x")));

    // It has not failed once.
    assert_eq!(peers.next().await.echo().await.text, "x");
    assert_eq!(call.await.unwrap().unwrap(), "x");
}

/// A stream whose peer gets what is written, in a write that says that it failed: as TLS may.
struct Fickle {
    io: DuplexStream,
    is_plain: bool,
    fails: Arc<AtomicBool>,
}

impl Io for Fickle {
    fn takes_pipes(&self) -> bool {
        self.is_plain
    }
}

impl AsyncRead for Fickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Fickle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.fails.load(Relaxed) {
            if !self.is_plain {
                let _sent = Pin::new(&mut self.io).poll_write(cx, buf);
            }
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

type Opened = std::future::Ready<io::Result<Conn<Fickle>>>;

/// Opens such streams, whose peers arrive; the first does what it is told by `fails`.
fn fickle_streams(
    is_plain: bool,
    fails: Arc<AtomicBool>,
    arriving: mpsc::UnboundedSender<DuplexStream>,
) -> impl Service<(), Response = Conn<Fickle>, Error = io::Error, Future = Opened> + Clone + Send + 'static
{
    // Those after it do not fail.
    let first = Arc::new(Mutex::new(Some(fails)));
    service_fn(move |()| {
        let (io, far) = duplex(1 << 16);
        arriving.send(far).unwrap();
        let first = first.lock().unwrap().take();
        let io = Fickle {
            io,
            is_plain,
            fails: first.unwrap_or_default(),
        };
        std::future::ready(Ok::<_, io::Error>(Conn::new(io, ())))
    })
}

/// A client over such streams that has served once, and the peer.
async fn fickle(
    is_plain: bool,
) -> (
    Client,
    Peer,
    mpsc::UnboundedReceiver<DuplexStream>,
    Arc<AtomicBool>,
) {
    let (arriving, mut peers) = mpsc::unbounded_channel();
    let fails = Arc::new(AtomicBool::new(false));
    let client = Client::new(fickle_streams(is_plain, fails.clone(), arriving), ());
    let call = tokio::spawn(client.send(text("before")));
    let mut peer = Peer::new(peers.recv().await.unwrap());
    peer.echo().await;
    call.await.unwrap().unwrap();
    (client, peer, peers, fails)
}

#[tokio::test(start_paused = true)]
async fn what_a_stream_may_have_sent_in_a_write_that_failed_is_not_made_again() {
    let (client, mut peer, mut peers, fails) = fickle(false).await;
    fails.store(true, Relaxed);

    let error = client
        .send(text("x"))
        .await
        .unwrap_err();

    assert!(!error.never_started() && !error.was_retried(), "{error:?}");
    // As the peer knows.
    assert_eq!(peer.asked().await.text, "x");
    settle().await;
    assert!(peers.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn of_what_a_socket_refuses_nothing_was_sent() {
    let (client, _peer, mut peers, fails) = fickle(true).await;
    fails.store(true, Relaxed);

    let call = tokio::spawn(client.send(text("x")));

    let mut peer = Peer::new(peers.recv().await.unwrap());
    assert_eq!(peer.echo().await.text, "x");
    assert_eq!(call.await.unwrap().unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn what_a_socket_refuses_does_not_wait_for_what_may_still_be_answered() {
    for is_idle in [true, false] {
        let (client, mut peer, mut peers, fails) = fickle(true).await;
        let before = match is_idle {
            true => None,
            false => {
                let call = sent(&client, "first").await;
                Some((call, peer.asked().await))
            }
        };
        fails.store(true, Relaxed);
        let begun = Instant::now();

        let call = tokio::spawn(client.send(text("x")));

        let mut next = Peer::new(peers.recv().await.unwrap());
        assert_eq!(next.echo().await.text, "x");
        assert_eq!(call.await.unwrap().unwrap(), "x");
        assert_eq!(begun.elapsed(), Duration::ZERO);
        if let Some((call, asked)) = before {
            peer.reply(asked.id, "done").await;
            assert_eq!(call.await.unwrap().unwrap(), "done");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_hides_nothing_of_that() {
    for is_plain in [true, false] {
        let (arriving, mut peers) = mpsc::unbounded_channel();
        let fails = Arc::new(AtomicBool::new(false));
        let pool = PoolLayer::new("fickle", Pooling::default())
            .unwrap()
            .layer(fickle_streams(is_plain, fails.clone(), arriving));
        let serial = Serial::new(pool, ());
        let call = tokio::spawn(serial.send(text("before")));
        let mut peer = Peer::new(peers.recv().await.unwrap());
        peer.echo().await;
        call.await.unwrap().unwrap();
        fails.store(true, Relaxed);

        let call = tokio::spawn(serial.send(text("x")));
        if is_plain {
            let mut next = Peer::new(peers.recv().await.unwrap());
            assert_eq!(next.echo().await.text, "x");
        }

        let outcome = call.await.unwrap();
        assert_eq!(outcome.is_ok(), is_plain);
        assert!(outcome.map_or_else(|error| !error.never_started(), |reply| reply == "x"));
    }
}

// === Refused

#[tokio::test(start_paused = true)]
async fn a_refusal_is_the_callers_to_judge_also_by_a_peer_that_has_served_before() {
    let (client, mut peers, mut peer) = used(Settings::default()).await;
    let call = sent(&client, "x").await;
    peer.refuse().await;

    let error = call.await.unwrap().unwrap_err();

    assert!(error.never_started() && error.is_retryable() && !error.was_retried());
    // Nothing is wrong with the connection, and nothing more is said on it.
    let next = sent(&client, "next").await;
    assert_eq!(peer.echo().await.text, "next");
    next.await.unwrap().unwrap();
    assert!(peers.try_next().is_none());
}

// === Moved

/// Peers that leave without having begun with anything; how many there were until the call was over.
async fn left_by_all(budget: RetryBudget) -> usize {
    let (client, mut peers) = client(Settings::default().retries(budget));
    let call = tokio::spawn(client.send(text("poison")));
    let connects = peers.connects();
    let leaving = tokio::spawn(async move {
        loop {
            let mut peer = peers.next().await;
            peer.asked().await;
            peer.say(RpcFrame::leaving(0)).await;
        }
    });

    let error = call.await.unwrap().unwrap_err();

    assert!(error.never_started() && error.is_retryable(), "{error:?}");
    leaving.abort();
    connects.tried()
}

#[tokio::test(start_paused = true)]
async fn a_call_that_has_every_peer_leave_is_not_carried_on_for_ever() {
    assert_eq!(left_by_all(RetryBudget::default()).await, 1 + 3);
    // Once it makes no more of a load than there was.
    assert_eq!(left_by_all(RetryBudget::none()).await, 1 + 1);
}

#[tokio::test(start_paused = true)]
async fn as_long_as_peers_begin_with_something_calls_move_as_often_as_they_must() {
    let (client, mut peers) = client(Settings::default().retries(RetryBudget::none()));
    let calls: Vec<_> = (0..10)
        .map(|_| tokio::spawn(client.send(text("x"))))
        .collect();

    for _ in &calls {
        let mut peer = peers.next().await;
        let asked = peer.asked().await;
        peer.say(RpcFrame::leaving(asked.id))
            .await;
        peer.reply(asked.id, "done").await;
    }

    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), "done");
    }
}

#[tokio::test(start_paused = true)]
async fn peers_that_leave_and_finish_what_they_have_begun_with_cost_no_pause() {
    let (client, mut peers) = client(Settings::default());
    let begun = Instant::now();

    for _ in 0..10 {
        let call = tokio::spawn(client.send(text("x")));
        let mut peer = peers.next().await;
        let asked = peer.asked().await;
        peer.say(RpcFrame::leaving(asked.id))
            .await;
        settle().await;
        peer.reply(asked.id, "done").await;
        assert_eq!(call.await.unwrap().unwrap(), "done");
    }

    assert_eq!(begun.elapsed(), Duration::ZERO);
}
