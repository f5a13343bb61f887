//! The services that are chosen among: which is made ready, and what is told of the choice.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::sync::Semaphore;
use tokio_test::{assert_pending, assert_ready, task};
use tokio_util::sync::PollSemaphore;
use tower::service_fn;
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, Safeguard,
    detect::{Answer, DetectLayer, NothingElse, Protocol},
    error::{BoxError, NoTimer, find},
    io::{Io, RewoundIo},
};
use tower_service::Service;

use crate::{
    detect::{HTTP2, Heard, TLS, all_kinds, named, run},
    support::{io::Script, peer::serve, readings::recorded},
};

// === Readiness

/// Ready when its gate is open, and angry if it is called without having been made ready.
#[derive(Debug)]
struct Gated {
    ready: bool,
    asked: Arc<AtomicUsize>,
    open: Arc<Semaphore>,
    opening: PollSemaphore,
}

impl Gated {
    fn new(open: bool) -> (Self, Arc<AtomicUsize>, Arc<Semaphore>) {
        let open = Arc::new(Semaphore::new(usize::from(open)));
        let asked = Arc::<AtomicUsize>::default();
        let gated = Self {
            ready: false,
            asked: Arc::clone(&asked),
            open: Arc::clone(&open),
            opening: PollSemaphore::new(Arc::clone(&open)),
        };
        (gated, asked, open)
    }
}

impl Clone for Gated {
    fn clone(&self) -> Self {
        Self {
            ready: false,
            asked: Arc::clone(&self.asked),
            open: Arc::clone(&self.open),
            opening: self.opening.clone(),
        }
    }
}

impl<I: Io> Service<Conn<I>> for Gated {
    type Response = ();
    type Error = BoxError;
    type Future = std::future::Ready<Result<(), BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.asked.fetch_add(1, Relaxed);
        self.opening
            .poll_acquire(cx)
            .map(|permit| {
                permit.ok_or("closed")?.forget();
                self.ready = true;
                Ok(())
            })
    }

    fn call(&mut self, _: Conn<I>) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called without being ready"
        );
        std::future::ready(Ok(()))
    }
}

#[tokio::test(start_paused = true)]
async fn told_to_leave_while_its_service_is_not_ready_a_connection_ends_there_and_then() {
    let (gated, _, _open) = Gated::new(false);
    let service = DetectLayer::new()
        .route(Protocol::own("late", |_| Answer::Yes), gated)
        .layer(NothingElse);
    let (info, served) = serve(Script::new().bytes("hello"), service);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!served.is_finished());

    info.close_after_reply();

    assert!(served.await.unwrap().is_ok());
    assert_eq!(info.close_reason(), Some(CloseReason::Served));
}

#[tokio::test]
async fn only_the_chosen_service_is_made_ready_and_that_instance_called() {
    for (wire, chosen) in [(TLS, 0), (b"GET /", 1), (b"hello", 2)] {
        let [(tls, ..), (http1, ..), (other, ..)] = [(); 3].map(|()| Gated::new(true));
        let asked = [&tls, &http1, &other].map(|gated| Arc::clone(&gated.asked));
        let layer = DetectLayer::new()
            .route(Protocol::tls(), tls)
            .route(Protocol::http1(), http1);

        let (_, served) = serve(Script::new().bytes(wire), layer.layer(other));
        served.await.unwrap().unwrap();

        let asked = asked.map(|asked| asked.load(Relaxed));
        let mut expected = [0; 3];
        expected[chosen] = 1;
        assert_eq!(asked, expected);
    }
}

