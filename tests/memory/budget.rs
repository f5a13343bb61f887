use std::{
    cell::Cell,
    convert::Infallible,
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tower_net::{
    Deadline,
    budget::{self, BudgetError, FanOutCause, Phase, Spent},
    error::find,
};

use crate::support::service::{millis, secs};

fn spent(error: BudgetError) -> Spent {
    match error {
        BudgetError::Spent(spent) => spent,
        other => panic!("not spent: {other}"),
    }
}

// === The ambient deadline

#[tokio::test(start_paused = true)]
async fn a_scope_is_seen_wherever_it_is_polled_and_nowhere_else() {
    let budget = Deadline::within(secs(1));

    let task = tokio::spawn(budget.scope(async {
        let before = Deadline::current();
        sleep(millis(10)).await;
        (before, Deadline::current())
    }));

    assert_eq!(task.await.unwrap(), (budget, budget));
    assert_eq!(Deadline::current(), Deadline::NEVER);
}

#[tokio::test(start_paused = true)]
async fn of_scopes_one_in_another_the_earlier_holds() {
    let (sooner, later) = (Deadline::within(secs(1)), Deadline::within(secs(2)));

    let inner = |deadline: Deadline| async move {
        deadline
            .scope(async { Deadline::current() })
            .await
    };

    assert_eq!(sooner.scope(inner(later)).await, sooner);
    assert_eq!(later.scope(inner(sooner)).await, sooner);
    assert_eq!(
        later
            .scope(inner(Deadline::NEVER))
            .await,
        later
    );
}

#[tokio::test(start_paused = true)]
async fn two_scopes_on_one_task_do_not_see_each_other() {
    let scopes = [1, 2].map(|at| {
        let deadline = Deadline::within(secs(at));
        deadline.scope(async move {
            for _ in 0..3 {
                assert_eq!(Deadline::current(), deadline);
                tokio::task::yield_now().await;
            }
        })
    });

    let [one, two] = scopes;
    tokio::join!(one, two);
}

// === One piece of work

#[tokio::test(start_paused = true)]
async fn work_within_its_budget_comes_through_and_knows_the_budget() {
    let limit = secs(1);
    let due = Deadline::within(limit);

    let seen = budget::within(limit, async {
        sleep(millis(999)).await;
        Deadline::current()
    });

    assert_eq!(seen.await, Ok(due));
}

#[tokio::test(start_paused = true)]
async fn work_beyond_its_limit_is_dropped_and_the_error_says_whose_limit_it_was() {
    let begun = Instant::now();
    let held = Arc::new(());
    let work = Arc::clone(&held);

    let result = budget::within(secs(1), async move {
        let _work = work;
        pending::<Infallible>().await
    });
    let error = spent(result.await.unwrap_err());

    assert_eq!(begun.elapsed(), secs(1));
    assert_eq!(error.limit(), Some(secs(1)));
    assert_eq!(error.phase(), Phase::Calling);
    assert_eq!(error.after(), secs(1));
    assert!(!error.never_started());
    assert_eq!(Arc::strong_count(&held), 1);
    assert_eq!(
        error.to_string(),
        "limit of 1s reached calling (0ns waiting for a place, 0ns connecting, 1s calling)"
    );
}

#[tokio::test(start_paused = true)]
async fn a_budget_that_is_shorter_than_the_limit_holds_and_is_called_the_budget() {
    let inside = async { budget::within(secs(5), pending::<()>()).await };

    let error = Deadline::within(secs(1))
        .scope(inside)
        .await;

    let error = spent(error.unwrap_err());
    assert_eq!((error.limit(), error.after()), (None, secs(1)));
}

#[tokio::test(start_paused = true)]
async fn work_without_any_time_is_not_even_polled() {
    for limit in [Duration::ZERO, secs(1)] {
        let polled = Cell::new(false);
        let work = async { polled.set(true) };

        let outer = Deadline::within(if limit.is_zero() {
            secs(1)
        } else {
            Duration::ZERO
        });
        let error = outer
            .scope(async { budget::within(limit, work).await })
            .await;

        let error = spent(error.unwrap_err());
        assert_eq!(error.phase(), Phase::Waiting);
        assert!(error.never_started());
        assert!(!polled.get());
    }
}

#[tokio::test(start_paused = true)]
async fn without_end_there_is_no_limit() {
    let mut work = task::spawn(budget::within(Duration::MAX, pending::<()>()));

    assert_pending!(work.poll());
    sleep(secs(1_000_000)).await;

    assert!(!work.is_woken());
}

#[test]
fn a_budget_without_a_clock_is_an_error_and_not_a_panic() {
    let mut work = task::spawn(budget::within(secs(1), async {}));

    let error = assert_ready!(work.poll()).unwrap_err();

    assert!(matches!(error, BudgetError::NoTimer(_)), "{error}");
    assert_eq!(
        assert_ready!(task::spawn(budget::within(Duration::MAX, async { 1 })).poll()),
        Ok(1)
    );
}

// === Several at once

async fn after(wait: u64, value: u64) -> io::Result<u64> {
    sleep(millis(wait)).await;
    Ok(value)
}

#[tokio::test(start_paused = true)]
async fn all_run_at_once_and_come_in_their_order() {
    let begun = Instant::now();

    let calls = [30, 10, 20].map(|wait| after(wait, wait));
    let values = budget::fan_out(calls)
        .try_all()
        .await
        .unwrap();

    assert_eq!(values, [30, 10, 20]);
    assert_eq!(begun.elapsed(), millis(30));
}

#[tokio::test(start_paused = true)]
async fn no_more_run_than_the_width_lets_and_none_is_made_before_its_turn() {
    let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let begun = Instant::now();

    let calls = (0..10).map(|number| {
        // Made only when it may begin.
        most.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
        let now = &now;
        async move {
            sleep(millis(10)).await;
            now.fetch_sub(1, Relaxed);
            Ok::<_, Infallible>(number)
        }
    });
    let fan_out = budget::fan_out(calls).width(3).unwrap();
    let values = fan_out.try_all().await.unwrap();

    assert_eq!(values, Vec::from_iter(0..10));
    assert_eq!(most.load(Relaxed), 3);
    assert_eq!(begun.elapsed(), millis(40));
}

#[test]
fn a_width_of_zero_is_refused() {
    let none: [std::future::Ready<io::Result<()>>; 0] = [];

    let error = budget::fan_out(none)
        .width(0)
        .unwrap_err();

    assert_eq!(error.setting(), "width");
}

#[tokio::test(start_paused = true)]
async fn nothing_to_do_is_done_at_once() {
    let none: [std::future::Ready<io::Result<()>>; 0] = [];

    assert_eq!(
        budget::fan_out(none)
            .try_all()
            .await
            .unwrap(),
        []
    );
}

async fn hold(held: Arc<()>, end: io::Result<u64>) -> io::Result<u64> {
    let _held = held;
    match end {
        Ok(wait) => after(wait, wait).await,
        Err(error) => Err(error),
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_drops_the_others() {
    let held = Arc::new(());
    let ends = [Ok(5), Ok(1_000_000), Err(io::Error::other("no"))];
    let begun = Instant::now();

    let calls = ends.map(|end| hold(Arc::clone(&held), end));
    let error = budget::fan_out(calls)
        .try_all()
        .await
        .unwrap_err();

    assert_eq!(error.index(), 2);
    assert_eq!(error.to_string(), "call 2 of those at once failed");
    assert!(find::<io::Error>(&error).is_some());
    assert_eq!(Arc::strong_count(&held), 1);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn collected_a_failure_is_nothing_to_the_others() {
    let held = Arc::new(());
    let ends = [Ok(5), Err(io::Error::other("no")), Ok(7)];

    let calls = ends.map(|end| hold(Arc::clone(&held), end));
    let results = budget::fan_out(calls).all().await;

    assert_eq!(*results[0].as_ref().unwrap(), 5);
    assert!(matches!(
        results[1].as_ref().unwrap_err().cause(),
        FanOutCause::Failed(_)
    ));
    assert_eq!(*results[2].as_ref().unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn one_deadline_ends_all_that_is_under_way_and_nothing_begins_after_it() {
    let made = AtomicUsize::new(0);
    let budget = Deadline::within(millis(500));
    let begun = Instant::now();

    let fan_out = async {
        let calls = [100, 1_000, 450, 1].map(|wait| wait);
        let calls = calls.into_iter().map(|wait| {
            made.fetch_add(1, Relaxed);
            async move {
                assert_eq!(Deadline::current(), budget);
                after(wait, wait).await
            }
        });
        budget::fan_out(calls)
            .width(2)
            .unwrap()
            .all()
            .await
    };
    let results = budget.scope(fan_out).await;

    // The first leaves room for the third, which is not done in time; the fourth never begins.
    assert_eq!(begun.elapsed(), millis(500));
    assert_eq!(*results[0].as_ref().unwrap(), 100);
    let phases = results[1..]
        .iter()
        .map(|result| match result.as_ref().unwrap_err().cause() {
            FanOutCause::Spent(spent) => (spent.phase(), spent.after(), spent.limit()),
            other => panic!("not spent: {other:?}"),
        });
    let late = |phase| (phase, millis(500), None);
    assert_eq!(
        Vec::from_iter(phases),
        [
            late(Phase::Calling),
            late(Phase::Calling),
            late(Phase::Waiting)
        ]
    );
    assert_eq!(made.load(Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_its_own_only_ever_shortens_the_budget() {
    let fan_out = |limit| async move {
        let calls = [pending::<io::Result<()>>()];
        let fan_out = budget::fan_out(calls).limit(limit);
        match fan_out
            .try_all()
            .await
            .unwrap_err()
            .into_cause()
        {
            FanOutCause::Spent(spent) => (spent.after(), spent.limit()),
            other => panic!("not spent: {other:?}"),
        }
    };
    let budget = |limit| Deadline::within(secs(1)).scope(fan_out(limit));

    assert_eq!(budget(secs(5)).await, (secs(1), None));
    assert_eq!(budget(millis(5)).await, (millis(5), Some(millis(5))));
}

#[tokio::test(start_paused = true)]
async fn dropped_it_drops_every_call() {
    let held = Arc::new(());
    let calls = [1, 2, 3].map(|_| hold(Arc::clone(&held), Ok(1_000)));
    let mut fan_out = task::spawn(budget::fan_out(calls).all());

    assert_pending!(fan_out.poll());
    assert_eq!(Arc::strong_count(&held), 4);
    drop(fan_out);

    assert_eq!(Arc::strong_count(&held), 1);
}

#[test]
fn without_a_clock_nothing_begins() {
    let budget = Deadline::within(secs(1));
    let calls = [async { Ok::<_, Infallible>(()) }];

    let mut fan_out = task::spawn(budget.scope(async { budget::fan_out(calls).try_all().await }));

    let error = assert_ready!(fan_out.poll()).unwrap_err();
    assert!(matches!(error.cause(), FanOutCause::NoTimer(_)), "{error}");
}
