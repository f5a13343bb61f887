//! The limits of a connection, one by one.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::UnixStream,
    time::{Instant, sleep},
};
use tower::{ServiceBuilder, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn,
    deadline::{DeadlineIo, DeadlineLayer, DeadlineService, Deadlines, Elapsed},
    error::{BoxError, find},
    frame::{Delimited, FrameLayer, Framing},
    io::Io,
};
use tower_service::Service;

use crate::support::{
    io::{Script, Stall, Witness},
    peer::{Peer, serve},
    service::{millis, obey, secs},
};

pub(crate) fn none() -> Deadlines {
    Deadlines::none()
}

/// A service of raw streams under `deadlines`.
fn raw<I, F>(
    deadlines: Deadlines,
    serve: fn(Conn<DeadlineIo<I>>) -> F,
) -> DeadlineService<RawService<I, F>>
where
    I: Io,
    F: Future<Output = Result<(), BoxError>>,
{
    let layer = DeadlineLayer::new(deadlines).unwrap();
    layer.layer(service_fn(serve))
}

type RawService<I, F> = tower::util::ServiceFn<fn(Conn<DeadlineIo<I>>) -> F>;

pub(crate) async fn echo<I: Io>(mut conn: Conn<I>) -> Result<(), BoxError> {
    loop {
        let mut byte = [0; 1];
        if conn.read(&mut byte).await? == 0 {
            return Ok(());
        }
        conn.write_all(&byte).await?;
    }
}

async fn pour<I: Io>(mut conn: Conn<I>) -> Result<(), BoxError> {
    conn.write_all(&[0; 100]).await?;
    Ok(())
}

/// Which limit ended the connection, in its reason and in its error alike, and when.
async fn elapsed(mut peer: Peer, since: Instant) -> (Elapsed, Duration) {
    let error = peer.ended().await.unwrap_err();
    let elapsed = *find::<Elapsed>(&*error).unwrap();
    assert_eq!(peer.info.close_reason(), Some(elapsed.which()));
    (elapsed, since.elapsed())
}

/// Not before `limit`, and at most a sixteenth after it.
fn assert_passed(after: Duration, limit: Duration) {
    assert!(after >= limit, "{after:?} is before {limit:?}");
    assert!(
        after <= limit + limit / 16,
        "{after:?} is long after {limit:?}"
    );
}

// === First byte

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_closed_at_the_first_byte_deadline_exactly() {
    let start = Instant::now();
    let peer = Peer::of(raw(none().first_byte(secs(3)), echo));

    let (error, after) = elapsed(peer, start).await;

    assert_eq!(
        (error.which(), error.limit()),
        (CloseReason::FirstByte, Some(secs(3)))
    );
    assert_eq!(error.to_string(), "no first byte within 3s");
    assert_eq!(after, secs(3));
}

#[tokio::test(start_paused = true)]
async fn the_first_byte_deadline_ignores_later_pauses() {
    let mut peer = Peer::of(raw(none().first_byte(secs(3)), echo));

    sleep(millis(2_999)).await;
    peer.send("x").await;
    sleep(secs(3_600)).await;
    peer.send("y").await;

    assert_eq!(peer.take(2).await, b"xy");
}

#[tokio::test(start_paused = true)]
async fn the_first_byte_deadline_begins_where_the_layer_is() {
    let conn = Conn::new(Script::new(), ());
    let mut service = raw(none().first_byte(secs(3)), echo);

    sleep(secs(10)).await;
    let start = Instant::now();
    let ended = service.call(conn).await;

    assert!(ended.is_err());
    assert_eq!(start.elapsed(), secs(3));
}

#[tokio::test(start_paused = true)]
async fn what_we_say_first_is_not_the_peers_first_byte() {
    let start = Instant::now();
    let peer = Peer::of(raw(none().first_byte(secs(3)), |mut conn| async move {
        conn.write_all(b"hello").await?;
        echo(conn).await
    }));

    let (error, after) = elapsed(peer, start).await;

    assert_eq!((error.which(), after), (CloseReason::FirstByte, secs(3)));
}

// === Idle

#[tokio::test(start_paused = true)]
async fn idle_is_counted_from_the_last_byte_whenever_it_came() {
    for pauses in [
        &[][..],
        &[1],
        &[15_999],
        &[900, 900, 100],
        &[1_500, 7, 15_000],
    ] {
        let mut peer = Peer::of(raw(none().idle(secs(16)), echo));
        for pause in pauses {
            peer.send("x").await;
            peer.take(1).await;
            sleep(millis(*pause)).await;
        }
        peer.send("x").await;
        peer.take(1).await;
        let last = Instant::now();

        let (error, after) = elapsed(peer, last).await;

        assert_eq!(error.which(), CloseReason::Idle);
        assert_passed(after, secs(16));
    }
}

