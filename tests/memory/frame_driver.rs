//! How a framed connection goes on: order, backpressure, the deadlines of its handlers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    sync::Semaphore,
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, task};
use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer, service_fn};
use tower_layer::Layer;
use tower_net::{
    Deadline,
    error::BoxError,
    frame::{Delimited, FrameLayer, Framing, LengthDelimited, Request},
    io::OpaqueIo,
};

use crate::{
    frame::{lines, pipelined},
    support::{
        io::{Drip, Script, Vectored},
        peer::{Peer, serve},
        random::Random,
        service::{millis, obey, secs},
    },
};

pub(crate) fn layer(framing: Framing) -> FrameLayer<Delimited> {
    FrameLayer::with_framing(Delimited::lines(100_000), framing).unwrap()
}

// === Order

#[tokio::test(start_paused = true)]
async fn replies_come_in_the_order_of_their_requests_with_either_codec() {
    let requests = ["wait 300 a", "b", "wait 100 c", "d", "wait 200 e", "f"];
    for framing in [
        Framing::default(),
        pipelined(),
        Framing::default().pipelined(64),
    ] {
        let by_length = FrameLayer::with_framing(LengthDelimited::max_frame(64), framing.clone());
        let by_length = by_length
            .unwrap()
            .layer(service_fn(obey));
        let (mut lines, mut lengths) = (lines(framing), Peer::of(by_length));

        for request in requests {
            lines.send(format!("{request}\n")).await;
            lengths
                .send([0, 0, 0, request.len() as u8])
                .await;
            lengths.send(request).await;
        }

        for reply in ["a", "b", "c", "d", "e", "f"] {
            assert_eq!(lines.hear().await, reply);
            assert_eq!(&lengths.take(5).await[4..], reply.as_bytes());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn handlers_run_side_by_side_up_to_the_depth() {
    for (depth, took) in [(1, 400), (2, 200), (4, 100), (64, 100)] {
        let start = Instant::now();
        let mut peer = lines(Framing::default().pipelined(depth));

        peer.send("wait 100 x\nwait 100 x\nwait 100 x\nwait 100 x\n")
            .await;
        for _ in 0..4 {
            peer.hear().await;
        }

        assert_eq!(start.elapsed(), millis(took), "{depth}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_depth_are_ever_in_flight() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inside, peak) = (Arc::clone(&now), Arc::clone(&most));
    let handler = service_fn(move |request: Request<Bytes>| {
        peak.fetch_max(inside.fetch_add(1, Relaxed) + 1, Relaxed);
        let inside = Arc::clone(&inside);
        async move {
            sleep(millis(u64::from(request.message()[0]))).await;
            inside.fetch_sub(1, Relaxed);
            Ok::<_, BoxError>(request.into_message())
        }
    });
    let mut peer = Peer::of(layer(Framing::default().pipelined(3)).layer(handler));

    for letter in "qwertyuiopasdfgh".chars() {
        peer.send(format!("{letter}\n")).await;
    }
    for letter in "qwertyuiopasdfgh".chars() {
        assert_eq!(peer.hear().await, letter.to_string());
    }

    assert_eq!((now.load(Relaxed), most.load(Relaxed)), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_reply_is_not_held_back_by_half_of_the_next_frame() {
    let mut peer = lines(pipelined());

    peer.send("one\ntw").await;
    let first = peer.hear().await;
    peer.send("o\n").await;

    assert_eq!((&*first, &*peer.hear().await), ("one", "two"));
}

#[tokio::test(start_paused = true)]
async fn a_reply_behind_one_that_is_late_goes_out_before_more_is_read() {
    let mut peer = lines(pipelined());

    peer.send("wait 500 one\ntwo\nthr")
        .await;

    assert_eq!((&*peer.hear().await, &*peer.hear().await), ("one", "two"));
}

#[tokio::test(start_paused = true)]
async fn frames_may_come_and_go_byte_by_byte() {
    let (near, mut far) = duplex(64);
    let (_, _served) = serve(Drip::new(near), layer(pipelined()).layer(service_fn(obey)));

    far.write_all(b"one\nwait 10 two\nthree\n")
        .await
        .unwrap();
    let mut heard = [0; 14];
    far.read_exact(&mut heard)
        .await
        .unwrap();

    assert_eq!(&heard, b"one\ntwo\nthree\n");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_frames_in_one_breath_are_all_answered_in_order() {
    for framing in [Framing::default(), Framing::default().pipelined(64)] {
        let mut peer = lines(framing);
        let (mut read, mut write) = peer.split();
        let all: String = (0..10_000)
            .map(|number| format!("{number}\n"))
            .collect();
        let sent = all.clone();

        let sending = tokio::spawn(async move {
            write
                .write_all(sent.as_bytes())
                .await
                .unwrap();
            write.shutdown().await.unwrap();
        });
        let mut heard = String::new();
        read.read_to_string(&mut heard)
            .await
            .unwrap();
        sending.await.unwrap();

        assert!(heard == all);
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_the_pieces_and_the_pace_every_request_is_answered_in_order() {
    for seed in 1..=200 {
        let mut random = Random::new(seed);
        let framing = Framing::default()
            .pipelined(random.among(1, 9))
            .high_water(random.pick(&[1, 50, 500, 65_536]));
        let service = layer(framing).layer(service_fn(obey));
        let mut peer = Peer::with_room(random.pick(&[1, 7, 64, 4_096]), service);
        let (mut read, mut write) = peer.split();
        let (mut sent, mut expected) = (String::new(), String::new());
        for number in 0..random.among(1, 60) {
            let length = random.among(0, 200);
            let (request, reply) = match random.below(4) {
                0 => (format!("wait {length} {number}"), number.to_string()),
                1 => (format!("long {length}"), "x".repeat(length)),
                _ => (number.to_string(), number.to_string()),
            };
            sent += &format!("{request}\n");
            expected += &format!("{reply}\n");
        }

        let mut writing = Random::new(seed);
        let asking = tokio::spawn(async move {
            let mut rest = sent.as_bytes();
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(writing.among(1, 100).min(rest.len()));
                write.write_all(piece).await.unwrap();
                sleep(millis(writing.pick(&[0, 0, 30]))).await;
                rest = later;
            }
            write.shutdown().await.unwrap();
        });
        let (mut heard, mut piece) = (Vec::new(), [0; 64]);
        loop {
            let room = random.among(1, 64);
            let length = read
                .read(&mut piece[..room])
                .await
                .unwrap();
            if length == 0 {
                break;
            }
            heard.extend_from_slice(&piece[..length]);
            sleep(millis(random.pick(&[0, 0, 5]))).await;
        }

        asking.await.unwrap();
        assert_eq!(String::from_utf8(heard).unwrap(), expected, "seed {seed}");
        assert!(peer.ended().await.is_ok(), "seed {seed}");
    }
}

// === One write, one flush

#[tokio::test(start_paused = true)]
async fn replies_that_are_ready_together_go_out_in_one_write_and_a_flush() {
    let (sink, calls) = Vectored::pair();
    let io = tokio::io::join(Script::new().bytes("one\ntwo\nthree\n"), sink);

    let (_, _served) = serve(
        OpaqueIo::new(io),
        layer(pipelined()).layer(service_fn(obey)),
    );
    sleep(millis(1)).await;

    let [writes, vectored, flushes, _] = calls.counts();
    assert_eq!((writes + vectored, flushes), (1, 1));
}

// === Backpressure

#[tokio::test(start_paused = true)]
async fn above_the_high_water_mark_nothing_is_taken_until_half_of_it_is_gone() {
    let taken = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&taken);
    let handler = service_fn(move |_: Request<Bytes>| {
        seen.fetch_add(1, Relaxed);
        std::future::ready(Ok::<_, BoxError>([b'x'; 99]))
    });
    let framing = Framing::default().high_water(1_000);
    let mut peer = Peer::with_room(300, layer(framing).layer(handler));
    let (mut read, mut write) = peer.split();
    let asking = tokio::spawn(async move { while write.write_all(b"go\n").await.is_ok() {} });

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

    // Replies of a hundred bytes: 1,000 are queued, of which 300 go into the pipe at once.
    assert_eq!((full, above_half), (10, 10));
    assert!(below_half > 10 && below_half <= 20, "{below_half}");
    asking.abort();
}

#[tokio::test(start_paused = true)]
async fn whole_frames_left_undecoded_are_taken_once_the_output_has_drained() {
    let framing = Framing::default().high_water(100);
    let service = layer(framing).layer(service_fn(obey));
    let mut peer = Peer::with_room(500, service);

    // All of it is read at once; the first reply fills the output.
    peer.send("long 700\nlong 90\nlong 90\nlast\n")
        .await;
    sleep(secs(1)).await;
    let heard = [
        peer.hear().await,
        peer.hear().await,
        peer.hear().await,
        peer.hear().await,
    ];

    assert_eq!(heard.map(|reply| reply.len()), [700, 90, 90, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_buffer_full_of_skipped_frames_queues_no_more_than_the_mark() {
    let taken = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&taken);
    let layer = FrameLayer::with_framing(
        Delimited::lines(100).skip_oversize(),
        Framing::default().high_water(1_000),
    );
    let layer = layer.unwrap().last_reply(move |_: &_| {
        seen.fetch_add(1, Relaxed);
        Some("x".repeat(99))
    });
    let mut peer = Peer::with_room(16 * 1024, layer.layer(service_fn(obey)));
    let long = format!("{}\n", "y".repeat(110));
    let all = long.repeat(100);

    let (mut read, mut write) = peer.split();
    let asking = tokio::spawn(async move {
        write
            .write_all(all.repeat(4).as_bytes())
            .await
    });
    sleep(secs(1)).await;
    let queued = taken.load(Relaxed);
    read.read_exact(&mut [0; 40_000])
        .await
        .unwrap();

    // 16 KiB in the pipe, 1,000 bytes queued, and one reply.
    assert!(queued <= 164 + 12, "{queued}");
    assert!(asking.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn skipped_frames_behind_a_handler_stay_within_the_depth() {
    let taken = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&taken);
    let framing = Framing::default().pipelined(4);
    let layer = FrameLayer::with_framing(Delimited::lines(20).skip_oversize(), framing);
    let layer = layer.unwrap().last_reply(move |_: &_| {
        seen.fetch_add(1, Relaxed);
        Some("skipped".to_owned())
    });
    let mut peer = Peer::of(layer.layer(service_fn(obey)));

    peer.send("wait 1000 one\n").await;
    peer.send(format!("{}\n", "y".repeat(30)).repeat(50))
        .await;
    sleep(millis(500)).await;
    let while_it_runs = taken.load(Relaxed);
    let first = peer.hear().await;
    for _ in 0..50 {
        assert_eq!(peer.hear().await, "skipped");
    }

    assert_eq!((&*first, while_it_runs), ("one", 3));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_ready_holds_the_connection_back() {
    let (service, mut handle) = tower_test::mock::pair::<Request<Bytes>, String>();
    handle.allow(0);
    let mut peer = Peer::with_room(16, layer(pipelined()).layer(service));
    let mut written = task::spawn(peer.io.write_all(&[b'\n'; 100_000]));

    assert_pending!(written.poll());
    sleep(secs(1)).await;
    assert_pending!(written.poll());
    assert!(handle.poll_request().is_pending());
    handle.allow(1);

    assert!(handle.next_request().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn the_instance_that_was_made_ready_is_the_one_called() {
    // A mock panics when it is called without having been made ready, and a clone of it is not ready.
    let (service, mut handle) = tower_test::mock::pair::<Request<Bytes>, String>();
    let service = ServiceBuilder::new()
        .layer(layer(pipelined()))
        .layer(ConcurrencyLimitLayer::new(2))
        .service(service);
    let mut peer = Peer::of(service.clone());
    drop(service);

    for _ in 0..3 {
        peer.send("x\n").await;
        let (_, answer) = handle.next_request().await.unwrap();
        answer.send_response("done".to_owned());
        assert_eq!(peer.hear().await, "done");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stock_limit_is_shared_by_the_connections_and_freed_by_each() {
    let limit =
        tower::limit::GlobalConcurrencyLimitLayer::with_semaphore(Arc::new(Semaphore::new(1)));
    let service = ServiceBuilder::new()
        .layer(layer(pipelined()))
        .layer(limit)
        .service_fn(obey);
    let (mut one, mut other) = (Peer::of(service.clone()), Peer::of(service));

    one.send("wait 1000 one\n").await;
    sleep(millis(10)).await;
    other.send("other\n").await;

    assert!(
        other
            .hears_nothing_for(millis(500))
            .await
    );
    assert_eq!((&*one.hear().await, &*other.hear().await), ("one", "other"));
}

// === Deadlines in handlers

#[tokio::test(start_paused = true)]
async fn a_handler_knows_its_deadline_from_the_first_question_on() {
    let handler = service_fn(async |request: Request<Bytes>| {
        let first = request.deadline().remaining();
        sleep(secs(2)).await;
        let later = Deadline::current().remaining();
        Ok::<_, BoxError>(format!("{} {}", first.as_secs(), later.as_secs()))
    });
    for framing in [Framing::default(), pipelined()] {
        let framing = framing.handler_deadline(secs(9));
        let mut peer = Peer::of(layer(framing).layer(handler));

        peer.send("x\ny\n").await;

        assert_eq!([peer.hear().await, peer.hear().await], ["9 7", "9 7"]);
    }
}

#[tokio::test(start_paused = true)]
async fn more_time_is_seen_by_the_handler_that_took_it() {
    let mut peer =
        Peer::of(layer(Framing::default().handler_deadline(secs(9))).layer(service_fn(obey)));

    peer.send("more 1000 left\nleft\n")
        .await;

    assert_eq!([peer.hear().await, peer.hear().await], ["10000", "9000"]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_without_a_limit_has_no_deadline() {
    let framing = Framing::default().handler_deadline(Duration::MAX);
    let mut peer = Peer::of(layer(framing).layer(service_fn(obey)));

    peer.send("left\nwait 86400000 x\n")
        .await;

    assert_eq!(peer.hear().await, Duration::MAX.as_millis().to_string());
    assert_eq!(peer.hear().await, "x");
}

#[tokio::test(start_paused = true)]
async fn handlers_are_not_blamed_while_the_peer_does_not_take_its_replies() {
    let framing = pipelined()
        .high_water(100)
        .handler_deadline(secs(5));
    let framing = framing.reply_deadline(Duration::MAX);
    let mut peer = Peer::with_room(200, layer(framing).layer(service_fn(obey)));

    peer.send("long 900\nwait 3000 two\nwait 4000 three\n")
        .await;
    sleep(secs(60)).await;
    let first = peer.hear().await;

    assert_eq!(first.len(), 900);
    assert_eq!([peer.hear().await, peer.hear().await], ["two", "three"]);
}
