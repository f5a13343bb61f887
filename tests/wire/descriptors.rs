//! A process that runs out of descriptors, and one that is about to.

use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::time::{Instant, sleep};
use tower_net::Backoff;

use crate::{
    child::Child,
    peer::{Peer, alone},
    stack::Settings,
};

/// Of the servers that run out of descriptors.
pub(crate) fn settings() -> Settings {
    Settings {
        drain: DRAIN,
        // Once it has failed for four seconds, it waits for longer than it may take to recover.
        backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(60)),
        ..Settings::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_a_server_waits_serves_whom_it_has_and_recovers_at_once() {
    runs_out(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_a_current_thread_runtime_does_not_stand_still_either() {
    runs_out(0).await;
}

async fn runs_out(threads: usize) {
    let _machine = alone().await;
    let mut server = Child::on_threads("descriptors", threads);
    let mut established = Peer::connect(server.addr).await;
    established.call("hello").await.unwrap();
    leave_room(&mut server);
    let mut admitted = Vec::new();
    for _ in 0..ROOM {
        let mut peer = Peer::connect(server.addr).await;
        peer.call("hello").await.unwrap();
        admitted.push(peer);
    }
    // The last of them took the last descriptor, and with it the loop's next accept.
    server.number("accept errors");

    // All of these wait in the kernel's queue, with their requests.
    let begun = Instant::now();
    let mut queued = Vec::new();
    for _ in 0..ROOM {
        let mut peer = Peer::connect(server.addr).await;
        peer.send("at last").await;
        queued.push(peer);
    }
    while begun.elapsed() < Duration::from_secs(4) {
        established
            .call("served meanwhile")
            .await
            .unwrap();
    }
    let seconds = begun.elapsed().as_secs() + 1;
    let failures = server.number("accept errors");
    assert!(
        (1..20 * seconds).contains(&failures),
        "{failures} in {seconds} s"
    );
    assert_eq!(server.number("opened"), ROOM + 1);
    assert_eq!(server.number(FAILED), 1);

    let freed = Instant::now();
    drop(admitted.pop());
    let mut first = queued.remove(0);
    assert_eq!(first.receive().await.unwrap(), b"at last");
    let recovered = freed.elapsed();
    assert!(recovered < Duration::from_secs(2), "{recovered:?}");

    // At the limit with connections coming and going, it fails and succeeds in turn: that is no news.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        drop(admitted.pop());
        let mut served = queued.remove(0);
        assert_eq!(served.receive().await.unwrap(), b"at last");
        admitted.push(served);
        let mut next = Peer::connect(server.addr).await;
        next.send("at last").await;
        queued.push(next);
    }
    assert!(server.number("accept errors") > 1);
    assert_eq!(server.number(FAILED), 1);

    let started = server.number("started");
    established.send("after 500").await;
    while server.number("started") == started {}
    server.ask("shutdown");
    assert_eq!(established.receive().await.unwrap(), b"after 500");
    drop((established, admitted, queued, first));
    let report = server.report();
    assert_eq!(report["cut"], 0, "{report:?}");
    assert!(report["errors.descriptors"] > 0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_burst_of_failed_accepts_is_in_the_log_once() {
    let _machine = alone().await;
    let mut server = Child::serve("descriptors");
    leave_room(&mut server);

    for burst in 1..=2 {
        let mut peers = Vec::new();
        for _ in 0..=ROOM {
            peers.push(Peer::connect(server.addr).await);
        }
        while server.number("accept errors") == 0 {}
        assert_eq!(server.number(FAILED), burst);

        drop(peers);
        while server.number("active") > 0 {}
        // For so long a failure still belongs to those before it; then an accept shows that it is over.
        sleep(Duration::from_millis(1100)).await;
        let mut next = Peer::connect(server.addr).await;
        next.call("hello").await.unwrap();
    }
    server.drained();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_descriptors_that_nobody_of_its_own_has() {
    let _machine = alone().await;
    let mut server = Child::serve("descriptors");
    let mut peer = Peer::connect(server.addr).await;
    peer.call("hello").await.unwrap();

    // Takes every descriptor there is, now and whenever one is freed.
    leave_room(&mut server);
    server.ask("hog");
    let mut queued = Vec::new();
    while server.number("accept errors") == 0 {
        queued.push(Peer::connect(server.addr).await);
    }
    let report = server.drained();

    assert_eq!(report["cut"], 0, "{report:?}");
    assert!(
        report["millis"] < DRAIN.as_millis() as u64 / 2,
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_raises_the_limit_of_its_process_as_far_as_it_may() {
    let hard = getrlimit(Resource::Nofile)
        .maximum
        .unwrap();
    let mut server = Child::serve("drain");
    let mut peer = Peer::connect(server.addr).await;

    peer.call("hello").await.unwrap();

    // The child began with 256.
    assert_eq!(server.number("descriptor limit"), hard);
    drop(peer);
    server.drained();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_descriptors_are_counted_and_the_log_warns_before_there_are_none_left() {
    let mut server = Child::serve("nearly");

    while server.number("warnings: nearly out of descriptors") == 0 {}
    let counted = server.ask("descriptor gauges");

    let limit = server.number("descriptor limit");
    let before = server.number("descriptors");
    assert_eq!(counted, format!("{before} of {limit}"));
    let mut peers = Vec::new();
    for number in 1..=4 {
        let mut peer = Peer::connect(server.addr).await;
        peer.call("hello").await.unwrap();
        peers.push(peer);
        assert_eq!(server.number("descriptors"), before + number);
    }
    drop(peers);
    server.drained();
}

/// Leaves the server so many descriptors more than it has now.
fn leave_room(server: &mut Child) {
    // It counts them once it has begun, which takes one itself, and then not for a long time.
    while server.ask("descriptor gauges") == "0 of 0" {}
    server.ask(&format!("room: {ROOM}"));
}

const DRAIN: Duration = Duration::from_secs(20);
const ROOM: u64 = 8;
const FAILED: &str = "warnings: accept failed";
