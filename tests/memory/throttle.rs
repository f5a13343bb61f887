//! How fast bytes pass, and what is never held up.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex},
    time::{Instant, advance, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::service_fn;
use tower_layer::Layer;
use tower_net::{
    Conn,
    error::{BoxError, NoTimer, find},
    io::Io,
    throttle::{Rate, Rates, ThrottleIo, ThrottleLayer},
};
use tower_service::Service;

use crate::support::{
    io::Vectored,
    random::Random,
    service::{millis, secs},
};

/// Takes and gives as much as it is asked for, and notes when.
#[derive(Debug, Clone, Default)]
pub(crate) struct Endless {
    pub(crate) passed: Passed,
}

pub(crate) type Passed = Arc<Mutex<Vec<(Instant, u64)>>>;

impl Endless {
    fn note(&self, bytes: usize) {
        let now = Instant::now();
        self.passed
            .lock()
            .unwrap()
            .push((now, bytes as u64));
    }
}

impl Io for Endless {}

impl AsyncRead for Endless {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.note(buf.remaining());
        buf.put_bytes(7, buf.remaining());
        Poll::Ready(Ok(()))
    }
}

trait PutBytes {
    fn put_bytes(&mut self, byte: u8, count: usize);
}

impl PutBytes for ReadBuf<'_> {
    fn put_bytes(&mut self, byte: u8, count: usize) {
        self.initialize_unfilled_to(count)
            .fill(byte);
        self.advance(count);
    }
}