#[tokio::test]
async fn a_service_that_is_not_ready_holds_up_its_own_connections_only() {
    let [(tls, _, open_tls), (other, _, open_other)] = [(); 2].map(|()| Gated::new(false));
    let layer = DetectLayer::new()
        .route(Protocol::tls(), tls)
        .route(
            Protocol::http1(),
            service_fn(async |_| Ok::<_, BoxError>(())),
        );
    let mut service = layer.layer(other);
    let conn = |bytes: &[u8]| Conn::new(Script::new().bytes(bytes), ());

    let mut ready = task::spawn(service.clone());
    let ready =
        ready.enter(|cx, mut service| Service::<Conn<Script>>::poll_ready(&mut *service, cx));
    assert!(ready.is_ready());
    let [mut tls, mut http, mut other] =
        [TLS, b"GET /", b"hello"].map(|bytes| task::spawn(service.call(conn(bytes))));
    assert_pending!(tls.poll());
    assert_ready!(http.poll()).unwrap();
    assert_pending!(other.poll());

    open_tls.add_permits(1);
    assert!(tls.is_woken() && !other.is_woken());
    assert_ready!(tls.poll()).unwrap();
    open_other.add_permits(1);
    assert!(other.is_woken());
    assert_ready!(other.poll()).unwrap();
}

#[tokio::test]
async fn a_service_that_fails_to_be_ready_is_the_error_of_its_connection() {
    let (gated, _, open) = Gated::new(true);
    open.close();
    let layer = DetectLayer::new().route(Protocol::http1(), gated);

    let (_, served) = serve(Script::new().bytes("GET /"), layer.layer(NothingElse));

    assert_eq!(
        served
            .await
            .unwrap()
            .unwrap_err()
            .to_string(),
        "closed"
    );
}

#[test]
fn a_runtime_that_cannot_keep_time_is_found_before_the_first_connection() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let heard = Heard::default();
    let mut timed = task::spawn(all_kinds(&heard).layer(NothingElse));
    let timeless = all_kinds(&heard)
        .within(Duration::MAX)
        .unwrap();
    let mut timeless = task::spawn(timeless.layer(NothingElse));

    let _entered = runtime.enter();
    let refused =
        timed.enter(|cx, mut service| Service::<Conn<Script>>::poll_ready(&mut *service, cx));
    let fine =
        timeless.enter(|cx, mut service| Service::<Conn<Script>>::poll_ready(&mut *service, cx));

    let error = assert_ready!(refused).unwrap_err();
    assert!(find::<NoTimer>(&*error).is_some());
    assert_ready!(fine).unwrap();
}

// === What is told of it

#[tokio::test]
async fn every_choice_is_counted_by_its_name() {
    let heard = Heard::default();
    let (service, readings) = recorded(|| {
        let admin = Protocol::own("any", |_| Answer::Yes).named("admin");
        let layer = all_kinds(&heard).route(admin, named("admin", &heard));
        layer.layer(named("other", &heard))
    });

    for wire in [TLS, TLS, HTTP2, b"hello"] {
        let io = Script::new().bytes(wire).end();
        serve(io, service.clone())
            .1
            .await
            .unwrap()
            .unwrap();
    }

    let counted = |name| readings.of("tower_net_detected_total", &[("protocol", name)]);
    let counted = ["tls", "http1", "http2", "admin", "other"].map(counted);
    assert_eq!(counted, [2.0, 0.0, 1.0, 1.0, 0.0]);
}

#[tokio::test]
async fn the_first_byte_is_guarded() {
    let heard = Heard::default();
    let layers = [
        (all_kinds(&heard), true),
        (all_kinds(&heard).dry_run(true), false),
        (
            all_kinds(&heard)
                .within(Duration::MAX)
                .unwrap(),
            false,
        ),
    ];
    for (layer, guarded) in layers {
        let (_, info) = run(layer, &heard, Script::new().end()).await;
        assert_eq!(info.has_passed(Safeguard::FirstByte), guarded);
    }
}

#[test]
fn services_that_threads_cannot_share_may_be_routes_and_the_layer_still_is_shared() {
    fn is_shared<T: Clone + std::fmt::Debug + Send + Sync>(_: &T) {}
    let lonely = std::cell::Cell::new(0);
    let lonely = service_fn(move |_: Conn<RewoundIo<Script>>| {
        lonely.set(lonely.get() + 1);
        pending::<Result<(), BoxError>>()
    });

    let layer = DetectLayer::new().route(Protocol::tls(), lonely);

    is_shared(&layer);
    is_shared(&layer.layer(NothingElse));
    assert!(format!("{layer:?}").contains("\"tls\""));
}
