//! The time that callers have left: whose deadline counts, what is late, and what is not begun at all.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tower::{ServiceBuilder, limit::GlobalConcurrencyLimitLayer, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Deadline,
    deadline::{DeadlineLayer, Deadlines},
    frame::{Framing, Request, RpcFrame},
};
use tower_service::Service;

use crate::{
    frame_multiplexed::{Caller, ask, layer, multiplexed, wire},
    support::{
        readings::recorded,
        service::{millis, obey, secs},
    },
};

const SPENT: &str = "!the caller's time is used up";
const NEVER_STARTED: &str = "!the caller's time is used up, never started";
const LATE: &str = "!handler not done in time";

fn both() -> [Framing; 2] {
    [multiplexed(), Framing::default().pipelined(4)]
}

/// A caller that has been served so often that a refusal can be paid for, `id`s up to 100 being used.
async fn served(framing: Framing) -> Caller {
    let mut caller = Caller::new(framing);
    serve_more(&mut caller, 1..=100).await;
    caller
}

async fn serve_more(caller: &mut Caller, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        caller.ask(id, "x").await;
        assert_eq!(caller.hear().await, format!("{id} x"));
    }
}

// === Whose deadline counts

#[tokio::test(start_paused = true)]
async fn the_earlier_of_both_deadlines_is_what_the_handler_sees() {
    for framing in both() {
        let mut caller = Caller::new(framing.handler_deadline(secs(9)));

        caller.ask(1, "left").await;
        caller
            .ask_within(2, secs(4), "left")
            .await;
        caller
            .ask_within(3, secs(40), "left")
            .await;
        caller
            .ask_within(4, millis(1), "left")
            .await;
        caller
            .ask_within(5, Duration::MAX, "left")
            .await;

        caller
            .hears(["1 9000", "2 4000", "3 9000", "4 1", "5 9000"])
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_counts_alone_where_we_have_none() {
    for framing in both() {
        let mut caller = Caller::new(framing.handler_deadline(Duration::MAX));

        caller
            .ask_within(1, secs(4), "left")
            .await;
        caller.hears(["1 4000"]).await;
        let start = Instant::now();
        caller
            .ask_within(2, secs(4), "wait 86400000 x")
            .await;
        caller
            .hears([&format!("2 {SPENT}")])
            .await;
        assert_eq!(start.elapsed(), secs(4));
        caller.ask(3, "wait 86400000 x").await;
        caller.hears(["3 x"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_knows_its_deadline_from_the_first_question_on() {
    let handler = service_fn(async |request: Request<Bytes>| {
        let first = request.deadline().remaining();
        sleep(secs(2)).await;
        let later = Deadline::current().remaining();
        Ok::<_, std::io::Error>(format!("{} {}", first.as_secs(), later.as_secs()))
    });
    for framing in both() {
        let framing = framing.handler_deadline(secs(9));
        let mut caller = Caller::of(layer(framing).layer(handler));

        caller.ask(1, "").await;
        caller.ask_within(2, secs(5), "").await;
        caller.ask(3, "").await;

        caller
            .hears(["1 9 7", "2 5 3", "3 9 7"])
            .await;
    }
}

/// Answers with what is left, and remembers what it found when it was asked whether it is ready.
#[derive(Clone, Default)]
struct Asked {
    found: Arc<Mutex<Vec<Deadline>>>,
}

impl Service<Request<Bytes>> for Asked {
    type Response = String;
    type Error = std::io::Error;
    type Future = std::future::Ready<std::io::Result<String>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.found
            .lock()
            .unwrap()
            .push(Deadline::current());
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let left = request.deadline().remaining();
        std::future::ready(Ok(left.as_secs().to_string()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_becomes_ready_on_nobodys_time() {
    for framing in both() {
        let service = Asked::default();
        let framing = framing.handler_deadline(secs(9));
        let mut caller = Caller::of(layer(framing).layer(service.clone()));

        // In one read.
        let all = wire([ask(1, ""), ask(2, ""), ask(3, "")]);
        caller.peer.send(all).await;
        caller
            .hears(["1 9", "2 9", "3 9"])
            .await;

        assert_eq!(*service.found.lock().unwrap(), [Deadline::NEVER; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn more_time_is_given_to_what_is_in_flight() {
    let mut caller = Caller::new(multiplexed());

    caller
        .ask_within(1, secs(2), "more 3000 wait 4000 one")
        .await;

    caller.hears(["1 one"]).await;
}

// === Late

#[tokio::test(start_paused = true)]
async fn what_is_late_is_dropped_and_told_by_whose_deadline_and_the_others_go_on() {
    let mut caller = Caller::new(multiplexed().handler_deadline(secs(3)));
    let start = Instant::now();

    caller.ask(1, "wait 60000 one").await;
    caller
        .ask_within(2, secs(1), "wait 60000 two")
        .await;
    caller
        .ask_within(3, secs(8), "wait 60000 three")
        .await;
    caller.ask(4, "wait 2000 four").await;

    caller
        .hears([&format!("2 {SPENT}"), "4 four"])
        .await;
    assert_eq!(start.elapsed(), secs(2));
    caller
        .hears([&format!("1 {LATE}"), &format!("3 {LATE}")])
        .await;
    assert_eq!(start.elapsed(), secs(3));
    caller.ask(5, "five").await;
    caller.hears(["5 five"]).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_alone_is_told_the_same() {
    for framing in both() {
        let mut caller = Caller::new(framing.handler_deadline(secs(3)));
        for id in 1..=3 {
            let start = Instant::now();
            caller.ask(2 * id, "wait 9000 x").await;
            assert_eq!(caller.hear().await, format!("{} {LATE}", 2 * id));
            assert_eq!(start.elapsed(), secs(3));
            caller
                .ask_within(2 * id + 1, secs(1), "wait 9000 x")
                .await;
            assert_eq!(caller.hear().await, format!("{} {SPENT}", 2 * id + 1));
            assert_eq!(start.elapsed(), secs(4));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn pipelined_what_is_late_is_told_in_its_place() {
    let mut caller = Caller::new(
        Framing::default()
            .pipelined(8)
            .handler_deadline(secs(3)),
    );
    let start = Instant::now();

    caller.ask(1, "wait 2000 one").await;
    caller
        .ask_within(2, secs(1), "wait 60000 two")
        .await;
    caller.ask(3, "wait 60000 three").await;
    caller.ask(4, "four").await;

    caller
        .hears(["1 one", &format!("2 {SPENT}")])
        .await;
    assert_eq!(start.elapsed(), secs(2));
    caller
        .hears([&format!("3 {LATE}"), "4 four"])
        .await;
    assert_eq!(start.elapsed(), secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_watch_above_keeps_the_same_deadlines() {
    let service = ServiceBuilder::new()
        .layer(DeadlineLayer::new(Deadlines::none()).unwrap())
        .layer(layer(multiplexed().handler_deadline(secs(3))))
        .service_fn(obey);
    let mut caller = Caller::of(service);
    let start = Instant::now();

    caller.ask(1, "wait 60000 one").await;
    caller
        .ask_within(2, secs(1), "wait 60000 two")
        .await;

    caller
        .hears([&format!("2 {SPENT}")])
        .await;
    assert_eq!(start.elapsed(), secs(1));
    caller
        .hears([&format!("1 {LATE}")])
        .await;
    assert_eq!(start.elapsed(), secs(3));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_service_too_long_is_told_so_and_was_never_begun() {
    for (budget, told) in [
        (secs(1), NEVER_STARTED),
        (
            Duration::MAX,
            "!refused, never started: no room for it in time",
        ),
    ] {
        let service = ServiceBuilder::new()
            .layer(layer(multiplexed().handler_deadline(secs(5))))
            .layer(GlobalConcurrencyLimitLayer::new(1))
            .service_fn(obey);
        let mut callers = [(); 3].map(|()| Caller::of(service.clone()));
        let [holds, waits, other] = &mut callers;
        holds
            .ask(1, "more 60000 wait 20000 x")
            .await;
        sleep(millis(1)).await;
        let start = Instant::now();

        waits
            .ask_within(1, budget, "never")
            .await;
        assert_eq!(waits.hear().await, format!("1 {told}"));
        assert_eq!(start.elapsed(), budget.min(secs(5)));

        // The place that it stood in line for is not kept for who has gone.
        holds.hears(["1 x"]).await;
        other.ask(1, "other").await;
        other.hears(["1 other"]).await;
        waits.ask(2, "again").await;
        waits.hears(["2 again"]).await;
    }
}

// === Spent on arrival

#[tokio::test(start_paused = true)]
async fn a_request_whose_time_is_used_up_is_refused_before_it_is_begun() {
    for framing in both() {
        let begun = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&begun);
        let handler = service_fn(move |request| {
            counted.fetch_add(1, Relaxed);
            obey(request)
        });
        let (layer, metrics) = recorded(|| layer(framing));
        let mut caller = Caller::of(layer.layer(handler));
        serve_more(&mut caller, 1..=100).await;

        caller
            .ask_within(101, Duration::ZERO, "no")
            .await;
        caller
            .ask_within(102, Duration::from_micros(999), "no")
            .await;
        caller
            .ask_within(103, millis(1), "yes")
            .await;

        caller
            .hears([
                &format!("101 {NEVER_STARTED}"),
                &format!("102 {NEVER_STARTED}"),
                "103 yes",
            ])
            .await;
        assert_eq!(begun.load(Relaxed), 101);
        let refused = metrics.of("tower_net_requests_total", &[("outcome", "refused")]);
        assert_eq!(refused, 2.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_clock_is_wrong_is_served_all_the_same() {
    let mut caller = Caller::new(multiplexed().handler_deadline(secs(7)));
    let mut heard = [0, 0];

    for id in 1..=600 {
        caller
            .ask_within(id, Duration::ZERO, "left")
            .await;
        let answer = caller.hear().await;
        // It has our deadline, and not its own.
        let is_served = answer == format!("{id} 7000");
        assert!(is_served || answer == format!("{id} {NEVER_STARTED}"));
        heard[usize::from(is_served)] += 1;
    }

    assert_eq!(heard, [100, 500]);
}

#[tokio::test(start_paused = true)]
async fn refusals_are_paid_for_by_what_was_served_lately() {
    for (framing, pause, refused) in [
        (multiplexed(), 0, 20),
        (multiplexed(), 40, 5),
        (multiplexed(), 10_000, 0),
        (multiplexed().refusal_budget(1, secs(10)), 0, 100),
        (multiplexed().refusal_budget(50, secs(100)), 100, 2),
        (multiplexed().refusal_budget(u32::MAX, secs(10)), 0, 0),
    ] {
        let mut caller = served(framing).await;
        sleep(secs(pause)).await;
        let mut heard = 0;

        for id in 101..=300 {
            caller
                .ask_within(id, Duration::ZERO, "x")
                .await;
            let answer = caller.hear().await;
            if answer == format!("{id} x") {
                break;
            }
            heard += 1;
        }

        assert_eq!(heard, refused, "{pause}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_fails_pays_for_nothing() {
    let mut caller = Caller::new(multiplexed());
    for id in 1..=50 {
        caller.ask(id, "fail").await;
        caller.hear().await;
    }

    caller
        .ask_within(51, Duration::ZERO, "x")
        .await;

    caller.hears(["51 x"]).await;
}

#[tokio::test(start_paused = true)]
async fn time_that_a_request_waits_for_room_is_the_callers() {
    // All three are here when the first begins, and there is room for one and one that waits.
    let mut caller = served(Framing::default().multiplexed(1)).await;
    let start = Instant::now();
    let within = |id, secs| {
        let deadline = Deadline::within(Duration::from_secs(secs));
        RpcFrame::request(id, deadline, "left")
    };

    caller
        .peer
        .send(wire([
            ask(101, "wait 3000 x"),
            within(102, 10),
            within(103, 2),
            within(104, 10),
            ask(105, "left"),
        ]))
        .await;

    caller
        .hears([
            "101 x",
            "102 7000",
            &format!("103 {NEVER_STARTED}"),
            "104 7000",
            "105 30000",
        ])
        .await;
    assert_eq!(start.elapsed(), secs(3));
    // What comes in later has all its time.
    sleep(secs(9)).await;
    caller
        .ask_within(106, secs(10), "left")
        .await;
    caller.hears(["106 10000"]).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_is_refused_as_soon_as_its_time_is_up() {
    let mut caller = served(Framing::default().multiplexed(1)).await;
    let start = Instant::now();
    caller.ask(101, "wait 3000 x").await;
    caller
        .ask_within(102, secs(1), "never")
        .await;

    caller
        .hears([&format!("102 {NEVER_STARTED}")])
        .await;
    assert_eq!(start.elapsed(), secs(1));
    caller.hears(["101 x"]).await;
}

// === A dry run

#[tokio::test(start_paused = true)]
async fn a_dry_run_counts_and_lets_be() {
    let (layer, metrics) = recorded(|| {
        layer(
            multiplexed()
                .handler_deadline(secs(2))
                .dry_run(true),
        )
    });
    let mut caller = Caller::of(layer.layer(service_fn(obey)));
    serve_more(&mut caller, 1..=100).await;
    let late = || {
        let labels = [("reason", CloseReason::Handler.label())];
        metrics.of("tower_net_dry_run_total", &labels)
    };

    caller
        .ask_within(101, Duration::ZERO, "spent")
        .await;
    caller.hears(["101 spent"]).await;
    assert_eq!(late(), 1.0);
    caller
        .ask_within(102, secs(1), "left")
        .await;
    let forever = format!("102 {}", Duration::MAX.as_millis());
    caller.hears([&forever]).await;
    caller
        .ask_within(103, secs(1), "wait 1500 hasty")
        .await;
    caller.ask(104, "wait 1900 x").await;
    caller
        .hears(["103 hasty", "104 x"])
        .await;
    assert_eq!(late(), 2.0);
    caller.ask(105, "wait 60000 late").await;
    caller.hears(["105 late"]).await;
    assert_eq!(late(), 3.0);
}
