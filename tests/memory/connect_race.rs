//! Happy Eyeballs, second by second, over dialers that do what a test says.

use std::{
    collections::HashMap,
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::time::{Instant, sleep};
use tokio_test::{assert_pending, task};
use tower_net::{
    Deadline,
    connect::{FailedAttempts, HappyEyeballs},
};

use crate::support::service::{millis, secs};

/// What becomes of an attempt, and after how many milliseconds.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Connects(u64),
    Refuses(u64),
    Silent,
}
use Fate::{Connects, Refuses, Silent};

/// A network of few addresses, and what was asked of it.
#[derive(Debug)]
struct Net {
    fates: HashMap<SocketAddr, Fate>,
    order: Vec<SocketAddr>,
    start: Instant,
    log: Arc<Mutex<Vec<(u64, String)>>>,
}

impl Net {
    fn new(hosts: &[(&str, Fate)]) -> Self {
        let hosts = hosts
            .iter()
            .map(|(addr, fate)| (addr_of(addr), *fate));
        Self {
            order: hosts
                .clone()
                .map(|(addr, _)| addr)
                .collect(),
            fates: hosts.collect(),
            start: Instant::now(),
            log: Arc::default(),
        }
    }

    async fn race(&self, settings: &HappyEyeballs, by: Deadline) -> Result<IpAddr, FailedAttempts> {
        let dial = |addr| self.dial(addr);
        settings
            .connect(self.order.iter().copied(), by, dial)
            .await
    }

    async fn race_for_ever(&self) -> Result<IpAddr, FailedAttempts> {
        self.race(&HappyEyeballs::default(), Deadline::NEVER)
            .await
    }

    fn dial(&self, addr: SocketAddr) -> impl Future<Output = io::Result<IpAddr>> + use<> {
        let ip = addr.ip();
        self.note("dial", ip);
        let closes = Closes(Arc::clone(&self.log), self.start, ip);
        let fate = self.fates[&addr];
        async move {
            let _closes = closes;
            match fate {
                Connects(after) => {
                    sleep(millis(after)).await;
                    Ok(ip)
                }
                Refuses(after) => {
                    sleep(millis(after)).await;
                    Err(io::ErrorKind::ConnectionRefused.into())
                }
                Silent => pending().await,
            }
        }
    }

    fn note(&self, what: &str, ip: IpAddr) {
        let at = self.start.elapsed().as_millis() as u64;
        self.log
            .lock()
            .unwrap()
            .push((at, format!("{what} {ip}")));
    }

    /// When each was dialled.
    fn dialled(&self) -> Vec<(u64, String)> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter_map(|(at, what)| Some((*at, what.strip_prefix("dial ")?.to_owned())))
            .collect()
    }

    /// How many attempts have come and not gone.
    fn open(&self) -> usize {
        let log = self.log.lock().unwrap();
        let count = |what| {
            log.iter()
                .filter(|(_, line)| line.starts_with(what))
                .count()
        };
        count("dial") - count("close")
    }
}

struct Closes(Arc<Mutex<Vec<(u64, String)>>>, Instant, IpAddr);

impl Drop for Closes {
    fn drop(&mut self) {
        let at = self.1.elapsed().as_millis() as u64;
        let line = format!("close {}", self.2);
        self.0.lock().unwrap().push((at, line));
    }
}

fn addr_of(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), 80)
}

fn times(dialled: &[(u64, String)]) -> Vec<u64> {
    dialled
        .iter()
        .map(|(at, _)| *at)
        .collect()
}