impl AsyncWrite for Endless {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.note(buf.len());
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = bufs.iter().map(|buf| buf.len()).sum();
        self.note(bytes);
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The stream that the layer makes of `io`.
pub(crate) async fn through<I: Io>(layer: &ThrottleLayer, io: I) -> Conn<ThrottleIo<I>> {
    let keeps = service_fn(async |conn: Conn<ThrottleIo<I>>| Ok::<_, BoxError>(conn));
    let mut service = layer.layer(keeps);
    service
        .call(Conn::new(io, ()))
        .await
        .unwrap()
}

pub(crate) fn layer(rates: Rates) -> ThrottleLayer {
    ThrottleLayer::new(rates).unwrap()
}

pub(crate) fn rate(per_second: u64, burst: u64) -> Rate {
    Rate::per_second(per_second).burst(burst)
}

/// No stretch of time may have more than a burst and the rate; a byte is for rounding.
fn keeps_to(passed: &Passed, rate: Rate, slack: u64) {
    let passed = passed.lock().unwrap();
    let mut sums = vec![0_u64];
    for (_, bytes) in passed.iter() {
        sums.push(sums.last().unwrap() + bytes);
    }
    for first in 0..passed.len() {
        for last in first..passed.len() {
            let time = passed[last].0 - passed[first].0;
            let most = time.as_nanos() * u128::from(rate.bytes_per_second()) / 1_000_000_000;
            let most = u128::from(rate.burst_bytes() + slack) + most + 1;
            let sum = sums[last + 1] - sums[first];
            assert!(
                u128::from(sum) <= most,
                "{sum} bytes in {time:?} at {rate:?}"
            );
        }
    }
}

/// One read or write of any kind, of up to so many bytes.
pub(crate) async fn move_some(
    io: &mut (impl AsyncRead + AsyncWrite + Unpin),
    kind: u64,
    bytes: usize,
) -> u64 {
    let mut buffer = vec![0; bytes];
    let moved = match kind {
        0 => io.read(&mut buffer).await,
        1 => io.write(&buffer).await,
        _ => {
            let (one, two) = buffer.split_at(bytes / 3);
            let parts = [IoSlice::new(one), IoSlice::new(two)];
            poll_fn(|cx| Pin::new(&mut *io).poll_write_vectored(cx, &parts)).await
        }
    };
    moved.unwrap() as u64
}

// === How much

#[tokio::test(start_paused = true)]
async fn a_burst_passes_at_once_and_what_follows_waits() {
    let layer = layer(Rates::new().send(rate(1000, 500)));
    let mut io = through(&layer, Endless::default()).await;
    let start = Instant::now();

    io.write_all(&[0; 500]).await.unwrap();
    assert_eq!(start.elapsed(), secs(0));
    let mut write = task::spawn(io.write(&[0; 100]));
    assert_pending!(write.poll());
    advance(millis(99)).await;
    assert!(!write.is_woken());
    advance(millis(2)).await;

    assert!(write.is_woken());
    assert_eq!(assert_ready!(write.poll()).unwrap(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_burst_by_default_is_a_tenth_of_a_second_or_a_kibibyte() {
    for (per_second, burst) in [(1, 1024), (10_240, 1024), (1_000_000, 100_000)] {
        let rate = Rate::per_second(per_second);
        assert_eq!(rate.burst_bytes(), burst);
        let mut io = through(&layer(Rates::new().receive(rate)), Endless::default()).await;

        assert_eq!(move_some(&mut io, 0, 1 << 20).await, burst);
    }
}

#[tokio::test(start_paused = true)]
async fn over_any_stretch_of_time_no_more_passes_than_a_burst_and_the_rate() {
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let per_second = random.pick(&[10, 1_000, 77_777, 5_000_000]);
        let rate = rate(per_second, per_second / 100 + 1 + random.below(100_000));
        let rates = match seed % 3 {
            0 => Rates::new().receive(rate).send(rate),
            1 => Rates::new()
                .receive_shared(rate)
                .send_shared(rate),
            _ => Rates::new()
                .receive(rate)
                .send_shared(rate)
                .send(Rate::per_second(per_second * 2)),
        };
        let layer = layer(rates);
        for kind in 0..3 {
            let io = Endless::default();
            let passed = Arc::clone(&io.passed);
            let mut io = through(&layer, io).await;
            // Of a shared rate each stream may find out by a byte whether there is something to read.
            let slack = u64::from(kind == 0);
            for _ in 0..60 {
                let bytes = random.among(1, 20_000);
                let bytes = bytes.min(rate.burst_bytes() as usize * 3);
                let most = random.among(1, bytes + 1);
                let patience = millis(random.below(30_000));
                let _cancelled = timeout(patience, move_some(&mut io, kind, most)).await;
                if random.below(4) == 0 {
                    sleep(millis(random.below(3_000))).await;
                }
            }

            keeps_to(&passed, rate, slack);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_transfer_reaches_its_rate_within_two_percent() {
    for per_second in [100, 9_999, 1 << 20, 1 << 28] {
        let plain = Rate::per_second(per_second);
        let tight = plain.burst((per_second / 100).max(1));
        for rate in [plain, tight] {
            for rates in [
                Rates::new().receive(rate).send(rate),
                Rates::new()
                    .receive_shared(rate)
                    .send_shared(rate),
                Rates::new()
                    .receive(rate)
                    .send(rate)
                    .receive_shared(rate)
                    .send_shared(rate),
            ] {
                for kind in 0..3 {
                    let layer = layer(rates);
                    let mut io = through(&layer, Endless::default()).await;
                    let start = Instant::now();
                    let (mut moved, whole) = (0, per_second * 4 + rate.burst_bytes());
                    while moved < whole {
                        moved += move_some(&mut io, kind, 64 * 1024).await;
                    }

                    let over = (moved - whole) as f64 / per_second as f64;
                    let took = start.elapsed().as_secs_f64() - over;
                    assert!((3.98..4.08).contains(&took), "{took} s, {kind}, {rates:?}");
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_earns_one_burst_and_no_more() {
    let layer = layer(Rates::new().send(rate(1000, 500)));
    let mut io = through(&layer, Endless::default()).await;
    assert_eq!(move_some(&mut io, 1, 100).await, 100);
    sleep(secs(60)).await;
    let start = Instant::now();

    let mut at_once = 0;
    while start.elapsed().is_zero() {
        at_once += move_some(&mut io, 1, 100).await;
    }
    let waited = start.elapsed();
    // What was earned meanwhile is there all the same: as much goes out as comes in.
    for _ in 0..10 {
        sleep(millis(500)).await;
        for _ in 0..5 {
            assert_eq!(move_some(&mut io, 1, 100).await, 100);
        }
    }

    assert_eq!(at_once - 100, 500);
    assert_eq!(start.elapsed() - waited, secs(5));
}

#[tokio::test(start_paused = true)]
async fn directions_are_apart_and_one_without_a_rate_is_free() {
    let layer = layer(
        Rates::new()
            .receive(rate(100, 100))
            .send_shared(rate(200, 100)),
    );
    let mut io = through(&layer, Endless::default()).await;
    let start = Instant::now();

    io.read_exact(&mut [0; 300])
        .await
        .unwrap();
    let read = start.elapsed();
    io.write_all(&[0; 300]).await.unwrap();
    let written = start.elapsed() - read;

    assert!((secs(2)..millis(2_010)).contains(&read), "{read:?}");
    // What was written at first was earned while it was read.
    assert!((secs(1)..millis(1_010)).contains(&written), "{written:?}");
}

#[tokio::test]
async fn rates_that_cannot_work_are_refused() {
    let setting = |rates| {
        ThrottleLayer::new(rates)
            .unwrap_err()
            .setting()
    };
    assert_eq!(setting(Rates::new()), "rates");
    assert_eq!(
        setting(Rates::new().receive(Rate::per_second(0))),
        "receive"
    );
    assert_eq!(setting(Rates::new().send(rate(1, 0))), "send");
    let too_fast = Rate::per_second(u64::MAX);
    assert_eq!(setting(Rates::new().send_shared(too_fast)), "send_shared");
    // A burst that passes in less than timers can tell.
    let too_fine = rate(1_000_000, 9_999);
    assert_eq!(
        setting(Rates::new().receive_shared(too_fine)),
        "receive_shared"
    );
    assert!(ThrottleLayer::new(Rates::new().send(rate(1 << 36, 1 << 40))).is_ok());
    assert!(ThrottleLayer::new(Rates::new().send(rate(1, 1))).is_ok());
}

#[test]
fn a_runtime_that_cannot_keep_time_is_found_before_the_first_connection() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let inner = service_fn(async |_: Conn<ThrottleIo<Endless>>| Ok::<_, BoxError>(()));
    let mut service = task::spawn(layer(Rates::new().send(rate(1, 1))).layer(inner));

    let _entered = runtime.enter();
    let refused =
        service.enter(|cx, mut service| Service::<Conn<Endless>>::poll_ready(&mut *service, cx));

    let error = assert_ready!(refused).unwrap_err();
    assert!(find::<NoTimer>(&*error).is_some());
}

// === What is never held up, and never lost

#[tokio::test(start_paused = true)]
async fn flush_and_shutdown_and_nothing_at_all_pass_at_once() {
    for rates in [
        Rates::new()
            .receive(rate(1, 1))
            .send(rate(1, 1)),
        Rates::new()
            .receive_shared(rate(1, 1))
            .send_shared(rate(1, 1)),
    ] {
        let mut io = through(&layer(rates), Endless::default()).await;
        for kind in 0..2 {
            assert_eq!(move_some(&mut io, kind, 10).await, 1);
        }
        let start = Instant::now();

        io.flush().await.unwrap();
        assert_eq!(
            (
                io.read(&mut []).await.unwrap(),
                io.write(&[]).await.unwrap()
            ),
            (0, 0)
        );
        io.shutdown().await.unwrap();

        assert_eq!(start.elapsed(), secs(0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_operation_loses_nothing() {
    let rates = Rates::new()
        .receive(rate(2_000, 100))
        .send(rate(2_000, 100))
        .receive_shared(rate(3_000, 200))
        .send_shared(rate(3_000, 200));
    let (near, far) = duplex(128);
    let mut near = through(&layer(rates), near).await;
    let mut far = through(&layer(rates), far).await;
    let sent: Vec<u8> = (0..20_000_u32)
        .map(|at| ((at * 31) >> 3) as u8)
        .collect();

    let sending = async {
        let (mut random, mut rest) = (Random::new(1), &sent[..]);
        while !rest.is_empty() {
            let piece = &rest[..random.among(1, 300).min(rest.len())];
            let patience = millis(random.below(60));
            if let Ok(written) = timeout(patience, near.write(piece)).await {
                rest = &rest[written.unwrap()..];
            }
        }
        near.shutdown().await.unwrap();
    };
    let receiving = async {
        let (mut random, mut received) = (Random::new(2), Vec::new());
        loop {
            let mut buffer = vec![0; random.among(1, 300)];
            match timeout(millis(random.below(60)), far.read(&mut buffer)).await {
                Ok(Ok(0)) => return received,
                Ok(read) => received.extend_from_slice(&buffer[..read.unwrap()]),
                Err(_) => {}
            }
        }
    };
    let ((), received) = tokio::join!(sending, receiving);

    assert_eq!(received, sent);
}

#[tokio::test(start_paused = true)]
async fn either_side_may_end_while_the_other_goes_on() {
    let rates = Rates::new()
        .receive(rate(1_000, 100))
        .send_shared(rate(1_000, 100));
    let (near, mut far) = duplex(64);
    let mut near = through(&layer(rates), near).await;

    let near_side = async {
        let mut read = Vec::new();
        near.read_to_end(&mut read)
            .await
            .unwrap();
        near.write_all(&read).await.unwrap();
        near.shutdown().await.unwrap();
    };
    let far_side = async {
        far.write_all(&[b'x'; 500])
            .await
            .unwrap();
        far.shutdown().await.unwrap();
        let mut read = Vec::new();
        far.read_to_end(&mut read)
            .await
            .unwrap();
        read
    };
    let ((), read) = tokio::join!(near_side, far_side);

    assert_eq!(read, [b'x'; 500]);
}

#[tokio::test(start_paused = true)]
async fn vectored_writes_stay_vectored_in_part_as_well() {
    let (inner, calls) = Vectored::pair();
    let mut io = through(&layer(Rates::new().send(rate(10, 10))), inner).await;
    let parts = [&b"abc"[..], b"", b"defgh", b"ij", b"klm"].map(IoSlice::new);

    let mut writes = Vec::new();
    for _ in 0..2 {
        let write = poll_fn(|cx| Pin::new(&mut io).poll_write_vectored(cx, &parts));
        writes.push(write.await.unwrap());
    }

    // All that may pass, then half a burst.
    assert_eq!((writes, calls.counts()), (vec![10, 5], [0, 2, 0, 0]));
    assert!(io.is_write_vectored());
}

#[tokio::test(start_paused = true)]
async fn of_very_many_slices_some_go_at_once_and_none_is_lost() {
    let io = Endless::default();
    let mut io = through(&layer(Rates::new().send(rate(1_000, 100))), io).await;
    let parts = [IoSlice::new(b"ab"); 64];

    let written = poll_fn(|cx| Pin::new(&mut io).poll_write_vectored(cx, &parts)).await;

    // Sixteen of them, since not all may pass.
    assert_eq!(written.unwrap(), 32);
}
