use std::{
    collections::HashMap,
    convert::Infallible,
    future::{pending, ready},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    io::{DuplexStream, duplex},
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Service, ServiceExt, discover::Change, service_fn};
use tower_net::{
    Conn, Deadline,
    balance::{Balanced, Endpoints, Refreshing, peak_ewma},
    budget::{Phase, Spent},
    client::{CallError, MakeClient, RetryBudget, Settings},
    error::find,
    frame::{RpcCode, RpcFailure, RpcFrame},
};

use crate::{
    client::settle,
    support::{
        readings::recorded,
        rpc::Peer,
        service::{millis, secs},
    },
};

/// Peers with a number each, which answer with it, or are down.
#[derive(Clone, Default)]
struct Town {
    peers: Arc<Mutex<HashMap<u32, Arc<House>>>>,
}

#[derive(Default)]
struct House {
    is_down: AtomicBool,
    refuses: AtomicBool,
    tried: AtomicUsize,
    asked: AtomicUsize,
    refusals: AtomicUsize,
    wait: Mutex<Duration>,
    seen: Mutex<Option<Duration>>,
    connections: Mutex<Vec<tokio::task::AbortHandle>>,
}

impl Town {
    fn house(&self, number: u32) -> Arc<House> {
        let mut peers = self.peers.lock().unwrap();
        peers.entry(number).or_default().clone()
    }

    fn connector(
        &self,
    ) -> impl Service<
        u32,
        Response = Conn<DuplexStream>,
        Error = io::Error,
        Future = std::future::Ready<io::Result<Conn<DuplexStream>>>,
    > + Clone
    + Send
    + 'static {
        let town = self.clone();
        service_fn(move |number| {
            let house = town.house(number);
            house.tried.fetch_add(1, Relaxed);
            if house.is_down.load(Relaxed) {
                return ready(Err(io::ErrorKind::ConnectionRefused.into()));
            }
            let (near, far) = duplex(1 << 16);
            let serving = tokio::spawn(House::serve(house.clone(), number, far));
            house
                .connections
                .lock()
                .unwrap()
                .push(serving.abort_handle());
            ready(Ok(Conn::new(near, ())))
        })
    }

    fn balanced(
        &self,
        numbers: &[u32],
    ) -> impl Service<Bytes, Response = Bytes, Error = tower_net::error::BoxError, Future: Send>
    + Clone
    + use<> {
        let make = MakeClient::new(self.connector());
        Balanced::over(Endpoints::new(numbers.to_vec(), |number| make.make(*number)).unwrap())
    }
}

impl House {
    async fn serve(self: Arc<Self>, number: u32, io: DuplexStream) {
        let mut peer = Peer::new(io);
        while let Some(frame) = peer.frame().await {
            let RpcFrame::Request { id, left, .. } = frame else {
                continue;
            };
            *self.seen.lock().unwrap() = left;
            if self.refuses.load(Relaxed) {
                self.refusals.fetch_add(1, Relaxed);
                let failure = RpcFailure::never_started(RpcCode::Refused, "");
                peer.say(RpcFrame::failure(id, failure))
                    .await;
                continue;
            }
            self.asked.fetch_add(1, Relaxed);
            let wait = *self.wait.lock().unwrap();
            sleep(wait).await;
            peer.reply(id, number.to_string()).await;
        }
    }