fn names(dialled: &[(u64, String)]) -> Vec<&str> {
    dialled
        .iter()
        .map(|(_, ip)| &**ip)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn the_first_address_is_the_only_one_if_it_answers_within_the_delay() {
    let net = Net::new(&[("::1", Connects(249)), ("10.0.0.1", Connects(0))]);

    let won = net.race_for_ever().await.unwrap();

    assert_eq!(won, IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]));
    assert_eq!(net.dialled(), [(0, "::1".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_does_not_answer_costs_the_delay_and_the_loser_is_closed() {
    let net = Net::new(&[("::1", Silent), ("10.0.0.1", Connects(7))]);

    let won = net.race_for_ever().await.unwrap();

    assert_eq!(won.to_string(), "10.0.0.1");
    assert_eq!(net.start.elapsed(), millis(257));
    assert_eq!(times(&net.dialled()), [0, 250]);
    assert_eq!(net.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_slow_may_still_win() {
    let net = Net::new(&[("::1", Connects(300)), ("10.0.0.1", Connects(100))]);

    let won = net.race_for_ever().await.unwrap();

    assert_eq!((won.to_string(), net.open()), ("::1".to_owned(), 0));
    assert_eq!(net.start.elapsed(), millis(300));
}

#[tokio::test(start_paused = true)]
async fn families_take_turns_from_the_one_that_the_resolver_put_first() {
    for (hosts, expected) in [
        (
            ["10.0.0.1", "10.0.0.2", "10.0.0.3", "::1", "::2"],
            ["10.0.0.1", "::1", "10.0.0.2", "::2", "10.0.0.3"],
        ),
        (
            ["::1", "10.0.0.1", "::2", "::3", "10.0.0.2"],
            ["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"],
        ),
        (
            ["::1", "::2", "::3", "::4", "10.0.0.1"],
            ["::1", "10.0.0.1", "::2", "::3", "::4"],
        ),
    ] {
        let net = Net::new(&hosts.map(|host| (host, Silent)));
        let by = Deadline::within(secs(2));

        net.race(&HappyEyeballs::default(), by)
            .await
            .unwrap_err();

        assert_eq!(names(&net.dialled()), expected);
        assert_eq!(times(&net.dialled()), [0, 250, 500, 750, 1000]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_begins_the_next_attempt_at_once_and_the_delay_anew() {
    let net = Net::new(&[
        ("10.0.0.1", Refuses(10)),
        ("10.0.0.2", Silent),
        ("10.0.0.3", Connects(0)),
    ]);

    net.race_for_ever().await.unwrap();

    assert_eq!(times(&net.dialled()), [0, 10, 260]);
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_each_is_listed_with_its_error_in_the_order_in_which_they_failed() {
    let net = Net::new(&[("10.0.0.1", Refuses(400)), ("::1", Refuses(10))]);

    let failed = net.race_for_ever().await.unwrap_err();

    let attempts: Vec<_> = failed
        .attempts()
        .iter()
        .map(|attempt| (attempt.addr().to_string(), attempt.error().kind()))
        .collect();
    let refused = io::ErrorKind::ConnectionRefused;
    let expected = [("[::1]:80", refused), ("10.0.0.1:80", refused)];
    assert_eq!(
        attempts,
        expected.map(|(addr, kind)| (addr.to_owned(), kind))
    );
    assert!(!failed.is_late() && failed.untried() == 0);
    assert_eq!(
        failed.to_string(),
        "[::1]:80: connection refused; 10.0.0.1:80: connection refused"
    );
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_given_up_after_its_own_time() {
    let net = Net::new(&[("10.0.0.1", Silent), ("10.0.0.2", Silent)]);

    let failed = net.race_for_ever().await.unwrap_err();

    assert_eq!(net.start.elapsed(), millis(10_250));
    assert_eq!(
        failed.to_string(),
        "10.0.0.1:80: no answer within 10s; 10.0.0.2:80: no answer within 10s"
    );
    assert!(!failed.is_late());
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_what_is_under_way_is_closed_and_listed() {
    let net = Net::new(&[
        ("10.0.0.1", Silent),
        ("10.0.0.2", Refuses(0)),
        ("10.0.0.3", Silent),
        ("10.0.0.4", Silent),
        ("10.0.0.5", Silent),
    ]);

    let failed = net
        .race(&HappyEyeballs::default(), Deadline::within(millis(510)))
        .await
        .unwrap_err();

    assert_eq!(net.start.elapsed(), millis(510));
    assert!(failed.is_late());
    assert_eq!((failed.attempts().len(), failed.untried()), (4, 1));
    let kinds: Vec<_> = failed
        .attempts()
        .iter()
        .map(|attempt| attempt.error().kind())
        .collect();
    let late = io::ErrorKind::TimedOut;
    assert_eq!(kinds, [io::ErrorKind::ConnectionRefused, late, late, late]);
    assert!(
        failed
            .to_string()
            .ends_with("; 1 more not tried")
    );
    assert_eq!(net.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_dialled_once_the_deadline_has_passed() {
    let net = Net::new(&[("10.0.0.1", Connects(0))]);

    let failed = net
        .race(&HappyEyeballs::default(), Deadline::within(secs(0)))
        .await
        .unwrap_err();

    assert!(failed.is_late() && net.dialled().is_empty());
    assert_eq!(failed.to_string(), "none of 1 addresses was tried");
}

#[tokio::test(start_paused = true)]
async fn no_more_addresses_are_tried_than_the_bound_and_none_twice() {
    let hosts: Vec<_> = (0..40)
        .map(|host| format!("10.0.0.{}", host / 2))
        .collect();
    let hosts: Vec<_> = hosts
        .iter()
        .map(|host| (&**host, Refuses(0)))
        .collect();
    let net = Net::new(&hosts);

    let default = net.race_for_ever().await.unwrap_err();
    let fewer = HappyEyeballs::default()
        .max_addresses(3)
        .unwrap();
    let fewer = net
        .race(&fewer, Deadline::NEVER)
        .await
        .unwrap_err();

    assert_eq!((default.attempts().len(), default.untried()), (16, 4));
    assert_eq!(fewer.attempts().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn without_a_delay_to_end_one_address_is_tried_after_the_other() {
    let net = Net::new(&[("10.0.0.1", Silent), ("10.0.0.2", Connects(1))]);
    let settings = HappyEyeballs::default()
        .attempt_delay(std::time::Duration::MAX)
        .unwrap()
        .attempt_timeout(secs(1))
        .unwrap();

    net.race(&settings, Deadline::NEVER)
        .await
        .unwrap();

    assert_eq!(times(&net.dialled()), [0, 1000]);
}

#[tokio::test(start_paused = true)]
async fn attempts_without_a_time_of_their_own_wait_as_long_as_it_takes() {
    let net = Net::new(&[("10.0.0.1", Connects(3_600_000))]);
    let settings = HappyEyeballs::default()
        .attempt_timeout(std::time::Duration::MAX)
        .unwrap();

    let won = net
        .race(&settings, Deadline::NEVER)
        .await;

    assert!(won.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_race_that_is_dropped_closes_all_its_attempts() {
    let net = Net::new(&[("10.0.0.1", Silent), ("10.0.0.2", Silent)]);
    let mut race = task::spawn(net.race_for_ever());
    assert_pending!(race.poll());
    sleep(millis(300)).await;
    assert!(race.is_woken());
    assert_pending!(race.poll());
    assert_eq!(net.open(), 2);

    drop(race);

    assert_eq!(net.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_to_connect_to_is_an_error() {
    let net = Net::new(&[]);

    let failed = net.race_for_ever().await.unwrap_err();

    assert_eq!(failed.to_string(), "there was no address");
}

#[test]
fn a_setting_that_cannot_work_is_refused() {
    let settings = HappyEyeballs::default;
    assert!(
        settings()
            .attempt_delay(millis(9))
            .is_err()
    );
    assert!(
        settings()
            .attempt_delay(millis(10))
            .is_ok()
    );
    assert!(
        settings()
            .attempt_timeout(secs(0))
            .is_err()
    );
    assert!(settings().max_addresses(0).is_err());
}
