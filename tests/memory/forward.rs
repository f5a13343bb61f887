use std::{
    future::{pending, poll_fn},
    io::{self, ErrorKind},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{
        AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex, split,
    },
    task::{JoinHandle, yield_now},
    time::{Instant, sleep, timeout},
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_net::{
    CloseReason, Conn, ConnInfo, Deadline, Safeguard, Server, Spent,
    deadline::{DeadlineLayer, Deadlines, Elapsed},
    error::{BoxError, NoTimer, find},
    forward::{ConnectError, Forward, Side, Timeouts, Tunnel, TunnelError},
    io::Io,
};
use tower_service::Service;

use crate::{
    pressure::Dial,
    support::{
        io::{Drip, Queue, Script, Vectored},
        peer::serve,
        random::Random,
        readings::recorded,
        service::{millis, secs},
    },
};

/// A tunnel between two streams in memory, and their far ends.
struct Scene {
    client: DuplexStream,
    upstream: DuplexStream,
    info: Arc<ConnInfo>,
    served: JoinHandle<Result<(), BoxError>>,
}

impl Scene {
    /// With room for 64 bytes each way on each side.
    fn open(timeouts: Timeouts) -> Self {
        let (near, upstream) = duplex(64);
        let (far, client) = duplex(64);
        let (info, served) = serve(
            far,
            forward(near)
                .timeouts(timeouts)
                .unwrap(),
        );
        Self {
            client,
            upstream,
            info,
            served,
        }
    }

    fn tunnel(&self) -> Tunnel {
        self.info.tunnel().unwrap().clone()
    }

    /// What it came to, and why.
    async fn ended(self) -> (Result<(), BoxError>, CloseReason) {
        let result = soon(self.served).await.unwrap();
        (result, self.info.close_reason().unwrap())
    }
}

/// Forwards one connection to this stream.
fn forward<O: Io>(
    upstream: O,
) -> Forward<
    impl Service<(), Response = Conn<O>, Error = io::Error, Future: Send> + Clone + Send + 'static,
    (),
> {
    let upstream = Arc::new(Mutex::new(Some(upstream)));
    let connector = service_fn(move |()| {
        let upstream = upstream.lock().unwrap().take();
        async move { Ok(Conn::new(upstream.unwrap(), ())) }
    });
    Forward::to(connector, ())
}

/// On a paused clock whatever hangs fails at once.
async fn soon<F: Future>(future: F) -> F::Output {
    timeout(secs(7 * 86_400), future)
        .await
        .expect("it ends")
}

async fn rest(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    soon(io.read_to_string(&mut text))
        .await
        .unwrap();
    text
}

/// Whether so much time has passed since, or a sixteenth of the shortest timeout more.
fn took(since: Instant, time: Duration) -> bool {
    let passed = since.elapsed();
    passed >= time && passed <= time + secs(2)
}

#[tokio::test(start_paused = true)]
async fn an_end_is_passed_on_after_all_bytes_and_the_answer_may_come_later() {
    let mut scene = Scene::open(Timeouts::default());
    let question = "why ".repeat(100);
    let (mut reader, mut writer) = split(scene.client);

    let asked = async {
        writer
            .write_all(question.as_bytes())
            .await
            .unwrap();
        writer.shutdown().await.unwrap();
    };
    let ((), heard) = tokio::join!(asked, rest(&mut scene.upstream));
    sleep(secs(5)).await;
    scene
        .upstream
        .write_all(b"because")
        .await
        .unwrap();
    drop(scene.upstream);
    let answer = rest(&mut reader).await;
    soon(scene.served)
        .await
        .unwrap()
        .unwrap();

    assert_eq!((heard, &*answer), (question, "because"));
    assert_eq!(scene.info.close_reason(), Some(CloseReason::Peer));
    let tunnel = scene.info.tunnel().unwrap();
    assert_eq!((tunnel.to_upstream(), tunnel.to_client()), (400, 7));
    assert_eq!(tunnel.ended_first(), Some(Side::Client));
    assert_eq!(tunnel.spliced(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_ends_first_is_heard_out_and_so_is_the_client() {
    let mut scene = Scene::open(Timeouts::default());

    scene
        .upstream
        .write_all(b"welcome, and goodbye")
        .await
        .unwrap();
    scene.upstream.shutdown().await.unwrap();
    assert_eq!(rest(&mut scene.client).await, "welcome, and goodbye");
    assert_eq!(scene.tunnel().ended_first(), Some(Side::Upstream));
    scene
        .client
        .write_all(b"one more thing")
        .await
        .unwrap();
    scene.client.shutdown().await.unwrap();
    assert_eq!(rest(&mut scene.upstream).await, "one more thing");

    let (result, reason) = scene.ended().await;
    assert!(result.is_ok());
    assert_eq!(reason, CloseReason::Served);
}

#[tokio::test(start_paused = true)]
async fn figures_are_live_while_the_tunnel_is_open() {
    let mut scene = Scene::open(Timeouts::default());
    assert!(scene.info.tunnel().is_none());

    scene
        .client
        .write_all(b"hello")
        .await
        .unwrap();
    let mut heard = [0; 5];
    scene
        .upstream
        .read_exact(&mut heard)
        .await
        .unwrap();
    yield_now().await;

    let tunnel = scene.tunnel();
    assert_eq!((tunnel.to_upstream(), tunnel.to_client()), (5, 0));
    assert_eq!(tunnel.ended_first(), None);
    assert_eq!(scene.info.close_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_before_the_upstream_is_there() {
    let (far, mut client) = duplex(4);
    let (near, mut upstream) = duplex(64);
    let near = Arc::new(Mutex::new(Some(near)));
    let connector = service_fn(move |()| {
        let near = near.lock().unwrap().take().unwrap();
        async move {
            sleep(secs(2)).await;
            Ok::<_, io::Error>(Conn::new(near, ()))
        }
    });
    let (info, _served) = serve(far, Forward::to(connector, ()));
    let begun = Instant::now();

    client
        .write_all(b"12345678")
        .await
        .unwrap();
    assert!(begun.elapsed() >= secs(2));
    client.shutdown().await.unwrap();

    assert_eq!(rest(&mut upstream).await, "12345678");
    assert!(info.tunnel().unwrap().connected_in() >= secs(2));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_not_there_in_time_closes_the_client() {
    let (service, metrics) = recorded(|| {
        let connector = service_fn(|()| pending::<io::Result<Conn<DuplexStream>>>());
        Forward::to(connector, ())
    });
    let (far, mut client) = duplex(64);
    let begun = Instant::now();
    let (info, served) = serve(far, service);

    let error = soon(served).await.unwrap().unwrap_err();

    assert!(took(begun, secs(5)));
    let error = find::<ConnectError>(&*error).unwrap();
    assert_eq!(error.spent(), Some(Spent::Limit(secs(5))));
    assert_eq!(error.to_string(), "upstream not connected within 5s");
    assert_eq!(info.close_reason(), Some(CloseReason::Upstream));
    assert_eq!(rest(&mut client).await, "");
    let late = [("outcome", "timeout")];
    assert_eq!(metrics.of("tower_net_forward_connects_total", &late), 1.0);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_cannot_be_connected_closes_the_client_and_says_why() {
    let (service, metrics) = recorded(|| {
        let connector = service_fn(async |()| {
            Err::<Conn<DuplexStream>, _>(io::Error::from(ErrorKind::ConnectionRefused))
        });
        Forward::to(connector, ())
    });
    let (far, mut client) = duplex(64);
    let (info, served) = serve(far, service);

    let error = soon(served).await.unwrap().unwrap_err();

    let why = find::<io::Error>(&*error).unwrap();
    assert_eq!(why.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(
        find::<ConnectError>(&*error)
            .unwrap()
            .spent(),
        None
    );
    assert_eq!(info.close_reason(), Some(CloseReason::Upstream));
    assert_eq!(rest(&mut client).await, "");
    let failed = [("outcome", "failed")];
    assert_eq!(metrics.of("tower_net_forward_connects_total", &failed), 1.0);
}

#[tokio::test(start_paused = true)]
async fn the_target_is_chosen_by_the_connection() {
    let connector = service_fn(async |port: u16| {
        let io = Script::new()
            .bytes(port.to_string())
            .end();
        Ok::<_, io::Error>(Conn::new(io, ()))
    });
    let service = Forward::new(connector, |info: &ConnInfo| {
        info.peer().tcp().unwrap().port() + 1
    });
    let (far, mut client) = duplex(64);
    let peer = std::net::SocketAddr::from(([192, 0, 2, 1], 7));

    let _serving = tokio::spawn(service.oneshot(Conn::new(far, peer)));

    let mut heard = [0; 1];
    client
        .read_exact(&mut heard)
        .await
        .unwrap();
    assert_eq!(&heard, b"8");
}

#[tokio::test(start_paused = true)]
async fn after_one_end_a_silent_other_side_is_closed_once_half_close_has_passed() {
    for client_ends in [true, false] {
        let mut scene = Scene::open(Timeouts::default());
        let (ends, other) = match client_ends {
            true => (&mut scene.client, &mut scene.upstream),
            false => (&mut scene.upstream, &mut scene.client),
        };
        ends.shutdown().await.unwrap();
        assert_eq!(rest(other).await, "");
        sleep(secs(50)).await;
        other.write_all(b"!").await.unwrap();
        let begun = Instant::now();

        let (result, reason) = scene.ended().await;

        assert!(took(begun, secs(60)), "{:?}", begun.elapsed());
        assert_eq!(reason, CloseReason::HalfClose);
        let error = result.unwrap_err();
        let elapsed = find::<Elapsed>(&*error).unwrap();
        assert_eq!(elapsed.which(), CloseReason::HalfClose);
        assert_eq!(
            elapsed.to_string(),
            "nothing came after one side had ended within 60s"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn both_open_and_silent_are_left_alone_for_an_hour_and_any_byte_begins_it_anew() {
    let mut scene = Scene::open(Timeouts::default());
    for talks_client in [true, false] {
        sleep(secs(3500)).await;
        let (talks, hears) = match talks_client {
            true => (&mut scene.client, &mut scene.upstream),
            false => (&mut scene.upstream, &mut scene.client),
        };
        talks.write_all(b"!").await.unwrap();
        hears.read_u8().await.unwrap();
    }
    let begun = Instant::now();

    let (result, reason) = scene.ended().await;

    assert!(took(begun, secs(3600)), "{:?}", begun.elapsed());
    assert_eq!(reason, CloseReason::Idle);
    assert!(find::<Elapsed>(&*result.unwrap_err()).is_some());
}

#[tokio::test(start_paused = true)]
async fn whatever_is_off_never_passes() {
    let timeouts = Timeouts::default()
        .connect(Duration::MAX)
        .idle(Duration::MAX)
        .half_close(Duration::MAX)
        .write_stall(Duration::MAX);
    let mut scene = Scene::open(timeouts);
    scene
        .client
        .write_all(&[b'x'; 64])
        .await
        .unwrap();
    sleep(secs(5 * 86_400)).await;
    assert!(!scene.served.is_finished());

    scene.client.shutdown().await.unwrap();
    sleep(secs(86_400)).await;
    assert_eq!(rest(&mut scene.upstream).await.len(), 64);
    drop(scene.upstream);

    soon(scene.served)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_side_that_takes_nothing_stalls_the_tunnel_whichever_it_is() {
    for client_writes in [true, false] {
        let mut scene = Scene::open(Timeouts::default());
        let begun = Instant::now();
        let writes = match client_writes {
            true => &mut scene.client,
            false => &mut scene.upstream,
        };

        // What fits on the way is less.
        let written = writes.write_all(&[b'x'; 256 * 1024 + 1000]);
        let broken = soon(written).await.unwrap_err();

        assert_eq!(broken.kind(), ErrorKind::BrokenPipe);
        assert!(took(begun, secs(30)), "{:?}", begun.elapsed());
        let (result, reason) = scene.ended().await;
        assert_eq!(reason, CloseReason::WriteStall);
        let error = result.unwrap_err();
        let elapsed = find::<Elapsed>(&*error).unwrap();
        assert_eq!(elapsed.which(), CloseReason::WriteStall);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_a_byte_now_and_then_is_no_stall() {
    let mut scene = Scene::open(Timeouts::default().idle(secs(31)));
    let feeding = tokio::spawn(async move {
        scene
            .client
            .write_all(&[b'x'; 300_000])
            .await
    });

    for _ in 0..80 {
        sleep(secs(20)).await;
        assert_eq!(scene.upstream.read_u8().await.unwrap(), b'x');
    }

    assert!(!feeding.is_finished() && !scene.served.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_stall_is_seen_although_the_other_direction_is_busy() {
    let mut scene = Scene::open(Timeouts::default());
    let begun = Instant::now();
    let (mut reader, mut writer) = split(scene.client);
    let blocked = tokio::spawn(async move {
        writer
            .write_all(&[b'x'; 256 * 1024])
            .await
    });
    let listening = tokio::spawn(async move {
        let mut all = Vec::new();
        // Ends with the tunnel, one way or another.
        let _ended = reader.read_to_end(&mut all).await;
    });

    while scene
        .upstream
        .write_all(b"!")
        .await
        .is_ok()
    {
        sleep(secs(1)).await;
    }

    assert!(took(begun, secs(30)), "{:?}", begun.elapsed());
    assert!(blocked.await.unwrap().is_err());
    listening.await.unwrap();
    assert_eq!(scene.info.close_reason(), Some(CloseReason::WriteStall));
}

#[tokio::test(start_paused = true)]
async fn bytes_arrive_one_at_a_time_as_well() {
    let (near, mut upstream) = duplex(7);
    let (far, client) = duplex(3);
    let (info, served) = serve(Drip::new(far), forward(Drip::new(near)));
    let text = "The quick brown fox. ".repeat(30);
    let (mut reader, mut writer) = split(client);

    let ask = async {
        writer
            .write_all(text.as_bytes())
            .await
            .unwrap();
        writer.shutdown().await.unwrap();
    };
    let answer = async {
        let heard = rest(&mut upstream).await;
        upstream
            .write_all(heard.to_uppercase().as_bytes())
            .await
            .unwrap();
        drop(upstream);
    };
    let ((), (), heard) = tokio::join!(ask, answer, rest(&mut reader));

    assert_eq!(heard, text.to_uppercase());
    soon(served).await.unwrap().unwrap();
    assert_eq!(info.close_reason(), Some(CloseReason::Peer));
}

#[tokio::test(start_paused = true)]
async fn random_pieces_arrive_whole_whatever_the_readers_do() {
    for seed in 1..=20 {
        let mut random = Random::new(seed);
        let (near, upstream) = duplex(random.among(1, 200_000));
        let (far, client) = duplex(random.among(1, 200_000));
        let (_info, served) = serve(far, forward(near));
        let (client_reader, client_writer) = split(client);
        let (upstream_reader, upstream_writer) = split(upstream);
        let lengths = [0, 1, 2, 3].map(|_| random.among(0, 600_000));

        let up = send(client_writer, lengths[0]);
        let down = send(upstream_writer, lengths[1]);
        let heard = tokio::join!(
            up,
            down,
            receive(upstream_reader, lengths[2]),
            receive(client_reader, lengths[3])
        );

        assert_eq!((heard.2, heard.3), (lengths[0], lengths[1]), "seed {seed}");
        soon(served).await.unwrap().unwrap();
    }
}

/// Sends so many bytes in pieces, each with its place as its value, and then an end.
async fn send(mut io: impl AsyncWrite + Unpin, length: usize) {
    let bytes: Vec<_> = (0..length).map(|at| at as u8).collect();
    for piece in bytes.chunks(50_000) {
        io.write_all(piece).await.unwrap();
        yield_now().await;
    }
    io.shutdown().await.unwrap();
}

/// Receives until the end, after a pause somewhere on the way: how many bytes, all of them in their places.
async fn receive(mut io: impl AsyncRead + Unpin, pause_at: usize) -> usize {
    let mut received = 0;
    let mut piece = [0; 3000];
    loop {
        let read = soon(io.read(&mut piece)).await.unwrap();
        if read == 0 {
            return received;
        }
        for (at, byte) in piece[..read].iter().enumerate() {
            assert_eq!(*byte, (received + at) as u8);
        }
        if (received..received + read).contains(&pause_at) {
            sleep(secs(3)).await;
        }
        received += read;
    }
}

#[tokio::test(start_paused = true)]
async fn a_broken_upstream_breaks_the_client_and_pretends_no_end() {
    let upstream = Script::new()
        .pause(secs(1))
        .bytes("half of it")
        .fail(ErrorKind::ConnectionReset);
    let (far, mut client) = duplex(64);
    let (info, served) = serve(far, forward(upstream));

    let error = soon(served).await.unwrap().unwrap_err();

    let broken = find::<TunnelError>(&*error).unwrap();
    assert_eq!(broken.side(), Side::Upstream);
    assert_eq!(broken.to_string(), "tunnel broken by its upstream");
    assert_eq!(info.close_reason(), Some(CloseReason::Upstream));
    assert_eq!(info.tunnel().unwrap().ended_first(), Some(Side::Upstream));
    assert_eq!(rest(&mut client).await, "half of it");
}

/// A stream whose writes break, and then say no more: what was here before is still read, and then it seems to end.
struct WriteBreaks(Script);

impl Io for WriteBreaks {}

impl AsyncRead for WriteBreaks {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for WriteBreaks {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(ErrorKind::ConnectionReset.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_break_that_only_a_write_was_told_of_is_no_end_either() {
    let upstream = Script::new()
        .pause(secs(1))
        .bytes("half of it")
        .end();
    let (far, mut client) = duplex(64);
    let (info, served) = serve(far, forward(WriteBreaks(upstream)));
    client.write_all(b"more").await.unwrap();

    let error = soon(served).await.unwrap().unwrap_err();

    let broken = find::<TunnelError>(&*error).unwrap();
    assert_eq!(broken.side(), Side::Upstream);
    assert_eq!(info.close_reason(), Some(CloseReason::Upstream));
    assert_eq!(rest(&mut client).await, "half of it");
}

#[tokio::test(start_paused = true)]
async fn a_broken_client_breaks_the_upstream() {
    let client = Script::new()
        .bytes("half of it")
        .pause(secs(1))
        .fail(ErrorKind::ConnectionReset);
    let (near, mut upstream) = duplex(64);
    let (info, served) = serve(client, forward(near));

    let error = soon(served).await.unwrap().unwrap_err();

    let broken = find::<TunnelError>(&*error).unwrap();
    assert_eq!(broken.side(), Side::Client);
    assert_eq!(info.close_reason(), Some(CloseReason::Reset));
    assert_eq!(rest(&mut upstream).await, "half of it");
}

#[tokio::test(start_paused = true)]
async fn a_tls_peer_that_just_closes_has_ended() {
    let client = Script::new()
        .bytes("all of it")
        .fail(ErrorKind::UnexpectedEof);
    let written = client.written();
    let (near, mut upstream) = duplex(64);
    let (info, served) = serve(client, forward(near));

    assert_eq!(rest(&mut upstream).await, "all of it");
    upstream
        .write_all(b"good")
        .await
        .unwrap();
    drop(upstream);

    soon(served).await.unwrap().unwrap();
    assert_eq!(info.close_reason(), Some(CloseReason::Peer));
    assert_eq!(written.text(), "good");
}

#[tokio::test(start_paused = true)]
async fn a_tls_peer_that_just_closes_has_broken_where_a_goodbye_is_required() {
    for (required, broken) in [(false, None), (true, Some(Side::Upstream))] {
        let upstream = Script::new()
            .bytes("all of it?")
            .fail(ErrorKind::UnexpectedEof);
        let (far, mut client) = duplex(64);
        client.shutdown().await.unwrap();
        let service = forward(upstream).require_goodbye(required);
        let (_info, served) = serve(far, service);

        assert_eq!(rest(&mut client).await, "all of it?");

        let served = soon(served).await.unwrap();
        let error = served.as_ref().err();
        let error = error.map(|error| find::<TunnelError>(&**error).unwrap());
        assert_eq!(error.map(TunnelError::side), broken);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_that_broke_has_said_goes_on_as_far_as_it_is_taken_without_a_wait() {
    let upstream = Script::new()
        .pause(secs(1))
        .bytes([b'x'; 100])
        .end();
    let (far, mut client) = duplex(64);
    let begun = Instant::now();
    let (info, served) = serve(far, forward(WriteBreaks(upstream)));
    client.write_all(b"more").await.unwrap();

    let error = soon(served).await.unwrap().unwrap_err();

    assert_eq!(begun.elapsed(), secs(1));
    assert_eq!(
        find::<TunnelError>(&*error)
            .unwrap()
            .side(),
        Side::Upstream
    );
    assert_eq!(info.close_reason(), Some(CloseReason::Upstream));
    assert_eq!(rest(&mut client).await.len(), 64);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_answers_without_listening_is_heard_and_the_client_let_finish() {
    let mut scene = Scene::open(Timeouts::default());
    let (mut reader, mut writer) = split(scene.client);
    let sending = tokio::spawn(async move {
        let sent = writer.write_all(&[b'x'; 300_000]).await;
        writer.shutdown().await.unwrap();
        sent
    });
    sleep(secs(1)).await;

    scene
        .upstream
        .write_all(b"too much")
        .await
        .unwrap();
    drop(scene.upstream);

    assert_eq!(rest(&mut reader).await, "too much");
    // It can send on, to nobody, until it has seen the answer.
    soon(sending).await.unwrap().unwrap();
    soon(scene.served)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(scene.info.close_reason(), Some(CloseReason::Served));
}

#[tokio::test(start_paused = true)]
async fn what_was_written_is_flushed_before_it_waits_and_the_end_is_passed_on_once() {
    let (upstream, calls) = Vectored::pair();
    let (far, mut client) = duplex(64);
    let (_info, _served) = serve(far, forward(upstream));

    client.write_all(b"abc").await.unwrap();
    sleep(millis(1)).await;
    let waiting = calls.counts();
    client.shutdown().await.unwrap();
    sleep(millis(1)).await;

    assert_eq!(waiting, [1, 0, 1, 0]);
    assert_eq!(calls.counts(), [1, 0, 1, 1]);
}

/// Has always something to read, and takes everything.
struct Endless;

impl Io for Endless {}

impl AsyncRead for Endless {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buf.initialize_unfilled().len();
        buf.advance(room);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
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

#[tokio::test]
async fn a_tunnel_that_never_has_to_wait_moves_both_ways_and_lets_others_have_their_turn() {
    let (info, served) = serve(Endless, forward(Endless));

    for _ in 0..20 {
        yield_now().await;
    }

    // Whoever counts here had its turns among those of the tunnel.
    let tunnel = info.tunnel().unwrap();
    assert!(tunnel.to_upstream() >= 10 << 20);
    assert_eq!(tunnel.to_upstream(), tunnel.to_client());
    served.abort();
}

#[tokio::test(start_paused = true)]
async fn the_deadlines_of_the_client_do_not_run_while_the_upstream_is_dialled() {
    let (near, mut upstream) = duplex(64);
    let near = Arc::new(Mutex::new(Some(near)));
    let connector = service_fn(move |()| {
        let near = near.lock().unwrap().take().unwrap();
        async move {
            sleep(secs(4)).await;
            Ok::<_, io::Error>(Conn::new(near, ()))
        }
    });
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::default())
        .service(Forward::to(connector, ()));
    let (far, mut client) = duplex(64);
    let (info, _served) = serve(far, service);

    client
        .write_all(b"hello")
        .await
        .unwrap();
    client.shutdown().await.unwrap();

    assert_eq!(rest(&mut upstream).await, "hello");
    assert_eq!(info.close_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stays_silent_behind_a_deadline_layer_is_closed_by_its_first_byte() {
    let (near, _upstream) = duplex(64);
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Deadlines::default().first_byte(secs(2))).unwrap())
        .service(forward(near));
    let (far, mut client) = duplex(64);
    let (info, served) = serve(far, service);

    assert_eq!(rest(&mut client).await, "");

    assert!(soon(served).await.unwrap().is_err());
    assert_eq!(info.close_reason(), Some(CloseReason::FirstByte));
}

#[tokio::test(start_paused = true)]
async fn a_notice_to_leave_lets_a_tunnel_go_on_until_it_ends_or_is_cut() {
    let (queue, dialler) = Queue::pair();
    let upstreams = Arc::new(Mutex::new(Vec::new()));
    let far_ends = Arc::clone(&upstreams);
    let connector = service_fn(move |()| {
        let (near, far) = duplex(64);
        far_ends.lock().unwrap().push(far);
        async move { Ok::<_, io::Error>(Conn::new(near, ())) }
    });
    let serve = Server::new(queue)
        .serve(Forward::to(connector, ()))
        .drain_for(secs(20))
        .keep_descriptor_limit();
    let handle = serve.handle();
    let server = tokio::spawn(serve.into_future());
    let (mut ends, mut stays) = (dialler.dial(64), dialler.dial(64));
    sleep(secs(1)).await;
    handle.shutdown();
    sleep(secs(10)).await;

    ends.write_all(b"still").await.unwrap();
    ends.shutdown().await.unwrap();
    let mut upstream = upstreams.lock().unwrap().remove(0);
    assert_eq!(rest(&mut upstream).await, "still");
    drop(upstream);
    assert_eq!(rest(&mut ends).await, "");
    let report = soon(server).await.unwrap().unwrap();

    assert_eq!((report.opened(), report.cut()), (2, 1), "{report}");
    assert_eq!(report.closed_for(CloseReason::Peer), 1, "{report}");
    assert_eq!(rest(&mut stays).await, "");
    let mut upstream = upstreams.lock().unwrap().remove(0);
    assert_eq!(rest(&mut upstream).await, "");
}

#[tokio::test(start_paused = true)]
async fn a_silent_tunnel_makes_room_when_the_process_is_short_of_something() {
    let dial = Dial::default();
    let layer = dial.layer();
    let mut upstreams = Vec::new();
    let mut open = |room| {
        let (near, upstream) = duplex(room);
        upstreams.push(upstream);
        let service = ServiceBuilder::new()
            .layer(&layer)
            .layer(DeadlineLayer::new(Deadlines::none()).unwrap())
            .service(forward(near));
        let (far, client) = duplex(64);
        let (info, served) = serve(far, service);
        (client, info, served)
    };
    let (mut silent, why, ended) = open(64);
    let (mut busy, _, goes_on) = open(1);
    silent.write_all(b"x").await.unwrap();
    busy.write_all(b"xy").await.unwrap();
    sleep(secs(5)).await;

    dial.turn_now(0.5).await;

    assert_eq!(rest(&mut silent).await, "");
    soon(ended).await.unwrap().unwrap();
    assert_eq!(why.close_reason(), Some(CloseReason::Reclaimed));
    assert!(!goes_on.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_what_passes_and_lets_it() {
    let ((), metrics) = {
        let timeouts = Timeouts::default()
            .connect(secs(1))
            .idle(secs(100))
            .half_close(secs(50))
            .write_stall(secs(10))
            .dry_run(true);
        let (near, mut upstream) = duplex(64);
        let near = Arc::new(Mutex::new(Some(near)));
        let connector = service_fn(move |()| {
            let near = near.lock().unwrap().take().unwrap();
            async move {
                sleep(secs(3)).await;
                Ok::<_, io::Error>(Conn::new(near, ()))
            }
        });
        let (service, metrics) = recorded(|| {
            Forward::to(connector, ())
                .timeouts(timeouts)
                .unwrap()
        });
        let (far, mut client) = duplex(64);
        let (_info, served) = serve(far, service);

        sleep(secs(450)).await;
        client
            .write_all(&[b'x'; 100])
            .await
            .unwrap();
        sleep(secs(50)).await;
        client.shutdown().await.unwrap();
        assert_eq!(rest(&mut upstream).await.len(), 100);
        sleep(secs(400)).await;
        drop(upstream);
        soon(served).await.unwrap().unwrap();
        ((), metrics)
    };

    for reason in ["upstream", "idle", "half_close", "write_stall"] {
        let counted = metrics.of("tower_net_dry_run_total", &[("reason", reason)]);
        assert_eq!(counted, 1.0, "{reason}");
    }
    assert_eq!(
        metrics.of("tower_net_forwarded_bytes_total", &[("by", "copy")]),
        100.0
    );
    assert_eq!(
        metrics.of("tower_net_forward_connects_total", &[("outcome", "ok")]),
        1.0
    );
}

#[test]
fn a_timeout_of_zero_is_refused_by_its_name() {
    let zero = Duration::ZERO;
    let none = Timeouts::default();
    for (name, timeouts) in [
        ("connect", none.clone().connect(zero)),
        ("idle", none.clone().idle(zero)),
        ("half_close", none.clone().half_close(zero)),
        ("write_stall", none.write_stall(zero)),
    ] {
        let (near, _far) = duplex(1);

        let refused = forward(near)
            .timeouts(timeouts)
            .err()
            .unwrap();

        assert_eq!(refused.setting(), name);
    }
}

#[test]
fn without_a_timer_it_is_never_ready() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (near, _far) = duplex(1);
    let mut service = forward(near);

    let ready = runtime.block_on(poll_fn(|cx| {
        Service::<Conn<DuplexStream>>::poll_ready(&mut service, cx)
    }));

    assert!(find::<NoTimer>(&*ready.unwrap_err()).is_some());
}

#[tokio::test(start_paused = true)]
async fn the_connector_has_the_connect_timeout_as_its_deadline() {
    let connector = service_fn(async |()| {
        sleep(secs(1)).await;
        let left = Deadline::current().remaining();
        let io = Script::new()
            .bytes(left.as_secs().to_string())
            .end();
        Ok::<_, io::Error>(Conn::new(io, ()))
    });
    let (far, mut client) = duplex(64);
    let (_info, _served) = serve(far, Forward::to(connector, ()));

    client.shutdown().await.unwrap();

    assert_eq!(rest(&mut client).await, "4");
    assert_eq!(Deadline::current(), Deadline::NEVER);
}

#[tokio::test(start_paused = true)]
async fn what_a_tunnel_guards_is_on_the_checklist_unless_it_is_off_or_a_dry_run() {
    let guards = [Safeguard::Handler, Safeguard::Idle, Safeguard::WriteStall];
    for (timeouts, expected) in [
        (Timeouts::default(), [true, true, true]),
        (
            Timeouts::default().idle(Duration::MAX),
            [false, false, true],
        ),
        (Timeouts::default().dry_run(true), [false; 3]),
    ] {
        let scene = Scene::open(timeouts);
        yield_now().await;

        let passed = guards.map(|guard| scene.info.has_passed(guard));

        assert_eq!(passed, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_is_small_whatever_it_takes_to_connect() {
    let connector = service_fn(async |()| {
        let large = [0_u8; 100_000];
        yield_now().await;
        std::hint::black_box(&large);
        Ok::<_, io::Error>(Conn::new(Script::new(), ()))
    });
    let conn = Conn::new(Script::new(), ());

    let future = Forward::to(connector, ()).call(conn);

    assert!(size_of_val(&future) <= 1024, "{}", size_of_val(&future));
}

/// A connector that has to be ready when it is called.
#[derive(Debug, Default)]
struct Strict {
    is_ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Service<()> for Strict {
    type Response = Conn<Script>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Conn<Script>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called when not ready");
        std::future::ready(Ok(Conn::new(Script::new().end(), ())))
    }
}

#[tokio::test(start_paused = true)]
async fn the_connector_that_was_made_ready_is_the_one_that_is_called() {
    let mut service = Forward::to(Strict::default(), ());
    for _ in 0..2 {
        let conn = Conn::new(Script::new().end(), ());
        poll_fn(|cx| Service::<Conn<Script>>::poll_ready(&mut service, cx))
            .await
            .unwrap();

        let _clone = service.clone();
        soon(service.call(conn)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_it_at_any_point_closes_both_sides() {
    let scene = Scene::open(Timeouts::default());
    let (mut client, mut upstream) = (scene.client, scene.upstream);
    client.write_all(b"x").await.unwrap();
    upstream.read_u8().await.unwrap();

    scene.served.abort();

    assert_eq!(rest(&mut client).await, "");
    assert_eq!(rest(&mut upstream).await, "");
}
