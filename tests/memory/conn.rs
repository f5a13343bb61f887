use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{net::UnixStream, time::Instant};
use tokio_test::{assert_pending, assert_ready_eq, task};
use tower_net::{Addr, CloseReason, Conn, ConnInfo, Deadline, io::Io};

use crate::support::{
    io::{Script, Witness},
    service::secs,
};

fn info() -> Arc<ConnInfo> {
    Arc::new(ConnInfo::new(Addr::Unnamed, Addr::Unnamed))
}

// === The one reason

#[test]
fn the_first_reason_given_wins() {
    let info = info();

    let first = info.end_with(CloseReason::Idle);
    let second = info.end_with(CloseReason::Reset);
    info.cut(CloseReason::Cut);

    assert_eq!((first, second), (CloseReason::Idle, CloseReason::Idle));
    assert_eq!(info.close_reason(), Some(CloseReason::Idle));
}

#[test]
fn a_connection_that_is_open_has_no_reason() {
    let conn = Conn::new(Script::new(), ());

    assert_eq!(conn.info().close_reason(), None);
    assert!(!conn.info().is_leaving());
}

#[test]
fn of_many_who_give_a_reason_at_once_one_is_right() {
    for _ in 0..50 {
        let info = info();
        let givers: Vec<_> = CloseReason::ALL
            .iter()
            .map(|reason| {
                let info = Arc::clone(&info);
                std::thread::spawn(move || info.end_with(*reason))
            })
            .collect();

        let held: Vec<_> = givers
            .into_iter()
            .map(|giver| giver.join().unwrap())
            .collect();

        let reason = info.close_reason().unwrap();
        assert!(held.iter().all(|one| *one == reason), "{held:?}");
    }
}

#[test]
fn every_reason_has_a_label_of_its_own() {
    let mut labels: Vec<_> = CloseReason::ALL
        .iter()
        .map(|reason| reason.label())
        .collect();
    let all = labels.len();

    labels.sort_unstable();
    labels.dedup();

    assert_eq!(labels.len(), all);
    assert!(labels.iter().all(|label| {
        label
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    }));
}

#[test]
fn a_refusal_gives_its_reason_and_resets() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let (near, _far) = UnixStream::pair().unwrap();
    let (io, closed) = Witness::pair(near);
    let conn = Conn::new(io, ());
    let info = Arc::clone(conn.info());

    conn.refuse(CloseReason::Limit);

    assert_eq!(info.close_reason(), Some(CloseReason::Limit));
    assert!(closed.is_closed() && closed.is_reset());
}

// === The notice to leave

#[test]
fn whoever_waits_for_the_notice_is_woken_by_it_and_told_why() {
    let info = info();
    let mut waits = task::spawn(info.told_to_leave());
    assert_pending!(waits.poll());

    info.close_after_reply();

    assert!(waits.is_woken() && info.is_leaving());
    assert_ready_eq!(waits.poll(), CloseReason::Served);
}

#[test]
fn a_notice_given_before_anybody_asked_is_still_heard() {
    let info = info();
    info.close_after_reply();

    let mut first = task::spawn(info.told_to_leave());
    let mut second = task::spawn(info.told_to_leave());

    assert_ready_eq!(first.poll(), CloseReason::Served);
    assert_ready_eq!(second.poll(), CloseReason::Served);
}

#[test]
fn a_notice_is_not_an_end() {
    let info = info();

    info.close_after_reply();

    assert_eq!(info.close_reason(), None);
}

#[test]
fn a_wait_for_the_notice_that_is_dropped_takes_nothing_along() {
    let info = info();
    let mut dropped = task::spawn(info.told_to_leave());
    assert_pending!(dropped.poll());
    drop(dropped);

    let mut waits = task::spawn(info.told_to_leave());
    assert_pending!(waits.poll());
    info.close_after_reply();

    assert!(waits.is_woken());
}

// === What is known

#[test]
fn connections_are_numbered_apart() {
    assert_ne!(info().id(), info().id());
}

#[test]
fn the_peer_is_the_wire_peer_until_it_is_announced_once() {
    let wire: SocketAddr = "10.0.0.1:1".parse().unwrap();
    let client: SocketAddr = "192.0.2.7:443".parse().unwrap();
    let info = ConnInfo::new(wire.into(), Addr::Unnamed);
    let before = info.peer().clone();

    info.announce_peer(client);
    info.announce_peer(Addr::Unnamed);

    assert_eq!(before, Addr::Tcp(wire));
    assert_eq!(info.peer(), &Addr::Tcp(client));
    assert_eq!(info.wire_peer(), &Addr::Tcp(wire));
}

