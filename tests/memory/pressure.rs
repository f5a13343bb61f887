//! What becomes of connections when the process is short of something, on figures that a test turns up.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{DuplexStream, duplex},
    net::UnixStream,
    time::{advance, sleep},
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_net::{
    Addr, CloseReason, Conn, ConnInfo, Networks,
    deadline::{DeadlineLayer, Deadlines},
    error::{BoxError, find},
    frame::{Delimited, FrameLayer, Framing},
    io::GuardedIo,
    pressure::{
        Enrolled, Overloaded, Pressure, PressureHandle, PressureLayer, Resource, Thresholds,
    },
};
use tower_service::Service;

use crate::support::{
    io::{Script, Witness},
    peer::Peer,
    readings::{Readings, recorded},
    service::{millis, obey, secs},
};

/// A level that is turned by hand.
#[derive(Clone, Default)]
pub(crate) struct Dial(Arc<AtomicU32>);

impl Dial {
    pub(crate) fn turn(&self, level: f32) {
        self.0.store(level.to_bits(), Relaxed);
    }

    /// Turns it, and waits until that was seen.
    pub(crate) async fn turn_now(&self, level: f32) {
        self.turn(level);
        sleep(TICK + millis(1)).await;
    }

    pub(crate) fn thresholds(&self) -> Thresholds {
        let dial = self.clone();
        Thresholds::default().own("dial", move || f32::from_bits(dial.0.load(Relaxed)))
    }

    pub(crate) fn layer(&self) -> PressureLayer {
        PressureLayer::new(self.thresholds()).unwrap()
    }
}

/// So long that only what is shortened ever passes.
pub(crate) fn patient() -> Deadlines {
    Deadlines::none().idle(secs(86_400))
}

/// Requests, under the layer and these deadlines.
pub(crate) fn stack(
    layer: &PressureLayer,
    deadlines: Deadlines,
) -> impl Service<Conn<DuplexStream>, Response = (), Error = BoxError, Future: Send>
+ Clone
+ Send
+ 'static {
    let forever = Duration::MAX;
    let framing = Framing::default()
        .request_deadline(forever)
        .handler_deadline(forever)
        .reply_deadline(forever);
    ServiceBuilder::new()
        .layer(layer.clone())
        .layer(DeadlineLayer::new(deadlines).unwrap())
        .layer(FrameLayer::with_framing(Delimited::lines(1_000), framing).unwrap())
        .service_fn(obey)
}

/// A peer that has had one reply.
pub(crate) async fn served(layer: &PressureLayer, deadlines: Deadlines) -> Peer {
    let mut peer = Peer::of(stack(layer, deadlines));
    peer.send("hello\n").await;
    assert_eq!(peer.hear().await, "hello");
    peer
}

pub(crate) type Held = Conn<GuardedIo<Script, Enrolled>>;
pub(crate) type Holds = Pressure<tower::util::BoxCloneService<Held, Held, BoxError>>;

/// A service that hands its connections back.
pub(crate) fn holds(layer: &PressureLayer) -> Holds {
    layer.layer(service_fn(async |conn: Held| Ok(conn)).boxed_clone())
}

pub(crate) fn conn() -> Conn<Script> {
    Conn::new(Script::new(), ())
}

// === Levels

#[tokio::test(start_paused = true)]
async fn a_level_is_seen_from_tick_to_tick_by_the_handle_and_in_metrics() {
    let dial = Dial::default();
    let (layer, metrics) = recorded(|| dial.layer());
    let handle = layer.handle();
    let _held = holds(&layer)
        .call(conn())
        .await
        .unwrap();
    let mut seen = Vec::new();

    for level in [0.0, 0.25, 2.0, -1.0, f32::NAN] {
        dial.turn_now(level).await;
        seen.push(handle.level());
        assert_eq!(
            handle.levels().collect::<Vec<_>>(),
            [(Resource::Own("dial"), handle.level())]
        );
    }

    assert_eq!(seen, [0.0, 0.25, 1.0, 0.0, 0.0]);
    dial.turn_now(0.5).await;
    let gauge = metrics.of("tower_net_pressure", &[("resource", "dial")]);
    assert_eq!(gauge, 0.5);
}

