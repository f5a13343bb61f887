//! One budget over a chain of services: whoever hangs, all give up in time, and say where the time went.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{DuplexStream, duplex},
    time::{Instant, sleep},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_net::{
    Conn, Deadline,
    budget::{self, FanOutCause, Phase},
    client::Client,
    frame::{Request, RpcCode, RpcFailure, RpcLayer},
};

use crate::{
    client::settle,
    support::service::{millis, secs},
};

/// What a hop did, and when.
type Diary = Arc<Mutex<Vec<(&'static str, &'static str, Duration)>>>;

#[derive(Clone)]
struct Log {
    begun: Instant,
    diary: Diary,
}

impl Log {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            diary: Diary::default(),
        }
    }

    fn note(&self, who: &'static str, what: &'static str) {
        let at = self.begun.elapsed();
        self.diary
            .lock()
            .unwrap()
            .push((who, what, at));
    }

    fn when(&self, who: &str, what: &str) -> Vec<Duration> {
        let diary = self.diary.lock().unwrap();
        let notes = diary
            .iter()
            .filter(|note| (note.0, note.1) == (who, what));
        notes.map(|note| note.2).collect()
    }
}

/// Notes when a handler ends, however it does.
struct Ends(Log, &'static str);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.note(self.1, "ends");
    }
}

/// A connector to a service in memory.
fn serve<S>(
    service: S,
) -> impl Service<
    (),
    Response = Conn<DuplexStream>,
    Error = io::Error,
    Future = std::future::Ready<io::Result<Conn<DuplexStream>>>,
> + Clone
+ Send
+ 'static
where
    S: Service<Request<Bytes>, Response = Bytes, Error = RpcFailure>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
{
    service_fn(move |()| {
        let (near, far) = duplex(1 << 16);
        let stack = RpcLayer::new(1 << 16).layer(service.clone());
        tokio::spawn(async move {
            let _ended = stack.oneshot(Conn::new(far, ())).await;
        });
        std::future::ready(Ok(Conn::new(near, ())))
    })
}

/// A service that works for a while and then asks the next one, keeping some of its time to say what became of it.
fn hop(
    log: &Log,
    who: &'static str,
    next: Client,
) -> impl Service<Request<Bytes>, Response = Bytes, Error = RpcFailure, Future: Send>
+ Clone
+ Send
+ Sync
+ use<> {
    let log = log.clone();
    service_fn(move |request: Request<Bytes>| {
        let (log, next) = (log.clone(), next.clone());
        async move {
            log.note(who, "begins");
            let _ends = Ends(log.clone(), who);
            sleep(WORK).await;
            let budget = Deadline::current().less(RESERVE);
            let reply = budget.scope(async { next.send(request.into_message()).await });
            let reply = reply.await;
            log.note(who, if reply.is_ok() { "answers" } else { "gives up" });
            reply.map_err(|error| error.to_failure())
        }
    })
}

/// A service that never answers.
fn hangs(
    log: &Log,
    who: &'static str,
) -> impl Service<Request<Bytes>, Response = Bytes, Error = RpcFailure, Future: Send>
+ Clone
+ Send
+ Sync
+ use<> {
    let log = log.clone();
    service_fn(move |_: Request<Bytes>| {
        let log = log.clone();
        async move {
            log.note(who, "begins");
            let _ends = Ends(log, who);
            std::future::pending::<Result<Bytes, RpcFailure>>().await
        }
    })
}

const BUDGET: Duration = millis(500);
const WORK: Duration = millis(50);
const RESERVE: Duration = millis(20);

