//! What other people's clients have of it: curl, h2load and wrk.

use std::process::Command;

use super::{
    BOTH, Site,
    client::{ACCEPTED, UPGRADE, message},
    closed,
};
use crate::support::tool::output;

fn curl(site: &Site, args: &str, path: &str) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20"]);
    if let Some(tls) = &site.tls {
        command.arg("--cacert").arg(&tls.file);
    }
    output(
        command
            .args(args.split_whitespace())
            .arg(site.url(path)),
    )
}

#[test]
fn curl_is_answered_in_every_version_and_known_by_its_address() {
    for example in BOTH {
        for (site, flags, version) in [
            (Site::start(example, ""), "--http1.1", "HTTP/1.1"),
            (
                Site::start(example, ""),
                "--http2-prior-knowledge",
                "HTTP/2.0",
            ),
            (Site::encrypted(example, ""), "--http1.1", "HTTP/1.1"),
            (Site::encrypted(example, ""), "--http2", "HTTP/2.0"),
        ] {
            let own = format!("{flags} --write-out %{{local_ip}}:%{{local_port}}");
            let said = curl(&site, &own, "/whoami");
            let (known, own) = said.split_once('\n').unwrap();
            assert_eq!(known, format!("{own} {version}"), "{example} {flags}");

            let json = format!("{flags} --json {{\"a\":1,\"b\":2}}");
            assert_eq!(
                curl(&site, &json, "/add"),
                r#"{"sum":3}"#,
                "{example} {flags}"
            );
            let form = format!("{flags} --data length");
            assert_eq!(curl(&site, &form, "/length"), "6\n", "{example} {flags}");

            let (report, code) = site.drained();
            let closed = closed(&report);
            let ended = |reason| closed.get(reason).copied().unwrap_or(0);
            // The last one's end and the notice to leave are on their way at once.
            assert_eq!((ended("peer") + ended("drain"), code), (3, 0), "{report}");
        }
    }
}

#[test]
fn a_certificate_of_its_own_is_made_at_the_start() {
    let mut site = Site::start("axum_stack", "--tls own");
    let url = format!("https://127.0.0.1:{}/whoami", site.port());

    let said = output(Command::new("curl").args(["--silent", "--insecure", &url]));

    assert!(said.ends_with(" HTTP/2.0\n"), "{said}");
    site.process.interrupt();
    assert!(site.process.line().is_some());
    assert_eq!(site.process.end().0, 0);
}

#[test]
fn h2load_and_wrk_find_no_fault() {
    for example in BOTH {
        for site in [Site::start(example, ""), Site::encrypted(example, "")] {
            let said = output(
                Command::new("h2load")
                    .args("-n 500 -c 5 -m 10".split(' '))
                    .arg(site.url("/")),
            );
            assert!(
                said.contains("500 succeeded, 0 failed, 0 errored"),
                "{said}"
            );

            let said = output(
                Command::new("wrk")
                    .args("-t 1 -c 10 -d 1s".split(' '))
                    .arg(site.url("/")),
            );
            assert!(said.contains("Requests/sec:"), "{said}");
            assert!(
                !said.contains("Socket errors") && !said.contains("Non-2xx"),
                "{said}"
            );

            let (report, code) = site.drained();
            assert_eq!(code, 0, "{report}");
            assert!(closed(&report).values().sum::<u64>() >= 15, "{report}");
        }
    }
}

#[test]
fn a_websocket_echoes_and_events_stream() {
    for example in BOTH {
        for site in [Site::start(example, ""), Site::encrypted(example, "")] {
            let mut socket = site.client();
            socket.send(UPGRADE);
            let head = socket.hear_until(b"\r\n\r\n");
            let head = String::from_utf8(head).unwrap();
            assert!(
                head.starts_with("HTTP/1.1 101") && head.contains(ACCEPTED),
                "{head}"
            );
            socket.send(message("hello"));
            socket.hear_until(b"\x81\x05hello");

            let mut events = site.client();
            events.send("GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n");
            events.hear_until(b"data: 3\n\n");

            drop((socket, events));
        }
    }
}
