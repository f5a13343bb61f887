//! How a client comes by its connections, and loses them.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{Service, ServiceExt};
use tower_net::{
    Conn, Deadline,
    budget::Phase,
    client::{CallCause, CallError, Client, Disconnected, InOrder, MakeClient, Settings},
    error::find,
    frame::{LengthDelimited, RpcCode, RpcFailure, RpcFrame},
    io::OpaqueIo,
};

use crate::{
    client::{client, settle},
    support::{
        readings::recorded,
        rpc::peers,
        service::{millis, secs},
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

// === No connection

#[tokio::test(start_paused = true)]
async fn calls_wait_for_a_connection_however_often_an_attempt_fails() {
    let (client, mut peers) = client(Settings::default());
    let connects = peers.connects();
    connects.fail(3);
    let begun = Instant::now();

    let call = tokio::spawn(client.send(text("x")));
    peers.next().await.echo().await;

    assert_eq!(call.await.unwrap().unwrap(), "x");
    assert_eq!(connects.tried(), 4);
    // 50, 100 and 200 ms, of each at least the half.
    let waited = begun.elapsed();
    assert!((millis(175)..=millis(351)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_to_the_longest_and_end_with_a_reply() {
    let settings = Settings::default()
        .backoff(millis(100), secs(1))
        .call_deadline(secs(60));
    let (client, mut peers) = client(settings);
    let connects = peers.connects();
    connects.fail(10);
    let begun = Instant::now();
    let call = tokio::spawn(client.send(text("x")));
    let mut peer = peers.next().await;
    // 100, 200, 400, 800 and six times 1000 ms.
    let waited = begun.elapsed();
    assert!(
        (millis(3_750)..=millis(7_510)).contains(&waited),
        "{waited:?}"
    );
    peer.echo().await;
    call.await.unwrap().unwrap();
    drop(peer);
    settle().await;

    // It begins anew.
    connects.fail(1);
    let begun = Instant::now();
    let call = tokio::spawn(client.send(text("y")));
    peers.next().await.echo().await;
    call.await.unwrap().unwrap();
    assert!(begun.elapsed() <= millis(101), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn failing_fast_calls_end_with_the_attempt_and_until_the_next_one() {
    let settings = Settings::default()
        .fail_fast()
        .backoff(secs(1), secs(1));
    let (client, mut peers) = client(settings);
    peers.connects().fail(1);

    let waiting = [client.send(text("1")), client.send(text("2"))].map(tokio::spawn);
    for call in waiting {
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error.cause(), CallCause::Connect(_)), "{error}");
        assert_eq!(error.phase(), Phase::Connecting);
        assert!(error.never_started() && error.is_retryable());
        let cause = find::<io::Error>(&error).unwrap();
        assert_eq!(cause.kind(), io::ErrorKind::ConnectionRefused);
    }
    let at_once = client
        .send(text("3"))
        .await
        .unwrap_err();
    assert!(
        matches!(at_once.cause(), CallCause::Connect(_)),
        "{at_once}"
    );
    assert_eq!(peers.connects().tried(), 1);

    sleep(secs(1)).await;
    let later = tokio::spawn(client.send(text("4")));
    peers.next().await.echo().await;
    assert_eq!(later.await.unwrap().unwrap(), "4");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_ends_by_itself_and_the_next_one_is_made() {
    let settings = Settings::default()
        .connect_deadline(secs(2))
        .fail_fast();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let see = seen.clone();
    let hangs = tower::service_fn(move |()| {
        see.lock()
            .unwrap()
            .push(Deadline::current());
        std::future::pending::<io::Result<Conn<tokio::io::DuplexStream>>>()
    });
    let due = Deadline::within(secs(2));
    let client = Client::with_settings(settings, hangs, ()).unwrap();

    let error = client
        .send(text("x"))
        .await
        .unwrap_err();

    assert!(matches!(error.cause(), CallCause::Connect(_)), "{error}");
    let spent = find::<tower_net::budget::Spent>(&error).unwrap();
    assert_eq!(
        (spent.phase(), spent.limit()),
        (Phase::Connecting, Some(secs(2)))
    );
    // The connector knows how long it has.
    assert_eq!(*seen.lock().unwrap(), [due]);
    assert_eq!(client.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn attempts_stop_when_nobody_waits_any_more() {
    let (client, peers) = client(Settings::default().call_deadline(secs(1)));
    peers.connects().fail(1_000_000);

    assert!(client.send(text("x")).await.is_err());
    sleep(secs(60)).await;
    let tried = peers.connects().tried();
    sleep(secs(600)).await;

    assert_eq!(peers.connects().tried(), tried);
    assert_eq!(client.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_fails_those_who_wait() {
    let panics = tower::service_fn(|()| async {
        if true {
            panic!("told to panic");
        }
        Ok::<_, io::Error>(Conn::new(tokio::io::duplex(1).0, ()))
    });
    let client = Client::new(panics, ());

    let error = client
        .send(text("x"))
        .await
        .unwrap_err();

    assert!(
        matches!(find::<Disconnected>(&error), Some(Disconnected::Aborted)),
        "{error:?}"
    );
    assert!(error.never_started());
    assert_eq!((client.connections(), client.in_flight()), (0, 0));
}

// === Connections that end

#[tokio::test(start_paused = true)]
async fn a_peer_that_closes_while_nobody_waits_is_forgotten() {
    let ((client, mut peers), readings) = recorded(|| client(Settings::default().service("x")));
    for number in 0..3 {
        let call = tokio::spawn(client.send(text("x")));
        let mut peer = peers.next().await;
        peer.echo().await;
        call.await.unwrap().unwrap();
        drop(peer);
        settle().await;
        assert_eq!(client.connections(), 0, "{number}");
    }
    assert_eq!(
        readings.of("tower_net_client_reconnects_total", &[("service", "x")]),
        2.0
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_have_been_processed_fails_and_is_not_made_again() {
    let (client, mut peers) = client(Settings::default());
    let mut peer = {
        let call = tokio::spawn(client.send(text("before")));
        let mut peer = peers.next().await;
        peer.echo().await;
        call.await.unwrap().unwrap();
        peer
    };
    let call = sent(&client, "x").await;
    peer.asked().await;
    drop(peer);

    let error = call.await.unwrap().unwrap_err();

    assert!(
        matches!(find::<Disconnected>(&error), Some(Disconnected::Ended)),
        "{error:?}"
    );
    assert!(!error.never_started() && !error.was_retried());
    settle().await;
    assert!(peers.try_next().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_end_inside_a_frame_is_no_end_in_order() {
    let (client, mut peers) = client(Settings::default());
    let call = sent(&client, "x").await;
    let mut peer = peers.next().await;
    peer.asked().await;
    peer.raw(&[0, 0, 0, 30, 1, 2]).await;
    drop(peer);

    let error = call.await.unwrap().unwrap_err();

    assert!(
        matches!(
            find::<Disconnected>(&error),
            Some(Disconnected::Protocol(_))
        ),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_peer_says_before_it_ends_is_told() {
    let (client, mut peers) = client(Settings::default());
    let call = sent(&client, "x").await;
    let mut peer = peers.next().await;
    peer.asked().await;
    let failure = RpcFailure::new(RpcCode::Protocol, "no such version");
    peer.say(RpcFrame::failure(0, failure.clone()))
        .await;
    drop(peer);

    let error = call.await.unwrap().unwrap_err();

    match find::<Disconnected>(&error) {
        Some(Disconnected::Told(told)) => assert_eq!(told, &failure),
        other => panic!("not told: {other:?}"),
    }
    assert!(matches!(error.cause(), CallCause::Closed(_)), "{error}");
}

// === A peer that leaves

#[tokio::test(start_paused = true)]
async fn a_peer_that_leaves_finishes_what_it_has_begun_and_the_rest_moves() {
    let (client, mut peers) = client(Settings::default());
    let begun = sent(&client, "begun").await;
    let not_begun = sent(&client, "not begun").await;
    let mut old = peers.next().await;
    let (asked, _) = (old.asked().await, old.asked().await);

    old.say(RpcFrame::leaving(asked.id))
        .await;

    let mut new = peers.next().await;
    assert_eq!(new.echo().await.text, "not begun");
    assert_eq!(not_begun.await.unwrap().unwrap(), "not begun");
    // New calls go to the new connection, while the old one is still at it.
    let later = sent(&client, "later").await;
    assert_eq!(new.echo().await.text, "later");
    later.await.unwrap().unwrap();
    assert_eq!(client.connections(), 2);
    old.reply(asked.id, "done").await;
    assert_eq!(begun.await.unwrap().unwrap(), "done");
    // And then it is closed, by us.
    assert_eq!(old.frame().await, None);
    settle().await;
    assert_eq!(client.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_leaves_with_nothing_to_do_is_left_at_once() {
    let (client, mut peers) = client(Settings::default());
    let call = sent(&client, "x").await;
    let mut peer = peers.next().await;
    peer.echo().await;
    call.await.unwrap().unwrap();

    peer.say(RpcFrame::leaving(u64::MAX))
        .await;

    assert_eq!(peer.frame().await, None);
    settle().await;
    assert_eq!(client.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_leaves_and_breaks_its_word_fails_those_it_had_begun() {
    let (client, mut peers) = client(Settings::default());
    let call = sent(&client, "x").await;
    let mut peer = peers.next().await;
    let asked = peer.asked().await;
    peer.say(RpcFrame::leaving(asked.id))
        .await;
    drop(peer);

    let error = call.await.unwrap().unwrap_err();

    assert!(!error.never_started(), "{error}");
}

// === A peer that says nothing

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_gets_no_more_calls_and_may_still_answer_those_it_has() {
    let (client, mut peers) = client(Settings::default().call_deadline(Duration::MAX));
    let waiting = sent(&client, "waiting").await;
    let mut silent = peers.next().await;
    let asked = silent.asked().await;
    sleep(secs(9)).await;
    let early = sent(&client, "early").await;
    assert_eq!(silent.asked().await.text, "early");

    sleep(secs(2)).await;
    let late = sent(&client, "late").await;

    let mut new = peers.next().await;
    new.echo().await;
    assert_eq!(late.await.unwrap().unwrap(), "late");
    silent.reply(asked.id, "at last").await;
    assert_eq!(waiting.await.unwrap().unwrap(), "at last");
    assert!(!early.is_finished());
    assert_eq!(client.connections(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_found_out_by_calls_that_give_up_before_the_next() {
    let (client, mut peers) = client(Settings::default().call_deadline(millis(500)));
    let first = sent(&client, "first").await;
    let _silent = peers.next().await;
    first.await.unwrap().unwrap_err();
    // Twice the ten seconds at the most.
    for _ in 0..14 {
        sleep(secs(1)).await;
        let call = sent(&client, "another").await;
        call.await.unwrap().unwrap_err();
    }

    let another = tokio::time::timeout(millis(1), peers.next()).await;
    assert!(another.is_ok(), "still the one that is silent");
}

#[tokio::test(start_paused = true)]
async fn whoever_says_anything_or_is_asked_nothing_is_not_silent() {
    let (client, mut peers) = client(Settings::default().call_deadline(Duration::MAX));
    let waiting = sent(&client, "waiting").await;
    let mut peer = peers.next().await;
    let asked = peer.asked().await;
    for _ in 0..20 {
        sleep(secs(4)).await;
        let other = sent(&client, "other").await;
        peer.echo().await;
        other.await.unwrap().unwrap();
    }
    peer.reply(asked.id, "done").await;
    waiting.await.unwrap().unwrap();

    // For an hour nobody asks.
    sleep(secs(3600)).await;
    let call = sent(&client, "x").await;
    sleep(secs(9)).await;
    let behind = sent(&client, "y").await;
    peer.echo().await;
    peer.echo().await;

    call.await.unwrap().unwrap();
    behind.await.unwrap().unwrap();
    assert_eq!(peers.connects().tried(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_on_the_old_connection_says_nothing_of_the_new_one() {
    let settings = Settings::default()
        .backoff(millis(100), secs(60))
        .call_deadline(Duration::MAX)
        .silence(Duration::MAX);
    let (client, mut peers) = client(settings);
    let connects = peers.connects();
    let used = sent(&client, "used").await;
    let mut old = peers.next().await;
    old.echo().await;
    used.await.unwrap().unwrap();
    let begun = sent(&client, "begun").await;
    let asked = old.asked().await;
    old.say(RpcFrame::leaving(asked.id))
        .await;
    connects.fail(usize::MAX);
    let _waiting = sent(&client, "waiting").await;
    // The pauses are at their longest by now.
    sleep(secs(600)).await;

    old.reply(asked.id, "done").await;
    begun.await.unwrap().unwrap();
    let before = connects.tried();
    sleep(secs(120)).await;

    // At least 30 s each.
    let tried = connects.tried() - before;
    assert!(tried <= 5, "{tried}");
}

// === Kept connected

fn kept() -> Settings {
    Settings::default()
        .fail_fast()
        .keep_connected(true)
        .backoff(secs(1), secs(1))
}

#[tokio::test(start_paused = true)]
async fn kept_connected_it_is_ready_only_while_the_peer_is_there() {
    let (connector, mut peers) = peers(1 << 20);
    let connects = peers.connects();
    connects.fail(1);
    let make = MakeClient::with_settings(kept(), connector).unwrap();
    let mut client = task::spawn(make.make(()).unwrap());
    let poll_ready =
        |client: &mut task::Spawn<Client>| client.enter(|cx, mut client| client.poll_ready(cx));

    // It connects by itself, and again after a failure.
    assert_pending!(poll_ready(&mut client));
    settle().await;
    assert_eq!(connects.tried(), 1);
    assert_pending!(poll_ready(&mut client));
    let peer = peers.next().await;
    settle().await;
    assert!(client.is_woken());
    assert_ready_ok!(poll_ready(&mut client));

    // Lost while it is used: not ready before it is back, although it had its place.
    connects.fail(1);
    let call = tokio::spawn(client.send(text("x")));
    settle().await;
    drop(peer);
    assert!(call.await.unwrap().is_err());
    settle().await;
    assert_pending!(poll_ready(&mut client));
    let mut peer = peers.next().await;
    settle().await;
    assert!(client.is_woken());
    assert_ready_ok!(poll_ready(&mut client));
    let call = tokio::spawn(client.call(text("y")));
    peer.echo().await;
    assert_eq!(call.await.unwrap().unwrap(), "y");

    // A peer that leaves may be going for good.
    peer.say(RpcFrame::leaving(u64::MAX))
        .await;
    connects.fail(1);
    settle().await;
    assert_pending!(poll_ready(&mut client));
    sleep(secs(1)).await;
    settle().await;
    assert_ready_ok!(poll_ready(&mut client));

    // One that only closes an idle connection is taken to be there.
    drop(peers.next().await);
    settle().await;
    assert_ready_ok!(poll_ready(&mut client));
    let call = tokio::spawn(client.call(text("z")));
    peers.next().await.echo().await;
    assert_eq!(call.await.unwrap().unwrap(), "z");
}

#[tokio::test(start_paused = true)]
async fn kept_connected_it_gets_over_a_connector_that_panics() {
    let (connector, mut peers) = peers(1 << 20);
    let connects = peers.connects();
    let panics = Arc::new(AtomicBool::new(true));
    let panicking = panics.clone();
    let connector = tower::service_fn(move |()| {
        let (connecting, panics) = (connector.clone().oneshot(()), panicking.clone());
        async move {
            let conn = connecting.await;
            assert!(!panics.load(Relaxed), "told to panic");
            conn
        }
    });
    let make = MakeClient::with_settings(kept(), connector).unwrap();
    let client = make.make(()).unwrap();
    let mut waiting = task::spawn(client.clone());
    let poll_ready =
        |client: &mut task::Spawn<Client>| client.enter(|cx, mut client| client.poll_ready(cx));
    assert_pending!(poll_ready(&mut waiting));
    settle().await;
    assert_eq!(connects.tried(), 1);
    // Whoever calls all the same is told.
    let error = client
        .send(text("x"))
        .await
        .unwrap_err();
    assert!(
        matches!(find::<Disconnected>(&error), Some(Disconnected::Aborted)),
        "{error:?}"
    );

    panics.store(false, Relaxed);
    sleep(secs(1)).await;
    settle().await;

    assert!(waiting.is_woken());
    assert_ready_ok!(poll_ready(&mut waiting));
    let call = tokio::spawn(waiting.call(text("y")));
    drop(peers.next().await);
    peers.next().await.echo().await;
    assert_eq!(call.await.unwrap().unwrap(), "y");
}

#[test]
fn kept_connected_whoever_waits_hears_that_the_runtime_has_ended() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let (connector, peers) = peers(64);
    peers.connects().fail(usize::MAX);
    let make = MakeClient::with_settings(kept(), connector).unwrap();
    let mut client = {
        let _entered = runtime.enter();
        task::spawn(make.make(()).unwrap())
    };
    assert_pending!(client.enter(|cx, mut client| client.poll_ready(cx)));

    drop(runtime);

    assert!(client.is_woken());
    assert_ready_ok!(client.enter(|cx, mut client| client.poll_ready(cx)));
    let mut call = task::spawn(client.call(text("x")));
    assert!(assert_ready!(call.poll()).is_err());
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_the_peer_and_goes_away_leaves_nothing_behind() {
    let before = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    let (connector, peers) = peers(64);
    peers.connects().fail(1_000_000);
    let make = MakeClient::with_settings(kept(), connector).unwrap();
    let mut client = task::spawn(make.make(()).unwrap());
    assert_pending!(client.enter(|cx, mut client| client.poll_ready(cx)));
    sleep(secs(10)).await;

    drop(client);
    settle().await;

    assert_eq!(
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks(),
        before
    );
}

#[test]
fn without_a_runtime_no_client_is_made_that_keeps_connected() {
    let (connector, _peers) = peers(64);
    let mut make = task::spawn(MakeClient::new(connector));

    assert_ready_ok!(make.enter(|cx, mut make| make.poll_ready(cx)));
    let made = make.enter(|_, mut make| make.call(()));

    assert!(assert_ready!(task::spawn(made).poll()).is_err());
}

// === In order

fn in_order(settings: Settings) -> (Client, crate::support::rpc::Peers) {
    let (connector, peers) = peers(1 << 20);
    let protocol = InOrder::new(LengthDelimited::max_frame(1024));
    (
        Client::with_protocol(protocol, settings, connector, ()).unwrap(),
        peers,
    )
}

async fn read_frame(io: &mut tokio::io::DuplexStream) -> String {
    let length = io.read_u32().await.unwrap();
    let mut frame = vec![0; length as usize];
    io.read_exact(&mut frame).await.unwrap();
    String::from_utf8(frame).unwrap()
}

async fn write_frame(io: &mut tokio::io::DuplexStream, frame: &str) {
    io.write_u32(frame.len() as u32)
        .await
        .unwrap();
    io.write_all(frame.as_bytes())
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn in_order_replies_belong_to_those_who_have_waited_longest() {
    let (client, mut peers) = in_order(Settings::default());
    let calls = ["a", "b", "c"].map(|call| tokio::spawn(client.send(text(call))));
    let mut io = peers.io().await;
    for call in ["a", "b", "c"] {
        assert_eq!(read_frame(&mut io).await, call);
    }
    for reply in ["1", "2", "3"] {
        write_frame(&mut io, reply).await;
    }

    let mut replies = Vec::new();
    for call in calls {
        replies.push(call.await.unwrap().unwrap());
    }
    assert_eq!(replies, ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn in_order_nobody_waits_behind_a_call_that_is_given_up() {
    let (client, mut peers) = in_order(Settings::default().call_deadline(Duration::MAX));
    let first = tokio::spawn(client.send(text("first")));
    let hangs = tokio::spawn(client.send(text("hangs")));
    let mut old = peers.io().await;
    assert_eq!(read_frame(&mut old).await, "first");
    assert_eq!(read_frame(&mut old).await, "hangs");

    hangs.abort();
    let _aborted = hangs.await;
    let next = tokio::spawn(client.send(text("next")));

    // New calls go elsewhere.
    let mut new = peers.io().await;
    assert_eq!(read_frame(&mut new).await, "next");
    write_frame(&mut new, "next").await;
    assert_eq!(next.await.unwrap().unwrap(), "next");
    // The old connection is there for as long as somebody waits on it, and then the peer is told.
    write_frame(&mut old, "done").await;
    assert_eq!(first.await.unwrap().unwrap(), "done");
    assert_eq!(
        old.read_u8().await.unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    settle().await;
    assert_eq!(client.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn in_order_the_reply_to_a_call_that_is_given_up_is_thrown_away() {
    let (client, mut peers) = in_order(Settings::default());
    let given_up = tokio::spawn(client.send(text("given up")));
    let behind = tokio::spawn(client.send(text("behind")));
    let mut io = peers.io().await;
    assert_eq!(read_frame(&mut io).await, "given up");
    assert_eq!(read_frame(&mut io).await, "behind");
    given_up.abort();
    let _aborted = given_up.await;
    settle().await;

    write_frame(&mut io, "for nobody").await;
    write_frame(&mut io, "for the one behind").await;

    assert_eq!(behind.await.unwrap().unwrap(), "for the one behind");
}

#[tokio::test(start_paused = true)]
async fn in_order_a_reply_that_nobody_asked_for_ends_the_connection() {
    let (client, mut peers) = in_order(Settings::default());
    let call = tokio::spawn(client.send(text("x")));
    let mut io = peers.io().await;
    read_frame(&mut io).await;
    write_frame(&mut io, "asked").await;
    assert_eq!(call.await.unwrap().unwrap(), "asked");

    write_frame(&mut io, "not asked").await;
    settle().await;

    assert_eq!(client.connections(), 0);
    assert_eq!(
        io.read_u8().await.unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
}

// === Nothing can be written any more

/// A client of a peer that takes the first call, and to which nothing can be written then. `more` is what it does behind
/// that; it is reached only once.
fn breaking(more: impl FnOnce(&mut tokio_test::io::Builder)) -> Client {
    let mut script = tokio_test::io::Builder::new();
    script
        .write(b"\0\0\0\x01x")
        .write_error(io::ErrorKind::BrokenPipe.into());
    more(&mut script);
    let only = Arc::new(Mutex::new(Some(script.build())));
    let connect = tower::service_fn(move |()| {
        let next = only.lock().unwrap().take();
        let conn = next.map(|io| Conn::new(OpaqueIo::new(io), ()));
        std::future::ready(conn.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused)))
    });
    let protocol = InOrder::new(LengthDelimited::max_frame(1024));
    let settings = Settings::default().fail_fast();
    Client::with_protocol(protocol, settings, connect, ()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_was_on_its_way_when_writing_failed_is_heard() {
    // The runtime hears of it later than of the failure.
    let client = breaking(|peer| {
        peer.wait(millis(1))
            .read(b"\0\0\0\x02ok");
    });

    let first = sent(&client, "x").await;
    let second = sent(&client, "y").await;

    assert_eq!(first.await.unwrap().unwrap(), "ok");
    let error = second.await.unwrap().unwrap_err();
    let cause = find::<io::Error>(&error).unwrap();
    assert_eq!(cause.kind(), io::ErrorKind::BrokenPipe);
    // It is no socket: some of it may have been sent.
    assert!(!error.never_started(), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_neither_takes_nor_ends_is_given_up_after_a_second() {
    let client = breaking(|peer| {
        peer.wait(secs(3600));
    });
    let first = sent(&client, "x").await;
    let begun = Instant::now();
    let second = sent(&client, "y").await;

    let first = first.await.unwrap().unwrap_err();
    let second = second.await.unwrap().unwrap_err();

    assert_eq!(begun.elapsed(), secs(1));
    assert_eq!(
        [first.never_started(), second.never_started()],
        [false, false]
    );
}