#[tokio::test(start_paused = true)]
async fn each_hop_of_a_chain_gives_up_within_the_budget_and_the_first_hears_where_the_time_went() {
    let log = Log::new();
    let c = Client::new(serve(hangs(&log, "c")), ());
    let b = Client::new(serve(hop(&log, "b", c)), ());
    let a = Client::new(serve(hop(&log, "a", b)), ());

    let call = Deadline::within(BUDGET).scope(async { a.send(Bytes::from_static(b"x")).await });
    let error = call.await.unwrap_err();

    // The last that still works gives up first, and each before it in time to say so.
    assert_eq!(log.when("b", "gives up"), [BUDGET - 2 * RESERVE]);
    assert_eq!(log.when("a", "gives up"), [BUDGET - 2 * RESERVE]);
    assert_eq!(log.begun.elapsed(), BUDGET - 2 * RESERVE);
    let failure = error.failure().unwrap();
    assert_eq!(failure.code(), RpcCode::Spent);
    assert!(error.is_spent() && error.budget().is_none());
    assert!(
        error
            .to_string()
            .starts_with("call not done in time at the peer: "),
        "{error}"
    );
    assert!(!error.never_started());
    // `b` was calling `c`, and for how long: what is left of it after the work of `a` and `b`.
    assert_eq!(
        failure.text(),
        "budget spent calling (0ns waiting for a place, 0ns connecting, 360ms calling)"
    );
    // Whoever hung was told, and nobody works any more.
    settle().await;
    for who in ["a", "b", "c"] {
        assert_eq!(log.when(who, "begins").len(), 1, "{who}");
        assert_eq!(log.when(who, "ends").len(), 1, "{who}");
        assert!(log.when(who, "ends")[0] <= BUDGET, "{who}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_word_to_spare_all_give_up_at_the_same_moment() {
    let log = Log::new();
    let hang = hangs(&log, "c");
    let c = Client::new(serve(hang), ());
    let next = c.clone();
    let b = service_fn(move |request: Request<Bytes>| {
        let call = next.send(request.into_message());
        async move {
            call.await
                .map_err(|error| error.to_failure())
        }
    });
    let b = Client::new(serve(b), ());

    let call = Deadline::within(BUDGET).scope(async { b.send(Bytes::from_static(b"x")).await });
    let error = call.await.unwrap_err();

    assert_eq!(log.begun.elapsed(), BUDGET);
    // Either the time is up here, or there, and this is just heard in time.
    assert!(error.is_spent(), "{error}");
    assert_eq!(error.phase(), Phase::Calling);
    settle().await;
    assert_eq!(log.when("c", "ends"), [BUDGET]);
    drop(c);
}

#[tokio::test(start_paused = true)]
async fn no_work_starts_once_the_budget_is_spent() {
    let log = Log::new();
    let c = Client::new(serve(hangs(&log, "c")), ());
    // It has the time for its own work, and none for that of others.
    let b = Client::new(serve(hop(&log, "b", c)), ());

    let call =
        Deadline::within(WORK + RESERVE).scope(async { b.send(Bytes::from_static(b"x")).await });
    let error = call.await.unwrap_err();

    assert_eq!(log.begun.elapsed(), WORK);
    assert_eq!(error.failure().unwrap().code(), RpcCode::Spent);
    assert_eq!(log.when("b", "gives up"), [WORK]);
    sleep(secs(10)).await;
    assert!(log.when("c", "begins").is_empty());
}

#[tokio::test(start_paused = true)]
async fn three_at_once_share_one_budget_and_one_that_hangs_costs_no_more_than_it() {
    let log = Log::new();
    let echo = service_fn(async |request: Request<Bytes>| {
        sleep(WORK).await;
        Ok::<_, RpcFailure>(request.into_message())
    });
    let echo = || Client::new(serve(echo), ());
    let downstreams = [echo(), Client::new(serve(hangs(&log, "c")), ()), echo()];
    let front = service_fn(move |request: Request<Bytes>| {
        let (calls, message) = (downstreams.clone(), request.into_message());
        let budget = Deadline::current().less(RESERVE);
        budget.scope(async move {
            let calls = calls.map(|client| client.send(message.clone()));
            let results = budget::fan_out(calls).all().await;
            let words = results
                .into_iter()
                .map(|result| match result {
                    Ok(_) => "done",
                    Err(error) => match error.into_cause() {
                        FanOutCause::Spent(_) => "late",
                        FanOutCause::Failed(error) if error.budget().is_some() => "late",
                        other => panic!("{other:?}"),
                    },
                });
            let words: Vec<_> = words.collect();
            Ok::<_, RpcFailure>(Bytes::from(words.join(" ")))
        })
    });
    let front = Client::new(serve(front), ());

    let call = Deadline::within(BUDGET).scope(async {
        front
            .send(Bytes::from_static(b"x"))
            .await
    });

    assert_eq!(call.await.unwrap(), "done late done");
    assert_eq!(log.begun.elapsed(), BUDGET - RESERVE);
    settle().await;
    assert_eq!(log.when("c", "ends").len(), 1);
}