#[tokio::test(start_paused = true)]
async fn the_highest_level_counts_and_a_figure_that_panics_is_none() {
    let (dial, other) = (Dial::default(), Dial::default());
    let second = other.clone();
    let thresholds = dial
        .thresholds()
        .own("other", move || f32::from_bits(second.0.load(Relaxed)))
        .own("broken", || std::panic::resume_unwind(Box::new("told to")));
    let layer = PressureLayer::new(thresholds).unwrap();
    let mut service = holds(&layer);
    let _held = service.call(conn()).await.unwrap();

    dial.turn(0.5);
    other.turn_now(1.0).await;
    let error = service.call(conn()).await.unwrap_err();

    assert_eq!(layer.handle().level(), 1.0);
    let overloaded = find::<Overloaded>(&*error).unwrap();
    assert_eq!(overloaded.resource(), Resource::Own("other"));
    let levels: Vec<_> = layer
        .handle()
        .levels()
        .map(|(_, level)| level)
        .collect();
    assert_eq!(levels, [0.5, 1.0, 0.0]);
}

#[tokio::test(start_paused = true)]
async fn resident_memory_is_measured_in_bytes() {
    let layer = PressureLayer::new(Thresholds::default().memory(1, 2)).unwrap();
    let roomy = PressureLayer::new(Thresholds::default().memory(1 << 50, 1 << 51)).unwrap();
    let (mut service, mut other) = (holds(&layer), holds(&roomy));
    let _held = (service.call(conn()).await, other.call(conn()).await);
    sleep(TICK).await;

    let error = service.call(conn()).await.unwrap_err();

    let overloaded = find::<Overloaded>(&*error).unwrap();
    assert_eq!(
        (overloaded.resource(), overloaded.threshold()),
        (Resource::Memory, 2.0)
    );
    assert!(overloaded.measured() > 100_000.0, "{overloaded}");
    assert!(other.call(conn()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn lag_that_lasts_refuses_newcomers_and_nobody_else() {
    let lag = Thresholds::default().lag(millis(100), millis(500));
    let layer = PressureLayer::new(lag).unwrap();
    let peer = served(&layer, Deadlines::none().idle(secs(20))).await;
    sleep(secs(5)).await;
    let mut refused = Vec::new();

    for late in [0, 0, 900, 0, 900, 900, 900, 0] {
        advance(TICK + millis(late)).await;
        tokio::task::yield_now().await;
        let newcomer = holds(&layer).call(conn()).await;
        refused.push(newcomer.is_err_and(|error| {
            find::<Overloaded>(&*error).is_some_and(|it| it.resource() == Resource::Lag)
        }));
    }
    sleep(secs(5)).await;

    assert_eq!(
        refused,
        [false, false, false, false, false, true, true, false]
    );
    assert_eq!((layer.handle().reclaimed(), peer.has_ended()), (0, false));
}

// === Newcomers

#[tokio::test(start_paused = true)]
async fn at_the_hard_point_a_newcomer_is_reset_in_the_call_and_told_why() {
    let dial = Dial::default();
    let layer = dial.layer();
    let mut service = layer.layer(service_fn(async |conn: Conn<_>| Ok::<_, BoxError>(conn)));
    let (near, _far) = UnixStream::pair().unwrap();
    let (newcomer, _other_far) = UnixStream::pair().unwrap();
    let [(near, _), (newcomer, closed)] = [near, newcomer].map(Witness::pair);
    let _held = service
        .call(Conn::new(near, ()))
        .await
        .unwrap();
    let newcomer = Conn::new(newcomer, ());
    let info = Arc::clone(newcomer.info());

    dial.turn_now(1.25).await;
    let refused = service.call(newcomer);

    assert_eq!(info.close_reason(), Some(CloseReason::Pressure));
    assert!(closed.is_reset());
    let error = refused.await.unwrap_err();
    let overloaded = *find::<Overloaded>(&*error).unwrap();
    assert_eq!((overloaded.measured(), overloaded.threshold()), (1.25, 1.0));
    assert_eq!(
        (overloaded.level(), overloaded.never_started()),
        (1.0, true)
    );
    assert_eq!(overloaded.to_string(), "short of dial: level is 1.25");
    let error = std::io::Error::from(overloaded);
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn below_the_hard_point_and_again_below_it_newcomers_are_served() {
    let dial = Dial::default();
    let layer = dial.layer();
    let mut service = holds(&layer);
    let mut outcomes = Vec::new();
    let _held = service.call(conn()).await.unwrap();

    for level in [0.99, 1.0, 0.99] {
        dial.turn_now(level).await;
        outcomes.push(service.call(conn()).await.is_ok());
    }

    assert_eq!(outcomes, [true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn whoever_was_let_in_is_served_at_the_hard_point() {
    let dial = Dial::default();
    let layer = dial.layer();
    let mut peer = served(&layer, patient()).await;

    peer.send("wait 60000 done\n").await;
    dial.turn_now(1.0).await;

    assert_eq!(peer.hear().await, "done");
}

#[tokio::test(start_paused = true)]
async fn refusals_are_counted_by_their_reason() {
    let dial = Dial::default();
    let (layer, metrics) = recorded(|| dial.layer());
    let mut service = holds(&layer);
    let _held = service.call(conn()).await.unwrap();

    dial.turn_now(1.0).await;
    for _ in 0..3 {
        assert!(service.call(conn()).await.is_err());
    }

    assert_eq!(refused(&metrics), 3.0);
    assert_eq!((layer.handle().refused(), layer.handle().open()), (3, 1));
}

fn refused(metrics: &Readings) -> f64 {
    metrics.of("tower_net_refused_total", &[("reason", "pressure")])
}

#[tokio::test(start_paused = true)]
async fn who_is_exempt_is_let_in_and_not_told_to_leave() {
    let dial = Dial::default();
    let layer = dial
        .layer()
        .exempt(Networks::parse(["10.0.0.0/8"]).unwrap());
    let mut service = stack(&layer, patient());
    let _first = served(&layer, patient()).await;
    dial.turn_now(1.0).await;

    let mut admitted = Vec::new();
    for peer in ["10.1.2.3:4", "[::ffff:10.1.2.3]:4", "11.1.2.3:4"] {
        let addr: SocketAddr = peer.parse().unwrap();
        let (near, far) = duplex(64);
        let info = Arc::new(ConnInfo::new(Addr::from(addr), Addr::Unnamed));
        let serving = service.call(Conn::from_parts(near, Arc::clone(&info)));
        tokio::spawn(serving);
        admitted.push((info, far));
    }
    sleep(secs(60)).await;

    let reasons: Vec<_> = admitted
        .iter()
        .map(|(info, _)| info.close_reason())
        .collect();
    assert_eq!(reasons, [None, None, Some(CloseReason::Pressure)]);
    assert_eq!(layer.handle().reclaimed(), 1);
}

// === Dry run

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_and_does_nothing() {
    let dial = Dial::default();
    let (layer, metrics) = recorded(|| dial.layer());
    let layer = layer.dry_run(true);
    let spared = |reason: &str| metrics.of("tower_net_dry_run_total", &[("reason", reason)]);
    let mut peer = served(&layer, Deadlines::none().idle(secs(90))).await;
    sleep(secs(5)).await;

    dial.turn_now(1.0).await;
    let newcomer = served(&layer, patient()).await;
    sleep(secs(60)).await;
    let once = (spared("pressure"), spared("reclaimed"));
    peer.send("x\n").await;
    let heard = peer.hear().await;
    sleep(secs(60)).await;
    let twice = (spared("pressure"), spared("reclaimed"));

    assert_eq!(
        (&*heard, peer.has_ended(), newcomer.has_ended()),
        ("x", false, false)
    );
    assert_eq!((once, twice), ((1.0, 2.0), (1.0, 3.0)));
    let handle = layer.handle();
    assert_eq!(
        (handle.refused(), handle.reclaimed(), handle.open()),
        (1, 3, 2)
    );
    assert_eq!(refused(&metrics), 0.0);
}

// === Settings

#[test]
fn thresholds_that_make_no_sense_are_refused() {
    let none = Thresholds::default;
    let zero = Duration::ZERO;
    for (wrong, setting) in [
        (none().descriptors(0.9, 0.8), "descriptors"),
        (none().descriptors(0.8, 0.8), "descriptors"),
        (none().descriptors(0.0, 0.8), "descriptors"),
        (none().descriptors(0.8, 1.1), "descriptors"),
        (none().descriptors(f64::NAN, 0.8), "descriptors"),
        (none().descriptors(0.8, f64::NAN), "descriptors"),
        (none().memory(2, 1), "memory"),
        (none().memory(0, 1), "memory"),
        (none().memory_of_limit(0.9, 0.8), "memory_of_limit"),
        (none().memory_of_limit(0.8, 95.0), "memory_of_limit"),
        (none().lag(millis(5), millis(5)), "lag"),
        (none().lag(zero, millis(5)), "lag"),
        (none().own("memory", || 0.0), "own"),
        (none().own("a", || 0.0).own("a", || 0.0), "own"),
        (none().shrink_to(1.1), "shrink_to"),
        (none().shrink_to(-0.1), "shrink_to"),
        (none().shrink_to(f32::NAN), "shrink_to"),
        (none().every(zero), "every"),
        (none().every(Duration::MAX), "every"),
    ] {
        let shown = format!("{wrong:?}");
        let error = PressureLayer::new(wrong).unwrap_err();
        assert_eq!(error.setting(), setting, "{shown}");
    }
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + Sync + std::fmt::Debug>() {}
    check::<PressureLayer>();
    check::<Pressure<()>>();
    check::<PressureHandle>();
    check::<Enrolled>();
    check::<Thresholds>();
}

/// How often it measures by default.
pub(crate) const TICK: Duration = millis(100);