#[tokio::test(start_paused = true)]
async fn a_byte_in_either_direction_resets_idle() {
    let mut receives = Peer::of(raw(none().idle(secs(16)), |conn| async move {
        let (mut read, mut write) = tokio::io::split(conn);
        let push = async {
            for _ in 0..10 {
                sleep(secs(15)).await;
                write.write_all(b"x").await.unwrap();
            }
        };
        tokio::select! { _ = read.read_u8() => {}, () = push => {} }
        Ok(())
    }));
    let mut sends = Peer::of(raw(none().idle(secs(16)), |mut conn| async move {
        while conn.read_u8().await? != b'.' {}
        Ok(())
    }));

    for _ in 0..9 {
        sleep(secs(15)).await;
        sends.send("x").await;
    }
    sends.send(".").await;

    assert!(sends.ended().await.is_ok());
    assert!(receives.ended().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_request_being_worked_on_is_not_idle() {
    let mut peer = Peer::of(framed(none().idle(secs(5))));

    peer.send("wait 20000 done\n").await;
    let reply = peer.hear().await;
    let answered = Instant::now();
    let (error, after) = elapsed(peer, answered).await;

    assert_eq!((&*reply, error.which()), ("done", CloseReason::Idle));
    assert_passed(after, secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_wait_for_the_peer_is_not_idle() {
    let mut peer = Peer::of(raw(none().idle(secs(5)), |mut conn| async move {
        conn.read_u8().await?;
        sleep(secs(60)).await;
        Ok(())
    }));

    peer.send("x").await;

    assert!(peer.ended().await.is_ok());
}

// === Write stall

#[tokio::test(start_paused = true)]
async fn a_reader_of_a_byte_in_half_the_limit_never_stalls() {
    let mut peer = Peer::with_room(1, raw(none().write_stall(secs(10)), pour));

    for _ in 0..100 {
        sleep(secs(5)).await;
        peer.take(1).await;
    }

    assert!(peer.ended().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_for_the_limit_is_reset() {
    for taken in [0, 1, 30] {
        let (near, mut far) = tokio::io::duplex(4);
        let (info, served) = serve(near, raw(none().write_stall(secs(16)), pour));
        for _ in 0..taken {
            sleep(secs(3)).await;
            far.read_u8().await.unwrap();
        }
        let last = Instant::now();

        let error = served.await.unwrap().unwrap_err();

        assert_eq!(info.close_reason(), Some(CloseReason::WriteStall));
        assert!(find::<Elapsed>(&*error).is_some());
        assert_passed(last.elapsed(), secs(16));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_write_closes_with_a_reset_and_an_idle_stream_without() {
    let stalled = close_of(raw(none().write_stall(secs(5)), pour)).await;
    let idle = close_of(raw(none().idle(secs(5)), echo)).await;

    assert_eq!(stalled, (Some(CloseReason::WriteStall), true));
    assert_eq!(idle, (Some(CloseReason::Idle), false));
}

/// The reason, and whether the socket was reset, of a peer that neither reads nor writes.
async fn close_of<S>(service: S) -> (Option<CloseReason>, bool)
where
    S: Service<Conn<Witness<Stall<UnixStream>>>, Response = (), Error = BoxError, Future: Send>,
    S: Send + 'static,
{
    let (near, _far) = UnixStream::pair().unwrap();
    let (io, closed) = Witness::pair(Stall(near));
    let (info, served) = serve(io, service);
    assert!(served.await.unwrap().is_err() && closed.is_closed());
    (info.close_reason(), closed.is_reset())
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_given_away_fails_with_the_limit_inside() {
    let (sender, errors) = tokio::sync::oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let layer = DeadlineLayer::new(none().first_byte(secs(3))).unwrap();
    let service = layer.layer(service_fn(move |conn: Conn<_>| {
        let sender = sender.lock().unwrap().take().unwrap();
        tokio::spawn(async move {
            let error = echo(conn).await.unwrap_err();
            sender.send(error).unwrap();
        });
        std::future::pending::<Result<(), BoxError>>()
    }));

    let (_, served) = serve(Script::new(), service);
    let error = errors.await.unwrap();

    let of_stream = error
        .downcast::<std::io::Error>()
        .unwrap();
    assert_eq!(of_stream.kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(
        find::<Elapsed>(&*of_stream)
            .unwrap()
            .which(),
        CloseReason::FirstByte
    );
    assert!(served.await.unwrap().is_err());
}

// === Maximum age

#[tokio::test(start_paused = true)]
async fn a_connection_of_age_is_told_to_leave_and_goes() {
    let start = Instant::now();
    let deadlines = none()
        .max_age(secs(100))
        .age_jitter(0.0);
    let mut peer = Peer::of(framed(deadlines));
    peer.send("hello\n").await;

    let heard = peer.rest().await;

    assert_eq!((&*heard, start.elapsed()), ("hello\n", secs(100)));
    assert_eq!(peer.leave().await, Some(CloseReason::Age));
}

#[tokio::test(start_paused = true)]
async fn ages_are_spread_by_the_jitter_and_stay_within_it() {
    let start = Instant::now();
    let peers: Vec<_> = (0..50)
        .map(|_| {
            Peer::of(framed(
                none()
                    .max_age(secs(100))
                    .age_jitter(0.1),
            ))
        })
        .collect();

    let mut ages = Vec::new();
    for mut peer in peers {
        ages.push(tokio::spawn(async move {
            peer.rest().await;
            start.elapsed()
        }));
    }
    let mut spread = Vec::new();
    for age in ages {
        spread.push(age.await.unwrap());
    }
    spread.sort();
    spread.dedup();

    assert!(spread[0] >= secs(90) && spread[spread.len() - 1] <= secs(110));
    assert!(spread.len() > 40, "{spread:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_go_is_cut_after_the_grace() {
    for grace in [0, 7] {
        let start = Instant::now();
        let deadlines = none()
            .max_age(secs(100))
            .age_jitter(0.0);
        let peer = Peer::of(raw(deadlines.age_grace(secs(grace)), echo));

        let (error, after) = elapsed(peer, start).await;

        assert_eq!(error.which(), CloseReason::Age);
        assert_eq!(after, secs(100 + grace));
    }
}

#[tokio::test(start_paused = true)]
async fn without_grace_one_notice_is_given_and_nothing_is_cut() {
    let deadlines = none()
        .max_age(secs(100))
        .age_grace(Duration::MAX);
    let mut peer = Peer::of(framed(deadlines));

    sleep(secs(80)).await;
    peer.send("wait 200000 done\n").await;
    let heard = peer.rest().await;

    assert_eq!(heard, "done\n");
    assert_eq!(peer.leave().await, Some(CloseReason::Age));
}

#[tokio::test(start_paused = true)]
async fn a_raw_service_hears_why_it_must_leave() {
    let deadlines = none()
        .max_age(secs(100))
        .age_jitter(0.0);
    let mut peer = Peer::of(raw(deadlines, |mut conn| async move {
        let info = Arc::clone(conn.info());
        let why = info.told_to_leave().await;
        conn.write_all(why.label().as_bytes())
            .await?;
        Ok(())
    }));

    assert_eq!(peer.rest().await, "age");
    assert!(peer.ended().await.is_ok());
}

// === Minimum rate

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_too_slowly_is_cut_and_one_at_the_rate_is_not() {
    let deadlines = || {
        none()
            .min_receive_rate(10)
            .rate_window(secs(5))
    };
    let start = Instant::now();
    let mut slow = Peer::of(framed(deadlines()));
    let mut fair = Peer::of(framed(deadlines()));

    for _ in 0..10 {
        slow.send("xxxx").await;
        fair.send("xxxxxxxxxxx").await;
        sleep(secs(1)).await;
        if slow.has_ended() {
            break;
        }
    }
    let (error, after) = elapsed(slow, start).await;
    fair.send("\n").await;

    assert_eq!(error.which(), CloseReason::MinRate);
    assert!(after >= secs(5) && after <= secs(6));
    assert!(!fair.hear().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn silence_between_requests_is_no_slowness() {
    let mut peer = Peer::of(framed(
        none()
            .min_receive_rate(1_000)
            .rate_window(secs(1)),
    ));

    for word in ["one", "two"] {
        peer.send(format!("{word}\n")).await;
        assert_eq!(peer.hear().await, word);
        sleep(secs(60)).await;
    }

    assert!(!peer.has_ended());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_too_slowly_is_cut() {
    let start = Instant::now();
    let service = raw(
        none()
            .min_send_rate(10)
            .rate_window(secs(5)),
        pour,
    );
    let mut peer = Peer::with_room(1, service);

    while !peer.has_ended() {
        peer.take(1).await;
        sleep(secs(1)).await;
    }
    let error = peer.ended().await.unwrap_err();

    assert!(find::<Elapsed>(&*error).is_some());
    assert_eq!(peer.info.close_reason(), Some(CloseReason::MinRate));
    assert!(start.elapsed() <= secs(6));
}

// === Helpers

pub(crate) fn framed(
    deadlines: Deadlines,
) -> impl Service<Conn<DuplexStream>, Response = (), Error = BoxError, Future: Send> + Send {
    let forever = Duration::MAX;
    let framing = Framing::default()
        .request_deadline(forever)
        .handler_deadline(forever)
        .reply_deadline(forever);
    ServiceBuilder::new()
        .layer(DeadlineLayer::new(deadlines).unwrap())
        .layer(FrameLayer::with_framing(Delimited::lines(1_000), framing).unwrap())
        .service_fn(obey)
}
