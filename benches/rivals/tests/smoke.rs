//! Every contestant answers right, in tiny windows. No figure is looked at.

use std::process::Command;

fn rivals(args: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_rivals"))
        .args(args)
        .output()
        .expect("runs");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn all_contestants_echo_under_load() {
    let cells = "8x3x2,64x64x3,4096x64x2,100000x4x2";
    let (ok, text) = rivals(&["--rounds", "2", "--window-ms", "60", "--cells", cells]);
    assert!(ok, "{text}");
    assert_eq!(text.matches("framed_timeout").count(), 4, "{text}");
}

#[test]
fn all_contestants_hold_idle_connections() {
    let (ok, text) = rivals(&["idle", "--connections", "50", "--rounds", "1"]);
    assert!(ok, "{text}");
    assert!(text.contains("bare"), "{text}");
}

#[test]
fn all_rate_checks_let_everybody_in_and_say_what_they_take() {
    let sizes = ["--keys", "1,5000", "--checks", "2000", "--rounds", "2"];
    let (ok, text) = rivals(&[&["checks", "--flood", "10000"], &sizes[..]].concat());
    assert!(ok, "{text}");
    assert_eq!(text.matches("ours_with_clock").count(), 2, "{text}");
    assert!(text.contains("resident after 10000 "), "{text}");
}

#[test]
fn an_unknown_contestant_is_refused_with_the_known_ones() {
    let (ok, text) = rivals(&["--only", "nobody"]);
    assert!(!ok && text.contains("tokio_lazy"), "{text}");
}

#[cfg(feature = "ours")]
#[test]
fn all_that_answer_by_id_are_called() {
    let sizes = ["--rounds", "2", "--calls", "100", "--connections", "3"];
    let (ok, text) = rivals(
        &[
            &["calls", "--depths", "1,7", "--payload", "100"],
            &sizes[..],
        ]
        .concat(),
    );
    assert!(ok, "{text}");
    assert_eq!(text.matches("tonic").count(), 2, "{text}");
}

#[cfg(feature = "ours")]
#[test]
fn all_that_accept_answer_and_close() {
    for at_once in ["1", "16"] {
        let sizes = ["--rounds", "2", "--connections", "40"];
        let (ok, text) = rivals(&[&["accept", "--at-once", at_once], &sizes[..]].concat());
        assert!(ok, "{text}");
        assert_eq!(text.matches("ours_guard").count(), 1, "{text}");
    }
}

#[cfg(feature = "ours")]
#[test]
fn all_pools_give_out_connections_and_take_them_back() {
    let (ok, text) = rivals(&["pool", "--rounds", "1", "--gets", "6400"]);
    assert!(ok, "{text}");
    assert_eq!(text.matches("ours_tcp").count(), 3, "{text}");
}

#[cfg(feature = "ours")]
#[test]
fn all_tls_contestants_shake_hands_and_hold_idle_connections() {
    for resumed in [&[][..], &["--resumed"]] {
        let args = [
            "tls",
            "--rounds",
            "1",
            "--handshakes",
            "5",
            "--connections",
            "5",
        ];
        let (ok, text) = rivals(&[&args[..], resumed].concat());
        assert!(ok, "{text}");
        assert_eq!(text.matches("ours_all").count(), 2, "{text}");
    }
}

#[cfg(feature = "ours")]
#[test]
fn all_web_servers_answer_whether_their_handler_waits_or_not() {
    for waiting in [&[][..], &["--waiting"]] {
        let args = [
            "web",
            "--rounds",
            "1",
            "--window-ms",
            "60",
            "--connections",
            "5",
        ];
        let (ok, text) = rivals(&[&args[..], waiting].concat());
        assert!(ok, "{text}");
        assert!(
            text.contains("ours_axum") && text.contains("ours_http"),
            "{text}"
        );
    }
}

#[cfg(feature = "ours")]
#[test]
fn all_proxies_forward_every_byte() {
    let (ok, text) = rivals(&["forward", "--rounds", "1", "--mib", "3"]);
    assert!(ok, "{text}");
    assert_eq!(text.matches("ours_").count(), 4, "{text}");
    assert_eq!(text.matches("haproxy").count(), 2, "{text}");
}
