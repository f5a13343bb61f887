//! curl's own upgrade to a WebSocket. It sends no messages there, but shows what it is sent.

use std::process::{Command, Stdio};

use super::{BOTH, Site, client::ACCEPTED, closed};

#[test]
fn curl_upgrades_and_is_sent_messages_through_every_stack() {
    for example in BOTH {
        for site in [Site::start(example, ""), Site::encrypted(example, "")] {
            let mut curl = Command::new("curl");
            curl.args(
                "--silent --show-error --max-time 20 --http1.1 --include --no-buffer".split(' '),
            );
            for header in [
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            ] {
                curl.args(["--header", header]);
            }
            if let Some(tls) = &site.tls {
                curl.arg("--cacert").arg(&tls.file);
            }
            let curl = curl
                .arg(site.url("/ws/count"))
                .stdin(Stdio::null());

            let said = curl.output().unwrap().stdout;

            let head = String::from_utf8_lossy(&said);
            assert!(
                head.starts_with("HTTP/1.1 101") && head.contains(ACCEPTED),
                "{head}"
            );
            // Three texts of a byte each (RFC 6455, section 5.2).
            assert!(
                said.ends_with(b"\r\n\r\n\x81\x011\x81\x012\x81\x013"),
                "{head}"
            );
            let (report, code) = site.drained();
            assert_eq!((closed(&report)["served"], code), (1, 0), "{report}");
        }
    }
}