    /// Every connection is gone, and no new one is made.
    fn die(&self) {
        self.is_down.store(true, Relaxed);
        for connection in self
            .connections
            .lock()
            .unwrap()
            .drain(..)
        {
            connection.abort();
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

// === The choice

#[tokio::test(start_paused = true)]
async fn calls_go_to_all_that_are_there() {
    let town = Town::default();
    let balanced = town.balanced(&[1, 2, 3]);

    for _ in 0..300 {
        balanced
            .clone()
            .oneshot(text("x"))
            .await
            .unwrap();
    }

    for number in 1..=3 {
        assert!(
            town.house(number).asked() > 30,
            "{number}: {}",
            town.house(number).asked()
        );
        assert_eq!(town.house(number).tried.load(Relaxed), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_slow_gets_less() {
    let town = Town::default();
    *town.house(1).wait.lock().unwrap() = secs(1);
    *town.house(2).wait.lock().unwrap() = millis(1);
    *town.house(3).wait.lock().unwrap() = millis(1);
    let balanced = town.balanced(&[1, 2, 3]);

    let mut calls = JoinSet::new();
    for _ in 0..500 {
        calls.spawn(balanced.clone().oneshot(text("x")));
        sleep(millis(2)).await;
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap().unwrap();
    }

    assert!(town.house(1).asked() < 25, "{}", town.house(1).asked());
}

#[tokio::test(start_paused = true)]
async fn of_three_one_is_dead_and_no_call_notices() {
    let town = Town::default();
    town.house(2)
        .is_down
        .store(true, Relaxed);
    let balanced = town.balanced(&[1, 2, 3]);

    for _ in 0..200 {
        balanced
            .clone()
            .oneshot(text("x"))
            .await
            .unwrap();
        sleep(millis(10)).await;
    }

    assert_eq!(town.house(2).asked(), 0);
    // It is tried again and again, and not more often than its pauses let.
    let tried = town.house(2).tried.load(Relaxed);
    assert!((4..=9).contains(&tried), "{tried}");
}

#[tokio::test(start_paused = true)]
async fn one_that_dies_and_comes_back_is_left_out_meanwhile() {
    let town = Town::default();
    let balanced = town.balanced(&[1, 2, 3]);
    let call = async || {
        balanced
            .clone()
            .oneshot(text("x"))
            .await
    };
    for _ in 0..50 {
        call().await.unwrap();
    }

    // Nothing was in flight, so nothing is lost.
    town.house(2).die();
    settle().await;
    let before = town.house(2).asked();
    for _ in 0..50 {
        call().await.unwrap();
    }
    assert_eq!(town.house(2).asked(), before);

    town.house(2)
        .is_down
        .store(false, Relaxed);
    sleep(secs(5)).await;
    for _ in 0..50 {
        call().await.unwrap();
    }
    assert!(town.house(2).asked() > before);
}

#[tokio::test(start_paused = true)]
async fn what_was_in_flight_on_one_that_dies_fails_and_what_was_not_begun_moves() {
    let town = Town::default();
    for number in [1, 2] {
        *town.house(number).wait.lock().unwrap() = secs(1);
    }
    let balanced = town.balanced(&[1, 2]);
    let calls: Vec<_> = (0..10)
        .map(|_| tokio::spawn(balanced.clone().oneshot(text("x"))))
        .collect();
    settle().await;

    // Each has one call at work, and the others where they may have been read.
    town.house(2).die();
    let mut failed = 0;
    for call in calls {
        if let Err(error) = call.await.unwrap() {
            let error = find::<CallError>(error.as_ref()).unwrap();
            assert!(!error.never_started());
            failed += 1;
        }
    }
    assert!((1..10).contains(&failed), "{failed}");

    let after = balanced
        .oneshot(text("y"))
        .await
        .unwrap();
    assert_eq!(after, "1");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_a_peer_refuses_is_taken_to_another() {
    let town = Town::default();
    town.house(1)
        .refuses
        .store(true, Relaxed);
    let balanced = town.balanced(&[1, 2]);

    for _ in 0..50 {
        let reply = balanced
            .clone()
            .oneshot(text("x"))
            .await;
        assert_eq!(reply.unwrap(), "2");
    }

    // It is left alone for a moment: being quick, it would be asked first.
    assert_eq!(town.house(1).refusals.load(Relaxed), 1);
    sleep(millis(100)).await;
    assert_eq!(
        balanced
            .oneshot(text("x"))
            .await
            .unwrap(),
        "2"
    );
}

#[tokio::test(start_paused = true)]
async fn attempts_and_their_budget_have_an_end() {
    let town = Town::default();
    for number in [1, 2] {
        town.house(number)
            .refuses
            .store(true, Relaxed);
    }
    let make = MakeClient::with_settings(
        Settings::default().retries(RetryBudget::none()),
        town.connector(),
    )
    .unwrap();
    let endpoints = || Endpoints::new([1, 2], |number| make.make(*number)).unwrap();
    let tried = Arc::new(AtomicUsize::new(0));
    let count = |tried: &Arc<AtomicUsize>| {
        let tried = tried.clone();
        peak_ewma(endpoints()).map_request(move |call: Bytes| {
            tried.fetch_add(1, Relaxed);
            call
        })
    };

    let balanced = Balanced::new(count(&tried))
        .attempts(2)
        .unwrap();
    let error = balanced
        .oneshot(text("x"))
        .await
        .unwrap_err();
    assert!(
        find::<CallError>(error.as_ref())
            .unwrap()
            .is_retryable()
    );
    assert_eq!(tried.swap(0, Relaxed), 2);

    let balanced = Balanced::new(count(&tried)).retries(RetryBudget::none());
    assert!(
        balanced
            .oneshot(text("x"))
            .await
            .is_err()
    );
    assert_eq!(tried.load(Relaxed), 1);
    assert!(Balanced::new(()).attempts(0).is_err());
    assert!(
        Balanced::new(())
            .call_deadline(Duration::ZERO)
            .is_err()
    );
}

// === Budgets

#[tokio::test(start_paused = true)]
async fn the_budget_of_the_caller_reaches_the_peer() {
    let town = Town::default();
    let balanced = town.balanced(&[1]);

    let budget = Deadline::within(secs(3));
    budget
        .scope(balanced.oneshot(text("x")))
        .await
        .unwrap();

    assert_eq!(*town.house(1).seen.lock().unwrap(), Some(secs(3)));
}

#[tokio::test(start_paused = true)]
async fn with_no_peer_there_a_call_waits_as_long_as_it_may() {
    let town = Town::default();
    town.house(1)
        .is_down
        .store(true, Relaxed);
    let balanced = town.balanced(&[1]);
    let begun = Instant::now();

    let budget = Deadline::within(secs(3));
    let error = budget
        .scope(balanced.clone().oneshot(text("x")))
        .await
        .unwrap_err();

    assert_eq!(begun.elapsed(), secs(3));
    let spent = find::<Spent>(error.as_ref()).unwrap();
    assert_eq!(
        (spent.phase(), spent.after(), spent.limit()),
        (Phase::Waiting, secs(3), None)
    );
    assert!(spent.never_started());
    // All who wait hear of it when it is there.
    let waiting = [(); 5].map(|()| tokio::spawn(balanced.clone().oneshot(text("x"))));
    settle().await;
    town.house(1)
        .is_down
        .store(false, Relaxed);
    for call in waiting {
        assert_eq!(call.await.unwrap().unwrap(), "1");
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_it_leaves_no_client_behind() {
    let before = Handle::current()
        .metrics()
        .num_alive_tasks();
    let town = Town::default();
    town.house(2)
        .is_down
        .store(true, Relaxed);
    let balanced = town.balanced(&[1, 2]);
    balanced
        .clone()
        .oneshot(text("x"))
        .await
        .unwrap();

    drop(balanced);
    settle().await;

    assert_eq!(
        Handle::current()
            .metrics()
            .num_alive_tasks(),
        before
    );
}

// === Where peers come from

#[tokio::test]
async fn endpoints_are_made_once_each() {
    let mut made = Vec::new();
    let endpoints = Endpoints::new([1, 2, 1], |number| {
        made.push(*number);
        Ok::<_, Infallible>(())
    });

    let changes: Vec<_> = endpoints.unwrap().collect().await;

    let inserted = |change: Result<Change<i32, ()>, Infallible>| match change {
        Ok(Change::Insert(key, ())) => key,
        other => panic!("not inserted: {other:?}"),
    };
    assert_eq!(Vec::from_iter(changes.into_iter().map(inserted)), [1, 2]);
    assert_eq!(made, [1, 2]);
    let failed = Endpoints::new([1], |_| Err::<(), _>("no"));
    assert_eq!(failed.unwrap_err(), "no");
}

/// What a lookup of a name comes to.
#[derive(Clone, Default)]
struct Names {
    answer: Arc<Mutex<Option<Vec<u32>>>>,
    asked: Arc<AtomicUsize>,
    hangs: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
    /// How long each of the two halves of a lookup takes.
    half: Arc<Mutex<Duration>>,
    deadlines: Arc<Mutex<Vec<Deadline>>>,
}

impl Names {
    fn say(&self, numbers: &[u32]) {
        *self.answer.lock().unwrap() = Some(numbers.to_vec());
    }

    fn fail(&self) {
        *self.answer.lock().unwrap() = None;
    }

    fn resolver(
        &self,
    ) -> impl Service<&'static str, Response = Vec<u32>, Error = io::Error, Future: Send> + use<>
    {
        let names = self.clone();
        service_fn(move |name| {
            assert_eq!(name, "peers.example");
            names.asked.fetch_add(1, Relaxed);
            names
                .deadlines
                .lock()
                .unwrap()
                .push(Deadline::current());
            let names = names.clone();
            async move {
                if names.hangs.load(Relaxed) {
                    pending::<()>().await;
                }
                assert!(!names.panics.load(Relaxed), "told to panic");
                let half = *names.half.lock().unwrap();
                if !half.is_zero() {
                    sleep(half).await;
                    sleep(half).await;
                }
                let answer = names.answer.lock().unwrap().clone();
                answer.ok_or_else(|| io::Error::other("no such name"))
            }
        })
    }
}

/// The changes that are there now, in few words.
async fn changes<S>(stream: &mut task::Spawn<S>) -> Vec<String>
where
    S: futures_util::Stream<Item = Result<Change<u32, ()>, Infallible>>,
{
    let mut words = Vec::new();
    // A lookup that is begun is a task of its own.
    for _ in 0..2 {
        while let Poll::Ready(Some(Ok(change))) = stream.poll_next() {
            words.push(match change {
                Change::Insert(key, ()) => format!("+{key}"),
                Change::Remove(key) => format!("-{key}"),
            });
        }
        settle().await;
    }
    words
}

fn made(_: &u32) -> Result<(), Infallible> {
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_a_name_stands_for_is_looked_up_again_and_only_changes_are_told() {
    let names = Names::default();
    names.say(&[3, 1, 2]);
    let mut peers = task::spawn(Refreshing::new(names.resolver(), "peers.example", made));

    assert_eq!(changes(&mut peers).await, ["+1", "+2", "+3"]);
    sleep(secs(29)).await;
    assert!(!peers.is_woken());
    names.say(&[2, 3, 4]);
    sleep(secs(1)).await;
    assert!(peers.is_woken());
    assert_eq!(changes(&mut peers).await, ["-1", "+4"]);
    sleep(secs(30)).await;
    assert!(changes(&mut peers).await.is_empty());
    assert_eq!(names.asked.load(Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_fails_hangs_or_finds_nothing_changes_nothing() {
    let ((names, mut peers), readings) = recorded(|| {
        let names = Names::default();
        let peers = Refreshing::new(names.resolver(), "peers.example", made).service("x");
        (names, task::spawn(peers))
    });
    let service = [("service", "x")];
    names.say(&[1, 2]);
    assert_eq!(changes(&mut peers).await, ["+1", "+2"]);
    assert_eq!(readings.of("tower_net_balance_endpoints", &service), 2.0);

    // Sooner than usual: after 1 s, 2 s, 4 s and so on.
    let mut asked = names.asked.load(Relaxed);
    sleep(secs(30)).await;
    for (failure, pause) in ["fails", "finds nothing", "hangs"]
        .into_iter()
        .zip([1, 2, 4])
    {
        match failure {
            "fails" => names.fail(),
            "finds nothing" => names.say(&[]),
            _ => names.hangs.store(true, Relaxed),
        }
        assert!(changes(&mut peers).await.is_empty(), "{failure}");
        if failure == "hangs" {
            sleep(secs(5)).await;
            assert!(changes(&mut peers).await.is_empty(), "{failure}");
        }
        asked += 1;
        assert_eq!(names.asked.load(Relaxed), asked, "{failure}");
        sleep(secs(pause)).await;
        assert!(peers.is_woken(), "{failure}");
    }
    names.hangs.store(false, Relaxed);
    names.say(&[1]);
    assert_eq!(changes(&mut peers).await, ["-2"]);

    let lookups = |outcome| {
        readings.of(
            "tower_net_balance_lookups_total",
            &[("service", "x"), ("outcome", outcome)],
        )
    };
    assert_eq!((lookups("ok"), lookups("failed")), (2.0, 3.0));
    assert_eq!(readings.of("tower_net_balance_endpoints", &service), 1.0);
    drop(peers);
    assert_eq!(readings.of("tower_net_balance_endpoints", &service), 0.0);
}

#[tokio::test(start_paused = true)]
async fn of_a_long_answer_only_so_many_are_taken() {
    let names = Names::default();
    names.say(&Vec::from_iter(0..1000));
    let peers = Refreshing::new(names.resolver(), "peers.example", made);
    let mut peers = task::spawn(peers.most(2).unwrap());

    assert_eq!(changes(&mut peers).await, ["+0", "+1"]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_cannot_be_made_is_tried_again_with_the_next_answer() {
    let names = Names::default();
    names.say(&[1, 2]);
    let mut fails = true;
    let make = move |number: &u32| {
        if *number == 1 && std::mem::take(&mut fails) {
            return Err("not now");
        }
        Ok(())
    };
    let peers = Refreshing::new(names.resolver(), "peers.example", make);
    let mut peers = task::spawn(peers.every(secs(1)).unwrap());

    assert_eq!(changes(&mut peers).await, ["+2"]);
    sleep(secs(1)).await;
    assert_eq!(changes(&mut peers).await, ["+1"]);
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let peers = || {
        let names = Names::default();
        Refreshing::<_, _, u32, _>::new(names.resolver(), "peers.example", made)
    };

    assert_eq!(peers().most(0).unwrap_err().setting(), "most");
    assert_eq!(
        peers()
            .every(Duration::ZERO)
            .unwrap_err()
            .setting(),
        "every"
    );
    let error = peers()
        .lookup_deadline(Duration::ZERO)
        .unwrap_err();
    assert_eq!(error.setting(), "lookup_deadline");
}

#[tokio::test(start_paused = true)]
async fn balanced_over_a_name_peers_come_and_go() {
    let (town, names) = (Town::default(), Names::default());
    names.say(&[1]);
    let make = MakeClient::new(town.connector());
    let peers = Refreshing::new(names.resolver(), "peers.example", move |number: &u32| {
        make.make(*number)
    });
    let balanced = Balanced::over(peers.every(secs(1)).unwrap());
    let call = async || {
        balanced
            .clone()
            .oneshot(text("x"))
            .await
            .unwrap()
    };

    assert_eq!(call().await, "1");
    names.say(&[2]);
    sleep(secs(2)).await;
    // The lookup is due, and this call does not wait for it.
    assert_eq!(call().await, "1");
    settle().await;
    // Whoever is gone gets no more, even while nobody else is there yet.
    assert_eq!(call().await, "2");
    assert_eq!(call().await, "2");
    names.fail();
    sleep(secs(100)).await;
    assert_eq!(call().await, "2");
}

#[tokio::test(start_paused = true)]
async fn a_lookup_has_its_own_deadline_and_not_that_of_whoever_begins_it() {
    let (town, names) = (Town::default(), Names::default());
    names.say(&[1]);
    let make = MakeClient::new(town.connector());
    let peers = Refreshing::new(names.resolver(), "peers.example", move |number: &u32| {
        make.make(*number)
    });
    let balanced = Balanced::over(peers);
    let own = Deadline::within(secs(5));

    Deadline::within(secs(1))
        .scope(balanced.oneshot(text("x")))
        .await
        .unwrap();

    assert_eq!(*names.deadlines.lock().unwrap(), [own]);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_goes_on_when_whoever_began_it_gives_up() {
    let (town, names) = (Town::default(), Names::default());
    names.say(&[1]);
    *names.half.lock().unwrap() = secs(2);
    let make = MakeClient::new(town.connector());
    let peers = Refreshing::new(names.resolver(), "peers.example", move |number: &u32| {
        make.make(*number)
    });
    let balanced = Balanced::over(peers);
    let gives_up = Deadline::within(secs(1)).scope(balanced.clone().oneshot(text("x")));
    assert!(gives_up.await.is_err());
    sleep(secs(10)).await;

    let begun = Instant::now();
    balanced
        .oneshot(text("y"))
        .await
        .unwrap();

    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(names.asked.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn lookups_without_a_deadline_are_not_late() {
    let names = Names::default();
    names.say(&[1]);
    *names.half.lock().unwrap() = secs(60);
    let peers = Refreshing::new(names.resolver(), "peers.example", made);
    let peers = peers
        .every(secs(1))
        .unwrap()
        .lookup_deadline(Duration::MAX)
        .unwrap();
    let mut peers = task::spawn(peers);
    assert!(changes(&mut peers).await.is_empty());
    sleep(secs(120)).await;
    assert_eq!(changes(&mut peers).await, ["+1"]);

    names.say(&[2]);
    sleep(secs(1)).await;
    assert!(changes(&mut peers).await.is_empty());
    sleep(secs(120)).await;
    assert_eq!(changes(&mut peers).await, ["-1", "+2"]);

    assert_eq!(*names.deadlines.lock().unwrap(), [Deadline::NEVER; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_panics_has_failed() {
    let names = Names::default();
    names.panics.store(true, Relaxed);
    let mut peers = task::spawn(Refreshing::new(names.resolver(), "peers.example", made));
    assert!(changes(&mut peers).await.is_empty());

    names.panics.store(false, Relaxed);
    names.say(&[1]);
    sleep(secs(1)).await;

    assert_eq!(changes(&mut peers).await, ["+1"]);
}

// === The line

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_who_waits_and_goes_away_is_woken_for() {
    let town = Town::default();
    town.house(1)
        .is_down
        .store(true, Relaxed);
    let mut balanced = town.balanced(&[1]);
    let call = balanced
        .ready()
        .await
        .unwrap()
        .call(text("x"));
    let woken = Arc::new(Woken::default());
    {
        let mut call = std::pin::pin!(call);
        let waker = Waker::from(woken.clone());
        assert_pending!(
            call.as_mut()
                .poll(&mut Context::from_waker(&waker))
        );
    }

    town.house(1)
        .is_down
        .store(false, Relaxed);
    sleep(secs(6)).await;
    assert_eq!(
        balanced
            .oneshot(text("y"))
            .await
            .unwrap(),
        "1"
    );

    assert_eq!(woken.0.load(Relaxed), 0);
    // Nor is it remembered.
    assert_eq!(Arc::strong_count(&woken), 1);
}

/// A peer that is ready as often as it is told to be, and remembers who called.
#[derive(Clone, Default)]
struct Gate {
    inside: Arc<Mutex<Inside>>,
}

#[derive(Default)]
struct Inside {
    open: usize,
    waiting: Option<Waker>,
    called: Vec<u32>,
}

impl Gate {
    fn open(&self) {
        let waker = {
            let mut inside = self.inside.lock().unwrap();
            inside.open += 1;
            inside.waiting.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn called(&self) -> Vec<u32> {
        self.inside
            .lock()
            .unwrap()
            .called
            .clone()
    }
}

impl Service<u32> for Gate {
    type Response = u32;
    type Error = Infallible;
    type Future = std::future::Ready<Result<u32, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        let mut inside = self.inside.lock().unwrap();
        if inside.open == 0 {
            inside.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        inside.open -= 1;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, caller: u32) -> Self::Future {
        self.inside
            .lock()
            .unwrap()
            .called
            .push(caller);
        ready(Ok(caller))
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_peer_come_in_their_order() {
    let gate = Gate::default();
    let mut balanced = Balanced::new(gate.clone());
    let mut calls: Vec<_> = (0..4)
        .map(|caller| task::spawn(balanced.call(caller)))
        .collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }

    gate.open();
    // Only the first is woken, and nobody else gets in, whoever looks before he does.
    assert!(calls[0].is_woken());
    assert!(!calls[1].is_woken() && !calls[2].is_woken());
    let mut new = task::spawn(balanced.call(9));
    assert_pending!(new.poll());
    assert_pending!(calls[2].poll());
    assert_ready_ok!(calls[0].poll());
    assert!(calls[1].is_woken());
    assert_pending!(calls[1].poll());

    // Whoever gives up lets the next one look.
    let last = calls.pop().unwrap();
    drop(calls.remove(1));
    assert!(calls[1].is_woken());
    gate.open();
    assert_ready_ok!(calls[1].poll());
    let mut last = last;
    gate.open();
    gate.open();
    assert_pending!(new.poll());
    assert_ready_ok!(last.poll());
    assert!(new.is_woken());
    assert_ready_ok!(new.poll());

    assert_eq!(gate.called(), [0, 2, 3, 9]);
}

// === Whatever is inside

#[tokio::test(start_paused = true)]
async fn a_call_ends_on_time_whatever_it_is_that_is_called() {
    let inner = service_fn(|_: ()| async {
        let seen = Deadline::current();
        pending::<()>().await;
        Ok::<_, io::Error>(seen)
    });
    let balanced = Balanced::new(inner)
        .call_deadline(secs(3))
        .unwrap();

    for (budget, limit) in [(Duration::MAX, Some(secs(3))), (secs(1), None)] {
        let begun = Instant::now();
        let error = Deadline::within(budget)
            .scope(balanced.clone().oneshot(()))
            .await
            .unwrap_err();

        let took = limit.unwrap_or(secs(1));
        assert_eq!(begun.elapsed(), took);
        let spent = find::<Spent>(error.as_ref()).unwrap();
        assert_eq!(
            (spent.phase(), spent.spent_in(Phase::Calling), spent.limit()),
            (Phase::Calling, took, limit)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_called_finds_the_deadline_of_its_call_wherever_it_looks() {
    let inner = service_fn(|_: ()| {
        let called = Deadline::current();
        async move {
            sleep(millis(1)).await;
            Ok::<_, io::Error>([called, Deadline::current()])
        }
    });
    let budget = Deadline::within(secs(1));
    let (mut balanced, mut call) = (Balanced::new(inner), None);
    budget
        .scope(async { call = Some(balanced.call(())) })
        .await;

    // Outside of it.
    let call = call.unwrap();

    assert_eq!(call.await.unwrap(), [budget; 2]);
}

#[tokio::test(start_paused = true)]
async fn with_no_time_left_nobody_is_called() {
    let balanced = Balanced::new(service_fn(async |_: ()| -> io::Result<()> {
        panic!("nobody waits for it")
    }));

    let error = Deadline::within(Duration::ZERO)
        .scope(balanced.oneshot(()))
        .await
        .unwrap_err();

    let spent = find::<Spent>(error.as_ref()).unwrap();
    assert_eq!(
        (spent.phase(), spent.after()),
        (Phase::Waiting, Duration::ZERO)
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_counts_once_in_a_budget_that_is_shared_however_often_it_is_made() {
    let town = Town::default();
    for number in [1, 2] {
        town.house(number)
            .refuses
            .store(true, Relaxed);
    }
    // Each call pays for one attempt more.
    let budget = RetryBudget::new(100, 0).unwrap();
    let settings = Settings::default().retries(budget.clone());
    let make = MakeClient::with_settings(settings, town.connector()).unwrap();
    let endpoints = Endpoints::new([1, 2], |number| make.make(*number)).unwrap();
    let balanced = Balanced::over(endpoints)
        .retries(budget)
        .attempts(50)
        .unwrap();

    assert!(
        balanced
            .oneshot(text("x"))
            .await
            .is_err()
    );

    let refusals = |number| {
        town.house(number)
            .refusals
            .load(Relaxed)
    };
    assert_eq!(refusals(1) + refusals(2), 2);
}
