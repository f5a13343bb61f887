//! How it is told what to do.

use super::echo;
use crate::support::process::Process;

#[test]
fn what_cannot_work_is_refused_before_it_listens() {
    for (flags, problem) in [
        ("--max-connections 0", "must not be zero"),
        ("--first-byte 0s", "`first_byte` must not be zero"),
        ("--pipeline 0", "must not be zero"),
        ("--threads 0", "--threads: `0`"),
        ("--idle 3", "--idle: `3` is no time"),
        ("--idle three", "--idle: `three` is no time"),
        ("--idle", "--idle: needs a value"),
        ("--max-frame -1", "--max-frame: `-1`"),
        ("--over-limit maybe", "`maybe` is not reset or wait"),
        ("--codec morse", "`morse` is not length or line"),
        ("--log loud", "`loud` is no level"),
        ("--slow-word slow", "--slow-for"),
        ("--nonsense", "--nonsense: no such flag"),
        ("--listen unix:/nowhere/at/all", "unix:/nowhere/at/all"),
    ] {
        let (code, errors) = Process::start("echo", flags).end();
        assert_eq!(code, 2, "{flags}: {errors}");
        assert!(errors.contains(problem), "{flags}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{flags}: {errors}");
    }
}

#[test]
fn it_logs_what_it_is_asked_to() {
    for (flags, expected) in [("", false), ("--log debug", true)] {
        let (mut server, at) = echo(flags);
        at.client().leave();
        server.terminate();
        assert!(server.line().is_some());

        let (_, errors) = server.end();
        assert_eq!(errors.contains(r#"closed reason="peer""#), expected);
        assert_eq!(errors.is_empty(), !expected, "{errors}");
    }
}

#[test]
fn it_says_once_which_guards_of_a_service_in_production_it_lacks() {
    for (flags, missing) in [("", true), ("--per-peer 9", false)] {
        let (mut server, at) = echo(&format!("--log info {flags}"));
        for _ in 0..2 {
            let mut client = at.client();
            client.exchange(b"hello");
            client.leave();
        }
        server.terminate();
        assert!(server.line().is_some());

        let (_, errors) = server.end();
        let said = if missing {
            r#"production guards are missing missing="per_peer_limit""#
        } else {
            "every production guard is in place"
        };
        assert_eq!(errors.matches(said).count(), 1, "{errors}");
    }
}

#[test]
fn the_lines_example_echoes_and_leaves_on_ctrl_c() {
    let mut server = Process::start("lines", "127.0.0.1:0");
    let mut client = server.listening().client();
    client.write(b"hello\r\n");
    assert_eq!(client.read(6), b"hello\n");

    server.interrupt();
    client.is_closed();

    let report = server.line().unwrap();
    assert!(report.contains("1 opened"), "{report}");
    assert_eq!(server.end().0, 0);
}