#[test]
fn facts_of_any_type_are_kept_one_of_each() {
    #[derive(Clone, Debug, PartialEq)]
    struct User(&'static str);
    let info = info();

    let none = info.get::<User>();
    info.insert(User("ann"));
    info.insert(User("bob"));
    info.insert(7_u32);

    assert_eq!(none, None);
    assert_eq!(info.get::<User>(), Some(User("bob")));
    assert_eq!((info.get::<u32>(), info.get::<u64>()), (Some(7), None));
}

#[test]
fn a_connection_keeps_its_facts_through_another_stream() {
    let conn = Conn::new(Script::new(), ());
    conn.info().insert("fact");
    let id = conn.info().id();

    let conn = conn
        .map_io(Witness::pair)
        .map_io(|(io, _)| io);
    let (io, info) = conn.into_parts();
    let conn = Conn::from_parts(io, info);

    assert_eq!(conn.info().id(), id);
    assert_eq!(conn.info().get::<&str>(), Some("fact"));
    assert!(conn.socket().is_none());
}

#[test]
fn one_host_has_one_address_in_both_spellings() {
    let v4 = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 1));
    let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped();
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, 1));

    let [v4, mapped, v6] = [v4, SocketAddr::from((mapped, 1)), v6].map(Addr::from);

    assert_eq!(mapped.ip(), v4.ip());
    assert_ne!(mapped.tcp(), v4.tcp());
    assert_eq!(v6.ip(), Some(Ipv6Addr::LOCALHOST.into()));
    assert_eq!((Addr::Unnamed.ip(), Addr::Unix(None).ip()), (None, None));
}

#[test]
fn an_address_is_printed_as_it_is_given_to_a_listener() {
    let tcp = Addr::from(SocketAddr::from((Ipv6Addr::LOCALHOST, 80)));
    let unix = Addr::Unix(Some(std::path::Path::new("/run/a.sock").into()));

    assert_eq!(tcp.to_string(), "[::1]:80");
    assert_eq!(unix.to_string(), "unix:/run/a.sock");
    assert_eq!(Addr::Unix(None).to_string(), "unix:");
    assert_eq!(Addr::from(()).to_string(), "unnamed");
}

// === Deadlines as points in time

#[tokio::test(start_paused = true)]
async fn a_deadline_is_absolute() {
    let deadline = Deadline::within(secs(5));

    tokio::time::advance(secs(3)).await;
    let (left, early) = (deadline.remaining(), deadline.has_passed());
    tokio::time::advance(secs(3)).await;

    assert_eq!((left, early), (secs(2), false));
    assert_eq!(
        (deadline.remaining(), deadline.has_passed()),
        (secs(0), true)
    );
}

#[tokio::test(start_paused = true)]
async fn the_earlier_of_two_deadlines_holds_in_either_order() {
    let deadlines = [0, 1, 60].map(|time| Deadline::within(secs(time)));
    for [one, other] in [[0, 1], [1, 2], [0, 2]] {
        let (early, late) = (deadlines[one], deadlines[other]);

        assert_eq!((early.min(late), late.min(early)), (early, early));
        assert_eq!(early.min(Deadline::NEVER), early);
        assert_eq!(Deadline::NEVER.min(early), early);
        assert!(early < late && late < Deadline::NEVER);
    }
}

#[tokio::test(start_paused = true)]
async fn zero_has_passed_and_the_longest_is_never() {
    assert!(Deadline::within(Duration::ZERO).has_passed());
    for forever in [Duration::MAX, Duration::from_secs(u64::MAX), secs(1 << 40)] {
        let deadline = Deadline::within(forever);

        assert_eq!(deadline, Deadline::NEVER);
        assert_eq!(deadline.remaining(), Duration::MAX);
        assert!(!deadline.has_passed() && deadline.instant().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_in_the_past_saturates() {
    let past = Deadline::at(Instant::now());
    tokio::time::advance(secs(1)).await;

    assert_eq!(past.remaining(), Duration::ZERO);
    assert!(past.has_passed());
}

#[tokio::test]
async fn there_is_no_deadline_outside_a_handler() {
    assert_eq!(Deadline::current(), Deadline::NEVER);
}
