use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::Instant,
};
use tower::ServiceBuilder;
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, Safeguard,
    deadline::Deadlines,
    error::BoxError,
    filter::Rules,
    frame::{Delimited, FrameLayer},
    guard::{DryRun, Guard, Settings},
};
use tower_service::Service;

use crate::support::{
    readings::recorded,
    service::{obey, secs},
};

fn from(ip: &str) -> (Conn<DuplexStream>, DuplexStream) {
    let (near, far) = duplex(64);
    let addr = SocketAddr::new(ip.parse().unwrap(), 4000);
    (Conn::new(near, addr), far)
}

/// Sends a line from `ip` through the guard; what is heard, and why the connection ended.
async fn visit(guard: &Guard, ip: &str, line: &str) -> (String, Option<CloseReason>) {
    let mut service = ServiceBuilder::new()
        .layer(guard.clone())
        .layer(FrameLayer::new(Delimited::lines(64)))
        .service_fn(obey);
    let (conn, mut far) = from(ip);
    let info = conn.info().clone();
    std::future::poll_fn(|cx| Service::<Conn<DuplexStream>>::poll_ready(&mut service, cx))
        .await
        .unwrap();
    let served = tokio::spawn(service.call(conn));
    // One that was refused has nothing to be told.
    let _sent = far.write_all(line.as_bytes()).await;
    let _ended = far.shutdown().await;
    let mut heard = String::new();
    let _reset = far.read_to_string(&mut heard).await;
    let _error: Result<(), BoxError> = served.await.unwrap();
    (heard, info.close_reason())
}

fn guard(settings: Settings) -> Guard {
    Guard::new(settings).unwrap()
}

// === The stack

