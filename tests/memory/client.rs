use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{Service, ServiceExt};
use tower_net::{
    Deadline,
    budget::Phase,
    client::{
        CallCause, CallError, CallFuture, Client, Disconnected, Heard, InOrder, Protocol, Settings,
        Unasked,
    },
    error::{BoxError, find},
    frame::{CodecError, LengthDelimited, RpcCode, RpcFailure, RpcFrame},
};

use crate::support::{
    random::Random,
    readings::recorded,
    rpc::{Peers, peers},
    service::{millis, secs},
};

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

pub(crate) fn client(settings: Settings) -> (Client, Peers) {
    let (connector, peers) = peers(1 << 20);
    (
        Client::with_settings(settings, connector, ()).unwrap(),
        peers,
    )
}

/// Lets everything that can go on do so, without any time passing.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn tasks() -> usize {
    Handle::current()
        .metrics()
        .num_alive_tasks()
}

// === Calls and replies

#[tokio::test(start_paused = true)]
async fn a_call_connects_and_gets_its_reply_and_the_next_uses_the_same_connection() {
    let (client, mut peers) = client(Settings::default());
    assert_eq!(peers.connects().tried(), 0);

    let first = tokio::spawn(client.send(text("one")));
    let mut peer = peers.next().await;
    assert_eq!(peer.echo().await.text, "one");
    assert_eq!(first.await.unwrap().unwrap(), "one");

    let second = tokio::spawn(client.clone().oneshot(text("two")));
    assert_eq!(peer.echo().await.text, "two");
    assert_eq!(second.await.unwrap().unwrap(), "two");
    assert_eq!(peers.connects().tried(), 1);
}