#[tokio::test]
async fn whoever_passes_has_passed_every_guard_of_a_connection() {
    let guard = guard(Settings::default());
    let mut service = ServiceBuilder::new()
        .layer(guard.clone())
        .layer(FrameLayer::new(Delimited::lines(64)))
        .service_fn(obey);
    let (conn, _far) = from("192.0.2.1");
    let info = conn.info().clone();

    let _served = service.call(conn);

    let by_the_server = [Safeguard::Descriptors, Safeguard::Drain];
    for safeguard in Safeguard::ALL
        .iter()
        .filter(|one| !by_the_server.contains(one))
    {
        assert!(info.has_passed(*safeguard), "{safeguard}");
    }
    assert_eq!(
        (
            guard.tally().snapshot().active(),
            guard.connections().in_use()
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn a_limit_that_is_turned_off_is_no_guard() {
    let off = Settings::default()
        .connections(None)
        .per_peer(None);
    let exempt = Settings::default().exempt(["192.0.2.1"]);
    for (settings, limited) in [(off, false), (exempt, true)] {
        let mut service = ServiceBuilder::new()
            .layer(guard(settings))
            .layer(FrameLayer::new(Delimited::lines(64)))
            .service_fn(obey);
        let (conn, _far) = from("192.0.2.1");
        let info = conn.info().clone();

        let _served = service.call(conn);

        for guard in [Safeguard::ConnectionLimit, Safeguard::PerPeerLimit] {
            assert_eq!(info.has_passed(guard), limited, "{guard}");
        }
    }
}

#[tokio::test]
async fn each_setting_reaches_its_layer() {
    let by_proxy = "PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\nhi\n";
    let settings = Settings::default;
    for (settings, ip, line, heard, reason) in [
        (settings(), "192.0.2.1", "hi\n", "hi\n", CloseReason::Peer),
        (
            settings().deny(["192.0.2.0/24"]),
            "192.0.2.1",
            "hi\n",
            "",
            CloseReason::Filter,
        ),
        (
            settings().allow(["10.0.0.0/8"]),
            "192.0.2.1",
            "hi\n",
            "",
            CloseReason::Filter,
        ),
        (
            settings().allow(["10.0.0.0/8"]),
            "10.0.0.1",
            "hi\n",
            "hi\n",
            CloseReason::Peer,
        ),
        (
            settings().proxy_protocol(["10.0.0.0/8"]),
            "10.0.0.1",
            by_proxy,
            "hi\n",
            CloseReason::Peer,
        ),
        (
            settings().proxy_protocol(["10.0.0.0/8"]),
            "192.0.2.1",
            by_proxy,
            "",
            CloseReason::ProxyHeader,
        ),
        // The filter goes by whom the proxy announced.
        (
            settings()
                .proxy_protocol(["10.0.0.0/8"])
                .deny(["203.0.113.7"]),
            "10.0.0.1",
            by_proxy,
            "",
            CloseReason::Filter,
        ),
    ] {
        let visited = visit(&guard(settings.clone()), ip, line).await;
        assert_eq!(visited, (heard.into(), Some(reason)), "{settings:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn limits_of_a_peer_hold_for_that_peer_and_exempt_is_who_is_exempt() {
    let guard = guard(
        Settings::default()
            .per_peer(1)
            .connect_rate(1.0, 2)
            .exempt(["198.51.100.0/24"]),
    );
    let mut service = guard.layer(tower::service_fn(async |conn: Conn<_>| {
        Ok::<_, BoxError>(conn)
    }));
    let (mut held, mut refused) = (Vec::new(), Vec::new());

    for ip in [
        "192.0.2.1",
        "192.0.2.1",
        "192.0.2.1",
        "192.0.2.2",
        "198.51.100.1",
        "198.51.100.1",
        "198.51.100.1",
    ] {
        let (conn, _far) = from(ip);
        let info = conn.info().clone();
        match service.call(conn).await {
            Ok(conn) => held.push(conn),
            Err(_) => refused.push(info.close_reason().unwrap()),
        }
    }

    assert_eq!(
        refused,
        [CloseReason::PerPeerLimit, CloseReason::ConnectRate]
    );
    assert_eq!((held.len(), guard.per_peer().peers()), (5, 2));
    assert_eq!(guard.per_peer().top(1)[0].used(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_of_a_guarded_service_is_closed_in_three_seconds() {
    let guard = guard(Settings::default());
    let start = Instant::now();
    let mut service = guard.layer(tower::service_fn(async |mut conn: Conn<_>| {
        conn.read_u8().await?;
        Ok::<_, BoxError>(())
    }));
    let (conn, _far) = from("192.0.2.1");

    assert!(service.call(conn).await.is_err());

    assert_eq!(start.elapsed(), secs(3));
    assert_eq!(
        guard
            .tally()
            .snapshot()
            .closed_for(CloseReason::FirstByte),
        1
    );
}

#[tokio::test]
async fn a_dry_run_of_everything_refuses_nobody_and_counts_whom_it_would_have() {
    let settings = Settings::default()
        .deny(["192.0.2.0/24"])
        .connections(1)
        .per_peer(1)
        .dry_run(DryRun::all());
    let (guard, metrics) = recorded(|| guard(settings));
    let mut service = guard.layer(tower::service_fn(async |conn: Conn<_>| {
        Ok::<_, BoxError>(conn)
    }));
    let mut held = Vec::new();

    for _ in 0..3 {
        held.push(
            service
                .call(from("192.0.2.1").0)
                .await
                .unwrap(),
        );
    }

    let spared = |reason| metrics.of("tower_net_dry_run_total", &[("reason", reason)]);
    assert_eq!(
        [spared("filter"), spared("limit"), spared("per_peer_limit")],
        [3.0, 2.0, 2.0]
    );
    assert_eq!(metrics.of("tower_net_refused_total", &[]), 0.0);
}

#[tokio::test]
async fn a_dry_run_of_everything_serves_whom_no_proxy_sent_and_believes_nobody_for_that() {
    let settings = Settings::default()
        .proxy_protocol(["10.0.0.0/8"])
        .dry_run(DryRun::all());
    let (guard, metrics) = recorded(|| guard(settings));

    let heard = visit(&guard, "192.0.2.1", "hi\n").await;

    assert_eq!(heard, ("hi\n".into(), Some(CloseReason::Peer)));
    let spared = [("reason", "proxy_header")];
    assert_eq!(metrics.of("tower_net_dry_run_total", &spared), 1.0);
    assert_eq!(metrics.of("tower_net_refused_total", &[]), 0.0);
}

#[tokio::test]
async fn what_can_change_while_it_runs_is_taken_over_by_every_clone() {
    let guard = guard(Settings::default());
    let clone = guard.clone();

    let new = Settings::default()
        .deny(["192.0.2.0/24"])
        .per_peer(7)
        .connect_rate(3.0, 4);
    guard.adopt(&new).unwrap();

    assert_eq!(
        visit(&clone, "192.0.2.1", "hi\n")
            .await
            .1,
        Some(CloseReason::Filter)
    );
    assert_eq!(
        (clone.per_peer().limit(), clone.connect_rate().burst()),
        (7, 4)
    );
}

#[test]
fn nothing_is_measured_to_keep_somebody_out() {
    let guard = guard(Settings::default());
    let no_such_points = Settings::default().short_of_descriptors(0.9, 0.1);

    guard
        .adopt(&no_such_points.deny(["192.0.2.0/24"]))
        .unwrap();

    assert_ne!(guard.filter().rules(), Rules::allow_all());
}

#[test]
fn what_cannot_be_taken_over_changes_nothing() {
    let guard = guard(Settings::default());
    for (new, setting) in [
        (Settings::default().per_peer(None), "per_peer"),
        (Settings::default().no_connect_rate(), "connect_rate"),
        (Settings::default().deny(["nowhere"]), "deny"),
        (
            Settings::default()
                .per_peer(7)
                .connect_rate(0.0, 1),
            "per_second",
        ),
    ] {
        let error = guard
            .adopt(&new.deny(["192.0.2.0/24"]))
            .unwrap_err();

        assert_eq!(error.setting(), setting, "{error}");
        assert_eq!(guard.filter().rules(), Rules::allow_all());
        assert_eq!(guard.per_peer().limit(), 256);
    }
}

// === Settings

#[test]
fn every_limit_of_zero_is_refused_when_built() {
    let settings = Settings::default;
    for (settings, setting) in [
        (settings().connections(0), "connections"),
        (settings().per_peer(0), "per_peer"),
        (settings().connect_rate(0.0, 1), "per_second"),
        (settings().connect_rate(1.0, 0), "burst"),
        (settings().handshakes(0, secs(1)), "handshakes"),
        (
            settings().handshakes(1, Duration::ZERO),
            "handshake_deadline",
        ),
        (
            settings().handshakes(1, Duration::MAX),
            "handshake_deadline",
        ),
        (settings().first_byte(Duration::ZERO), "first_byte"),
        (settings().idle(Duration::ZERO), "idle"),
        (settings().write_stall(Duration::ZERO), "write_stall"),
        (settings().max_age(Duration::ZERO), "max_age"),
        (settings().ipv6_prefix(0), "ipv6_prefix"),
        (settings().short_of_descriptors(0.9, 0.8), "descriptors"),
        (settings().allow(["10.0.0.0/33"]), "allow"),
        (settings().deny(["10.0.0.0/33"]), "deny"),
        (settings().proxy_protocol(["proxy"]), "proxy_protocol"),
        (settings().exempt([""]), "exempt"),
    ] {
        let error = Guard::new(settings.clone()).unwrap_err();
        assert_eq!(error.setting(), setting, "{settings:?}: {error}");
    }
}

#[test]
fn settings_survive_a_file_and_say_only_what_is_known() {
    let all = Settings::default()
        .service("rpc")
        .connections(None)
        .wait_over_limit(true)
        .short_of_descriptors(0.8, 0.95)
        .short_of_time(Duration::from_millis(50), secs(1))
        .allow(["10.0.0.0/8"])
        .deny(["10.6.6.6"])
        .proxy_protocol(["10.0.0.0/24"])
        .per_peer(5)
        .no_connect_rate()
        .exempt(["::1"])
        .ipv6_prefix(48)
        .handshakes(9, Duration::from_millis(2500))
        .first_byte(secs(9))
        .idle(None)
        .write_stall(secs(60))
        .max_age(secs(3600))
        .min_rate(100)
        .dry_run(DryRun::default().filter(true));
    for settings in [Settings::default(), all] {
        let file = serde_json::to_string(&settings).unwrap();
        assert_eq!(
            serde_json::from_str::<Settings>(&file).unwrap(),
            settings,
            "{file}"
        );
    }
    assert_eq!(
        serde_json::from_str::<Settings>("{}").unwrap(),
        Settings::default()
    );
}

#[test]
fn what_a_file_has_wrong_is_an_error_that_names_it() {
    for (file, problem) in [
        (r#"{ "conections": 5 }"#, "unknown field `conections`"),
        (
            r#"{ "idle": 5 }"#,
            "invalid type: integer `5`, expected a string",
        ),
        (
            r#"{ "idle": "5 parsecs" }"#,
            "`5 parsecs` is no time: unknown time unit",
        ),
        (
            r#"{ "per_peer": "many" }"#,
            "invalid type: string \"many\", expected u32",
        ),
        (
            r#"{ "per_peer": true }"#,
            "invalid type: boolean `true`, expected a value or `off`",
        ),
        (
            r#"{ "connect_rate": { "per_second": 5 } }"#,
            "missing field `burst`",
        ),
        (
            r#"{ "pressure": { "lag": ["1s"] } }"#,
            "invalid length 1, expected a tuple of size 2",
        ),
        (
            r#"{ "handshakes": { "at_once": 5 } }"#,
            "missing field `within`",
        ),
        (
            r#"{ "handshakes": { "at_once": 5, "within": "soon" } }"#,
            "`soon` is no time",
        ),
        (r#"{ "over_limit": "drop" }"#, "unknown variant `drop`"),
        (
            r#"{ "dry_run": { "everything": true } }"#,
            "unknown field `everything`",
        ),
    ] {
        let error = serde_json::from_str::<Settings>(file).unwrap_err();
        assert!(error.to_string().contains(problem), "{file}: {error}");
    }
}

#[test]
fn defaults_are_those_of_the_layers() {
    let handshakes = tower_net::Handshakes::default();
    let same = Settings::default().handshakes(handshakes.at_once(), handshakes.within());
    assert_eq!(same, Settings::default());

    let deadlines = format!("{:?}", Deadlines::default());
    for limit in ["first_byte: 3s", "idle: 90s", "write_stall: 30s"] {
        assert!(deadlines.contains(limit), "{deadlines}");
    }
    let written = serde_json::to_value(Settings::default()).unwrap();
    assert_eq!(
        [
            &written["first_byte"],
            &written["idle"],
            &written["write_stall"]
        ],
        ["3s", "1m 30s", "30s"]
    );
}