#[tokio::test(start_paused = true)]
async fn replies_find_their_calls_in_any_order() {
    let (client, mut peers) = client(Settings::default());
    let calls: Vec<_> = ["a", "b", "c"]
        .map(|call| tokio::spawn(client.send(text(call))))
        .into();
    let mut peer = peers.next().await;

    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(peer.asked().await);
    }
    assert!(asked.is_sorted_by_key(|asked| asked.id));
    for asked in asked.iter().rev() {
        peer.reply(asked.id, format!("re: {}", asked.text))
            .await;
    }

    for (call, expected) in calls
        .into_iter()
        .zip(["re: a", "re: b", "re: c"])
    {
        assert_eq!(call.await.unwrap().unwrap(), expected);
    }
    assert_eq!(client.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn many_tasks_get_each_its_own_reply() {
    let (client, mut peers) = client(Settings::default().in_flight(16));
    let mut callers = JoinSet::new();
    for caller in 0..32 {
        let mut client = client.clone();
        callers.spawn(async move {
            for number in 0..50 {
                let call = format!("{caller}.{number}");
                let client = client.ready().await.unwrap();
                let reply = client
                    .call(call.clone().into())
                    .await
                    .unwrap();
                assert_eq!(reply, call);
            }
        });
    }

    tokio::spawn(peers.next().await.serve());

    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!(peers.connects().tried(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_together_goes_out_in_one_write() {
    let (client, mut peers) = client(Settings::default());
    let mut calls: Vec<_> = (0..10)
        .map(|_| task::spawn(client.send(text("0123456789"))))
        .collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }

    let mut io = peers.io().await;
    let mut read = [0; 1024];
    // A duplex hands over in one read what was there: all of it, or it was not written at once.
    settle().await;
    let length = io.read(&mut read).await.unwrap();

    assert_eq!(length, 10 * 30);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fits_no_frame_fails_alone_and_nothing_of_it_is_sent() {
    let (client, mut peers) = client(Settings::default().max_payload(8));
    let too_long = tokio::spawn(client.send(text("123456789")));
    let mut peer = peers.next().await;

    let error = too_long.await.unwrap().unwrap_err();
    let fits = tokio::spawn(client.send(text("12345678")));

    assert!(matches!(error.cause(), CallCause::Encode(_)), "{error}");
    assert!(find::<CodecError>(&error).is_some());
    assert!(error.never_started() && !error.is_retryable());
    assert_eq!(peer.echo().await.text, "12345678");
    assert_eq!(fits.await.unwrap().unwrap(), "12345678");
}

#[tokio::test(start_paused = true)]
async fn a_reply_over_the_limit_fails_its_call_alone_and_was_not_never_started() {
    let (client, mut peers) = client(Settings::default().max_payload(8));
    let calls = ["1", "2"].map(|call| tokio::spawn(client.send(text(call))));
    let mut peer = peers.next().await;

    let (one, two) = (peer.asked().await, peer.asked().await);
    peer.reply(one.id, "123456789").await;
    peer.reply(two.id, "12345678").await;

    let [one, two] = calls;
    let error = one.await.unwrap().unwrap_err();
    assert_eq!(error.failure().unwrap().code(), RpcCode::Oversize);
    assert!(!error.never_started());
    assert_eq!(two.await.unwrap().unwrap(), "12345678");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_in_the_peers_own_words() {
    let (client, mut peers) = client(Settings::default());
    let call = tokio::spawn(client.send(text("x")));
    let mut peer = peers.next().await;

    let asked = peer.asked().await;
    let failure = RpcFailure::new(RpcCode::Failed, "out of tea");
    peer.say(RpcFrame::failure(asked.id, failure.clone()))
        .await;

    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.failure(), Some(&failure));
    assert_eq!(error.phase(), Phase::Calling);
    assert!(!error.never_started() && !error.is_retryable() && !error.was_retried());
    assert_eq!(
        error.to_string(),
        "call failed at the peer: failed: out of tea"
    );
    // It is not passed on as one's own by a handler that fails with it.
    assert!(find::<RpcFailure>(&error).is_none());
    assert_eq!(
        error.to_failure(),
        RpcFailure::new(RpcCode::Failed, "out of tea")
    );
}

// === Places

#[tokio::test(start_paused = true)]
async fn beyond_the_limit_nobody_is_ready_and_those_who_wait_come_in_their_order() {
    let (client, mut peers) = client(Settings::default().in_flight(2));
    let mut clients: Vec<_> = (0..5)
        .map(|_| task::spawn(client.clone()))
        .collect();
    let ready =
        |client: &mut task::Spawn<Client>| client.enter(|cx, mut client| client.poll_ready(cx));

    assert_ready_ok!(ready(&mut clients[0]));
    assert_ready_ok!(ready(&mut clients[1]));
    for waiting in [3, 2, 4] {
        assert_pending!(ready(&mut clients[waiting]));
    }
    // Whoever calls keeps his place until he has his reply.
    let call = tokio::spawn(clients[0].call(text("x")));
    peers.next().await.echo().await;
    settle().await;
    assert!(clients[3].is_woken() || call.is_finished());
    call.await.unwrap().unwrap();

    assert!(clients[3].is_woken());
    assert!(!clients[2].is_woken());
    assert_pending!(ready(&mut clients[2]));
    assert_ready_ok!(ready(&mut clients[3]));
    // Whoever is ready and goes away lets the next one in.
    drop(clients.remove(3));
    assert!(clients[2].is_woken());
    assert_ready_ok!(ready(&mut clients[2]));
}

#[tokio::test(start_paused = true)]
async fn a_clone_of_a_ready_client_is_not_ready() {
    let (client, _peers) = client(Settings::default().in_flight(1));
    let mut ready = task::spawn(client);
    assert_ready_ok!(ready.enter(|cx, mut client| client.poll_ready(cx)));

    let mut clone = task::spawn((*ready).clone());

    assert_pending!(clone.enter(|cx, mut client| client.poll_ready(cx)));
}

#[tokio::test(start_paused = true)]
async fn a_place_is_given_back_once_however_a_call_ends() {
    let (client, mut peers) = client(
        Settings::default()
            .in_flight(3)
            .call_deadline(secs(1)),
    );
    let mut random = Random::new(7);
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let (client, fate) = (client.clone(), random.below(4));
            tokio::spawn(async move {
                let call = match fate {
                    0 => client.send(text("silence")),
                    1 => client.send(text("failure")),
                    _ => client.send(text("reply")),
                };
                if fate == 2 {
                    let spent = |error: &CallError| error.budget().is_some();
                    let reply = call.await;
                    assert!(reply.as_ref().err().is_none_or(spent), "{reply:?}");
                    return;
                }
                if fate == 3 {
                    // Given up somewhere on its way.
                    let _late = timeout(millis(1), call).await;
                } else {
                    let _any = call.await;
                }
            })
        })
        .collect();

    let peer = tokio::spawn(async move {
        let mut peer = peers.next().await;
        while let Some(frame) = peer.frame().await {
            let RpcFrame::Request { id, payload, .. } = frame else {
                continue;
            };
            match &payload[..] {
                b"silence" => {}
                b"failure" => {
                    let failure = RpcFailure::new(RpcCode::Failed, "");
                    peer.say(RpcFrame::failure(id, failure))
                        .await;
                }
                _ => peer.reply(id, "done").await,
            }
        }
    });
    for call in calls {
        call.await.unwrap();
    }

    assert_eq!(client.in_flight(), 0);
    let mut ready: Vec<_> = (0..4)
        .map(|_| task::spawn(client.clone()))
        .collect();
    for client in &mut ready[..3] {
        assert_ready_ok!(client.enter(|cx, mut client| client.poll_ready(cx)));
    }
    assert_pending!(ready[3].enter(|cx, mut client| client.poll_ready(cx)));
    drop((client, ready));
    peer.await.unwrap();
}

// === Giving up

#[tokio::test(start_paused = true)]
async fn the_peer_hears_of_a_call_that_is_given_up_and_its_late_reply_upsets_nobody() {
    let ((client, mut peers), readings) = recorded(|| client(Settings::default().service("x")));
    let given_up = tokio::spawn(client.send(text("given up")));
    let mut peer = peers.next().await;
    let asked = peer.asked().await;

    given_up.abort();
    let _aborted = given_up.await;
    assert_eq!(peer.frame().await, Some(RpcFrame::cancel(asked.id)));
    let other = tokio::spawn(client.send(text("other")));
    let other_asked = peer.asked().await;
    // It had answered before it heard.
    peer.reply(asked.id, "too late").await;
    peer.reply(asked.id, "and twice").await;
    peer.reply(other_asked.id, "in time")
        .await;

    assert_eq!(other.await.unwrap().unwrap(), "in time");
    assert_eq!(client.connections(), 1);
    let service = [("service", "x")];
    assert_eq!(
        readings.of("tower_net_client_late_replies_total", &service),
        2.0
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_given_up_before_it_was_sent_never_is() {
    let (client, mut peers) = client(Settings::default());
    let mut early = task::spawn(client.send(text("early")));
    assert_pending!(early.poll());

    drop(early);
    let next = tokio::spawn(client.send(text("next")));

    assert_eq!(peers.next().await.echo().await.text, "next");
    assert_eq!(next.await.unwrap().unwrap(), "next");
}

#[tokio::test(start_paused = true)]
async fn a_seat_that_is_used_again_does_not_take_the_reply_of_the_one_before() {
    let (client, mut peers) = client(Settings::default().in_flight(1));
    let first = tokio::spawn(client.send(text("first")));
    let mut peer = peers.next().await;
    let asked = peer.asked().await;
    first.abort();
    let _aborted = first.await;

    // Both are there when the client looks: its cancel and the reply cross.
    let second = tokio::spawn(client.send(text("second")));
    peer.reply(asked.id, "of the first")
        .await;
    settle().await;
    assert!(!second.is_finished());
    assert_eq!(peer.frame().await, Some(RpcFrame::cancel(asked.id)));
    let asked = peer.asked().await;
    peer.reply(asked.id, "of the second")
        .await;

    assert_eq!(second.await.unwrap().unwrap(), "of the second");
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_given_up_and_made_at_the_same_moment_do_not_mix_up_the_others() {
    let (client, mut peers) = client(Settings::default());
    let send = |call: usize| tokio::spawn(client.send(Bytes::from(call.to_string())));
    let mut calls: Vec<_> = (0..8).map(send).collect();
    let mut peer = peers.next().await;
    let mut random = Random::new(3);
    let mut next = 8;
    let mut asked: Vec<_> = Vec::new();
    for _ in 0..200 {
        // Both are done before the connection looks.
        for _ in 0..random.among(1, 4) {
            calls
                .remove(random.among(0, calls.len()))
                .abort();
            calls.push(send(next));
            next += 1;
        }
        settle().await;
        while asked.len() < 8 {
            match peer.frame().await.unwrap() {
                RpcFrame::Request { id, payload, .. } => asked.push((id, payload)),
                RpcFrame::Cancel { id, .. } => asked.retain(|(asked, _)| *asked != id),
                other => panic!("unexpected: {other:?}"),
            }
        }
        let (id, payload) = asked.remove(random.among(0, asked.len()));
        peer.say(RpcFrame::reply(id, payload))
            .await;
        settle().await;
        let done = calls
            .iter()
            .position(tokio::task::JoinHandle::is_finished);
        if let Some(done) = done {
            calls
                .remove(done)
                .await
                .unwrap()
                .unwrap();
            calls.push(send(next));
            next += 1;
        }
        settle().await;
    }

    assert_eq!((client.connections(), client.in_flight()), (1, 8));
    assert_eq!(peers.connects().tried(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_what_was_never_asked_ends_the_connection() {
    let (client, mut peers) = client(Settings::default());
    let call = tokio::spawn(client.send(text("x")));
    let mut peer = peers.next().await;
    let asked = peer.asked().await;

    peer.reply(asked.id + (1 << 20), "to nothing")
        .await;

    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error.cause(), CallCause::Closed(_)), "{error}");
    assert_eq!(
        find::<Unasked>(&error).unwrap().id(),
        Some(asked.id + (1 << 20))
    );
    assert!(!error.never_started());
    assert_eq!(peer.frame().await, None);
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_the_connection_and_the_next_call_has_a_new_one() {
    let (client, mut peers) = client(Settings::default());
    let call = tokio::spawn(client.send(text("x")));
    let mut peer = peers.next().await;
    peer.asked().await;

    peer.raw(b"HTTP/1.1 400 Bad Request\r\n")
        .await;

    let error = call.await.unwrap().unwrap_err();
    assert!(find::<CodecError>(&error).is_some(), "{error:?}");
    assert!(matches!(
        find::<Disconnected>(&error),
        Some(Disconnected::Protocol(_))
    ));
    let next = tokio::spawn(client.send(text("y")));
    peers.next().await.echo().await;
    assert_eq!(next.await.unwrap().unwrap(), "y");
}

// === Deadlines

fn spent(error: &CallError) -> (Phase, Option<Duration>, [Duration; 3]) {
    let spent = error.budget().expect("it is spent");
    assert_eq!(find::<tower_net::budget::Spent>(error), Some(spent));
    assert!(!error.is_retryable());
    (
        spent.phase(),
        spent.limit(),
        Phase::ALL.map(|phase| spent.spent_in(phase)),
    )
}

#[tokio::test(start_paused = true)]
async fn the_time_left_travels_and_is_the_earlier_of_budget_and_limit() {
    let (client, mut peers) = client(Settings::default().call_deadline(secs(10)));

    for (budget, left) in [
        (Deadline::NEVER, secs(10)),
        (Deadline::within(secs(4)), secs(4)),
        (Deadline::within(secs(40)), secs(10)),
    ] {
        let call = budget.scope(async { client.send(text("x")).await });
        let call = async { call.await.unwrap() };
        let peer = async {
            let mut peer = peers.next().await;
            assert_eq!(peer.echo().await.left, Some(left));
        };
        tokio::join!(call, peer);
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_any_deadline_none_travels() {
    let (client, mut peers) = client(Settings::default().call_deadline(Duration::MAX));
    let call = tokio::spawn(client.send(text("x")));

    assert_eq!(peers.next().await.echo().await.left, None);
    call.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn time_spent_on_the_way_is_not_left_any_more() {
    let (client, mut peers) = client(
        Settings::default()
            .in_flight(1)
            .call_deadline(secs(10)),
    );
    let _first = tokio::spawn(client.send(text("first")));
    let mut peer = peers.next().await;
    let first = peer.asked().await;
    let second = tokio::spawn(client.send(text("second")));
    sleep(secs(3)).await;

    peer.reply(first.id, "").await;

    assert_eq!(peer.echo().await.left, Some(secs(7)));
    second.await.unwrap().unwrap();
}

/// Frames in order of which the next takes its time to be read, and has another call made meanwhile.
#[derive(Clone)]
struct Slow {
    frames: InOrder<LengthDelimited>,
    caller: Arc<Mutex<Option<Client>>>,
    made: Arc<Mutex<Option<CallFuture<Bytes, Bytes>>>>,
    left: Arc<Mutex<Vec<Duration>>>,
}

impl Protocol<Bytes> for Slow {
    type Reply = Bytes;

    const HAS_IDS: bool = false;

    fn ask(
        &mut self,
        id: u64,
        left: Option<Duration>,
        call: Bytes,
        out: &mut BytesMut,
    ) -> Result<(), BoxError> {
        self.left.lock().unwrap().extend(left);
        self.frames.ask(id, left, call, out)
    }

    fn cancel(&mut self, _: u64, _: &mut BytesMut) -> Result<(), BoxError> {
        Ok(())
    }

    fn hear(
        &mut self,
        input: &mut BytesMut,
        ended: bool,
    ) -> Result<Option<Heard<Bytes>>, BoxError> {
        let heard = Protocol::<Bytes>::hear(&mut self.frames, input, ended)?;
        if let Some(caller) = self
            .caller
            .lock()
            .unwrap()
            .take_if(|_| heard.is_some())
        {
            std::thread::sleep(millis(20));
            *self.made.lock().unwrap() = Some(caller.send(text("c")));
        }
        Ok(heard)
    }
}

#[tokio::test]
async fn nobody_is_told_that_there_is_more_time_left_than_there_is() {
    let (connector, mut peers) = peers(1024);
    let slow = Slow {
        frames: InOrder::new(LengthDelimited::max_frame(1024)),
        caller: Arc::default(),
        made: Arc::default(),
        left: Arc::default(),
    };
    let settings = Settings::default().call_deadline(secs(10));
    let client = Client::with_protocol(slow.clone(), settings, connector, ()).unwrap();
    let first = tokio::spawn(client.send(text("a")));
    let mut io = peers.io().await;
    assert_eq!(io.read_u32().await.unwrap(), 1);
    *slow.caller.lock().unwrap() = Some(client.clone());

    // An answer, and a call to make, both before the connection looks.
    io.write_all(b"\0\0\0\x01A")
        .await
        .unwrap();
    let second = tokio::spawn(client.send(text("b")));
    assert_eq!(first.await.unwrap().unwrap(), "A");
    io.write_all(b"\0\0\0\x01B\0\0\0\x01C")
        .await
        .unwrap();
    assert_eq!(second.await.unwrap().unwrap(), "B");
    let third = slow.made.lock().unwrap().take();
    assert_eq!(third.unwrap().await.unwrap(), "C");

    let left = slow.left.lock().unwrap().clone();
    assert_eq!(left.len(), 3);
    assert!(
        left.iter()
            .all(|left| *left <= secs(10)),
        "{left:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_is_refused_before_anything_happens() {
    let (client, peers) = client(Settings::default());
    let call = Deadline::within(Duration::ZERO).scope(async { client.send(text("x")).await });

    let error = call.await.unwrap_err();

    assert_eq!(spent(&error), (Phase::Waiting, None, [Duration::ZERO; 3]));
    assert!(error.never_started());
    settle().await;
    assert_eq!(peers.connects().tried(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_answered_ends_on_time_and_says_that_it_was_calling() {
    let (client, mut peers) = client(Settings::default().call_deadline(secs(2)));
    let begun = Instant::now();
    let call = tokio::spawn(client.send(text("x")));
    let mut peer = peers.next().await;
    let asked = peer.asked().await;

    let error = call.await.unwrap().unwrap_err();

    assert_eq!(begun.elapsed(), secs(2));
    let none = Duration::ZERO;
    assert_eq!(
        spent(&error),
        (Phase::Calling, Some(secs(2)), [none, none, secs(2)])
    );
    assert!(!error.never_started());
    // Nobody works for nobody.
    assert_eq!(peer.frame().await, Some(RpcFrame::cancel(asked.id)));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_place_too_long_was_waiting() {
    let (client, mut peers) = client(Settings::default().in_flight(1));
    let _first = tokio::spawn(client.send(text("first")));
    let mut peer = peers.next().await;
    peer.asked().await;

    let call = Deadline::within(secs(1)).scope(async { client.send(text("x")).await });
    let error = call.await.unwrap_err();

    let none = Duration::ZERO;
    assert_eq!(spent(&error), (Phase::Waiting, None, [secs(1), none, none]));
    assert!(error.never_started());
    // It left no trace: the next in line gets the place.
    let next = tokio::spawn(client.send(text("next")));
    settle().await;
    assert_eq!(client.in_flight(), 1);
    drop(peer);
    assert!(_first.await.unwrap().is_err());
    peers.next().await.echo().await;
    next.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_has_no_connection_for_too_long_was_connecting() {
    let (connector, peers) = peers(64);
    let slow = tower::service_fn(move |()| {
        let connecting = connector.clone().oneshot(());
        async move {
            sleep(secs(5)).await;
            connecting.await
        }
    });
    let client = Client::new(slow, ());

    let call = Deadline::within(secs(1)).scope(async { client.send(text("x")).await });
    let error = call.await.unwrap_err();

    let none = Duration::ZERO;
    assert_eq!(
        spent(&error),
        (Phase::Connecting, None, [none, secs(1), none])
    );
    assert!(error.never_started());
    // The connection is made all the same, for whoever comes next.
    sleep(secs(4)).await;
    settle().await;
    assert_eq!(peers.connects().tried(), 1);
    assert_eq!(client.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_phase_of_a_call_is_on_its_account() {
    let (connector, mut peers) = peers(1 << 20);
    let slow = tower::service_fn(move |()| {
        let connecting = connector.clone().oneshot(());
        async move {
            sleep(millis(20)).await;
            connecting.await
        }
    });
    let settings = Settings::default()
        .in_flight(1)
        .call_deadline(millis(100));
    let client = Client::with_settings(settings, slow, ()).unwrap();
    // Somebody is before it for 10 ms, and then gives up.
    let before = tokio::spawn(client.send(text("before")));
    settle().await;
    let call = tokio::spawn(client.send(text("x")));
    sleep(millis(10)).await;
    before.abort();

    let mut peer = peers.next().await;
    peer.asked().await;
    let error = call.await.unwrap().unwrap_err();

    let times = [millis(10), millis(10), millis(80)];
    assert_eq!(spent(&error), (Phase::Calling, Some(millis(100)), times));
    assert_eq!(
        find::<tower_net::budget::Spent>(&error)
            .unwrap()
            .to_string(),
        "limit of 100ms reached calling (10ms waiting for a place, 10ms connecting, 80ms calling)"
    );
}

// === Bounds

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_reads_holds_no_more_than_the_bound_and_is_given_up() {
    const ROOM: usize = 1024;
    let (connector, mut peers) = peers(ROOM);
    let settings = Settings::default()
        .in_flight(1000)
        .high_water(8 * 1024)
        .write_stall(secs(5))
        .call_deadline(secs(60));
    let client = Client::with_settings(settings, connector, ()).unwrap();
    let calls: Vec<_> = (0..1000)
        .map(|_| tokio::spawn(client.send(Bytes::from(vec![0; 1000]))))
        .collect();
    let io = peers.io().await;
    settle().await;

    let begun = Instant::now();
    let mut outcomes = HashMap::new();
    for call in calls {
        let error = call.await.unwrap().unwrap_err();
        if begun.elapsed() > secs(5) {
            // Of the next connection, with which it is the same.
            break;
        }
        assert!(matches!(
            find::<Disconnected>(&error),
            Some(Disconnected::Stalled(limit)) if *limit == secs(5)
        ));
        *outcomes
            .entry(error.never_started())
            .or_insert(0) += 1;
    }

    // One has arrived, and four bytes of the next; as much as is encoded besides is the bound.
    assert_eq!(outcomes, HashMap::from([(false, 2), (true, 8)]));
    drop(io);
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_given_up_do_not_pile_up_before_a_peer_that_never_reads() {
    let (connector, mut peers) = peers(256);
    let settings = Settings::default()
        .in_flight(8)
        .high_water(1024);
    let client = Client::with_settings(settings, connector, ()).unwrap();
    let first = tokio::spawn(client.send(Bytes::from(vec![0; 300])));
    let mut io = peers.io().await;
    settle().await;

    for _ in 0..10_000 {
        let mut call = task::spawn(client.send(Bytes::from(vec![0; 300])));
        assert_pending!(call.poll());
        tokio::task::yield_now().await;
    }
    first.abort();
    drop(client);

    // All that was ever encoded comes out now.
    let mut all = Vec::new();
    io.read_to_end(&mut all).await.unwrap();
    assert!(all.len() <= 1024 + 320 + 8 * 20 + 256, "{}", all.len());
}

// === The end

#[tokio::test(start_paused = true)]
async fn the_last_client_ends_the_connection_in_order_and_leaves_no_task() {
    let before = tasks();
    let (client, mut peers) = client(Settings::default());
    let other = client.clone();
    let call = tokio::spawn(client.send(text("x")));
    let mut peer = peers.next().await;
    peer.echo().await;
    call.await.unwrap().unwrap();

    drop(client);
    settle().await;
    assert_eq!(tasks(), before + 1);
    drop(other);
    assert_eq!(peer.frame().await, None);
    settle().await;

    assert_eq!(tasks(), before);
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_are_answered_after_the_last_client_is_gone() {
    let before = tasks();
    let (client, mut peers) = client(Settings::default());
    let call = tokio::spawn(client.oneshot(text("x")));
    let mut peer = peers.next().await;
    settle().await;

    peer.echo().await;

    assert_eq!(call.await.unwrap().unwrap(), "x");
    assert_eq!(peer.frame().await, None);
    settle().await;
    assert_eq!(tasks(), before);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_dropped_while_it_connects_leaves_no_task() {
    let before = tasks();
    let never = tower::service_fn(|()| {
        std::future::pending::<std::io::Result<tower_net::Conn<tokio::io::DuplexStream>>>()
    });
    let client = Client::new(never, ());
    let mut call = task::spawn(client.send(text("x")));
    assert_pending!(call.poll());
    settle().await;
    assert_eq!(tasks(), before + 1);

    drop((client, call));
    settle().await;

    assert_eq!(tasks(), before);
}

#[test]
fn a_runtime_that_ends_fails_the_calls_and_does_not_hang_them() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let (connector, mut peers) = peers(64);
    let client = Client::new(connector, ());
    let mut call = task::spawn({
        let _entered = runtime.enter();
        client.send(text("x"))
    });
    runtime.block_on(async {
        assert_pending!(call.poll());
        let mut peer = peers.next().await;
        peer.asked().await;
        std::mem::forget(peer);
    });

    drop(runtime);

    assert!(call.is_woken());
    let error = assert_ready!(call.poll()).unwrap_err();
    assert!(
        matches!(find::<Disconnected>(&error), Some(Disconnected::Aborted)),
        "{error:?}"
    );
    // And so does whoever calls afterwards.
    let mut next = task::spawn(client.send(text("y")));
    let error = assert_ready!(next.poll()).unwrap_err();
    assert!(error.never_started(), "{error:?}");
}

#[test]
fn without_a_runtime_a_client_says_so() {
    let (connector, _peers) = peers(64);
    let mut client = task::spawn(Client::new(connector, ()));

    let error = assert_ready!(client.enter(|cx, mut client| client.poll_ready(cx))).unwrap_err();
    assert!(matches!(error.cause(), CallCause::NoTimer(_)), "{error}");
    let mut call = task::spawn(client.send(text("x")));
    let error = assert_ready!(call.poll()).unwrap_err();
    assert!(matches!(error.cause(), CallCause::NoTimer(_)), "{error}");
    assert!(client.connect().is_err());
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refused = |settings: Settings| {
        let (connector, _peers) = peers(64);
        let error = Client::with_settings(settings, connector, ()).unwrap_err();
        error.setting()
    };
    let settings = Settings::default;

    assert_eq!(refused(settings().in_flight(0)), "in_flight");
    assert_eq!(refused(settings().high_water(0)), "high_water");
    assert_eq!(
        refused(settings().call_deadline(Duration::ZERO)),
        "call_deadline"
    );
    assert_eq!(
        refused(settings().connect_deadline(Duration::ZERO)),
        "connect_deadline"
    );
    assert_eq!(
        refused(settings().write_stall(Duration::ZERO)),
        "write_stall"
    );
    assert_eq!(refused(settings().silence(Duration::ZERO)), "silence");
    assert_eq!(refused(settings().high_water(1 << 32)), "high_water");
    assert_eq!(
        refused(settings().backoff(Duration::ZERO, secs(1))),
        "backoff"
    );
    assert_eq!(refused(settings().backoff(secs(2), secs(1))), "backoff");
    let (connector, _peers) = peers(64);
    let all = settings()
        .in_flight(usize::MAX)
        .write_stall(Duration::MAX)
        .connect_deadline(Duration::MAX);
    assert!(Client::with_settings(all, connector, ()).is_ok());
}

// === Metrics

#[tokio::test(start_paused = true)]
async fn calls_are_counted_by_how_they_ended() {
    let settings = Settings::default()
        .service("x")
        .call_deadline(secs(1));
    let ((client, mut peers), readings) = recorded(|| client(settings));
    let of = |name, outcome| readings.of(name, &[("service", "x"), ("outcome", outcome)]);

    let calls = ["ok", "failed", "refused", "spent", "cancelled"]
        .map(|call| tokio::spawn(client.send(text(call))));
    let mut peer = peers.next().await;
    for _ in &calls {
        let asked = peer.asked().await;
        match &asked.text[..] {
            "ok" => peer.reply(asked.id, "").await,
            "failed" => {
                peer.say(RpcFrame::failure(
                    asked.id,
                    RpcFailure::new(RpcCode::Failed, ""),
                ))
                .await
            }
            "refused" => {
                let refused = RpcFailure::never_started(RpcCode::Refused, "");
                peer.say(RpcFrame::failure(asked.id, refused))
                    .await;
            }
            _ => {}
        }
    }
    assert_eq!(
        readings.of("tower_net_client_in_flight", &[("service", "x")]),
        5.0
    );
    assert_eq!(
        readings.of("tower_net_client_connections", &[("service", "x")]),
        1.0
    );
    calls[4].abort();
    for call in calls {
        let _any = call.await;
    }
    let closed = tokio::spawn(client.send(text("closed")));
    settle().await;
    drop(peer);
    assert!(closed.await.unwrap().is_err());

    for outcome in ["ok", "failed", "refused", "spent", "cancelled", "closed"] {
        assert_eq!(
            of("tower_net_client_calls_total", outcome),
            1.0,
            "{outcome}"
        );
        assert_eq!(
            of("tower_net_client_call_seconds", outcome),
            1.0,
            "{outcome}"
        );
    }
    assert_eq!(of("tower_net_client_connects_total", "ok"), 1.0);
    assert_eq!(
        readings.of("tower_net_client_in_flight", &[("service", "x")]),
        0.0
    );
    settle().await;
    assert_eq!(
        readings.of("tower_net_client_connections", &[("service", "x")]),
        0.0
    );
}
