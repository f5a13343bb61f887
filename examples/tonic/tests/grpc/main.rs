//! The server as a process, and Google's own client, which is not ours, in front of it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test that fails may panic, and its threads are its own"
)]

mod client;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part of it"
)]
mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

use crate::{
    client::Client,
    support::{
        pki::{Authority, Folder},
        process::{Listening, Process},
        tool::{Scratch, Tool},
    },
};

/// The server with these flags, and where it listens.
fn serve(flags: &str) -> (Process, SocketAddr) {
    let program = Path::new(env!("CARGO_BIN_EXE_tonic_guarded"));
    let mut server = Process::run(program, &format!("--listen 127.0.0.1:0 {flags}"));
    match server.listening() {
        Listening::Tcp(addr) => (server, addr),
        other => panic!("not by TCP: {other:?}"),
    }
}

/// The server over TLS, and the authority that its clients must know.
fn serve_tls(folder: &Folder, flags: &str) -> (Process, SocketAddr, String) {
    let authority = Authority::new("authority");
    let (certificate, key) = authority
        .server(&["example.com"])
        .write(folder, "site");
    let (server, addr) = serve(&format!(
        "{flags} --tls {},{}",
        certificate.display(),
        key.display()
    ));
    let ca = folder.write("ca.pem", &authority.pem());
    (server, addr, ca.display().to_string())
}

// === Calls

#[test]
fn a_call_is_answered_with_what_was_sent_beside_it() {
    let (server, addr) = serve("");

    let mut client = Client::say(addr, "-", "hello", "for you");
    let answer = client.next("said");

    assert_eq!(answer["said"]["text"], "hello");
    assert_eq!(answer["note"], "for you");
    assert_eq!(client.status(), "OK");
    server.terminate();
    let (report, code) = server.report();
    assert_eq!((report["opened"].as_u64(), code), (Some(1), 0));
}

#[test]
fn a_stream_is_answered_line_by_line_and_all_calls_see_the_client_itself() {
    let (_server, addr) = serve("");
    let mut client = Client::chat(addr, "-");

    let first = client.ask("one");
    let me = format!("127.0.0.1:{}", port_of_client_of(addr));
    let second = client.ask("two");
    client.hang_up();

    assert_eq!(first["text"], "one");
    assert_eq!(second["text"], "two");
    assert_eq!(first["peer"], *me);
    assert_eq!(second["peer"], *me);
    assert_eq!(first["connection"], second["connection"]);
    assert_eq!(client.status(), "OK");
}

#[test]
fn calls_and_streams_go_over_tls() {
    let folder = Folder::new();
    let (_server, addr, ca) = serve_tls(&folder, "");

    let mut one = Client::say(addr, &ca, "hello", "");
    let mut stream = Client::chat(addr, &ca);

    let answer = one.next("said");
    assert_eq!(answer["said"]["tls"], "TLSv1.3");
    assert_eq!(stream.ask("one")["tls"], "TLSv1.3");
    stream.hang_up();
    assert_eq!((&*one.status(), &*stream.status()), ("OK", "OK"));
}

// === Guards

#[test]
fn who_comes_over_the_limit_is_refused() {
    let (server, addr) = serve("--max-connections 1");
    let mut first = Client::chat(addr, "-");
    first.ask("one");

    let mut second = Client::say(addr, "-", "hello", "");

    assert_eq!(second.status(), "UNAVAILABLE");
    first.ask("still here");
    first.hang_up();
    assert_eq!(first.status(), "OK");
    server.terminate();
    let (report, _) = server.report();
    assert!(report["closed"]["limit"].as_u64() >= Some(1), "{report}");
}

#[test]
fn a_silent_stream_is_idle_unless_its_client_answers_pings() {
    let (alive, addr) = serve("--idle 2s --ping 200ms");
    let mut pinged = Client::chat(addr, "-");
    pinged.ask("one");
    let (silent, addr) = serve("--idle 2s");
    let mut left_alone = Client::chat(addr, "-");
    left_alone.ask("one");

    assert_eq!(left_alone.status(), "UNAVAILABLE");

    assert_eq!(pinged.ask("two")["text"], "two");
    silent.terminate();
    let (report, _) = silent.report();
    assert_eq!(report["closed"]["idle"], 1, "{report}");
    drop(alive);
}

// === Drain

#[test]
fn a_drain_tells_the_client_and_lets_its_stream_finish() {
    for tls in [false, true] {
        let folder = Folder::new();
        let (server, addr, ca) = match tls {
            true => serve_tls(&folder, ""),
            false => {
                let (server, addr) = serve("");
                (server, addr, "-".to_owned())
            }
        };
        let mut client = Client::chat(addr, &ca);
        client.ask("one");

        server.terminate();
        // It has had GOAWAY: no new call will go by this connection.
        client.wait_for_state("IDLE");
        let second = client.ask("two");
        let refused = TcpStream::connect(addr).is_err();
        client.hang_up();

        assert_eq!(second["text"], "two");
        assert!(refused);
        assert_eq!(client.status(), "OK");
        let (report, code) = server.report();
        assert_eq!(report["drain"]["left"], 1, "{report}");
        assert_eq!((report["drain"]["cut"].as_u64(), code), (Some(0), 0));
    }
}

#[test]
fn a_stream_that_does_not_end_is_cut_at_the_deadline_and_counted() {
    let (server, addr) = serve("--drain 500ms");
    let mut client = Client::chat(addr, "-");
    client.ask("one");

    server.terminate();

    assert_eq!(client.status(), "UNAVAILABLE");
    let (report, code) = server.report();
    assert_eq!(report["drain"]["cut"], 1, "{report}");
    assert_eq!(report["closed"]["cut"], 1, "{report}");
    assert_eq!(code, 1);
}

#[test]
fn a_second_signal_cuts_at_once() {
    let (server, addr) = serve("--drain 10m");
    let mut client = Client::chat(addr, "-");
    client.ask("one");

    server.terminate();
    client.wait_for_state("IDLE");
    server.interrupt();

    assert_eq!(client.status(), "UNAVAILABLE");
    let (report, code) = server.report();
    assert_eq!((report["drain"]["cut"].as_u64(), code), (Some(1), 1));
}

#[test]
fn a_handshake_that_does_not_end_keeps_nobody_from_being_told() {
    let folder = Folder::new();
    let (server, addr, ca) = serve_tls(&folder, "--handshake 3s");
    let mut client = Client::chat(addr, &ca);
    client.ask("one");
    let _silent = TcpStream::connect(addr).unwrap();

    server.terminate();
    client.wait_for_state("IDLE");
    client.hang_up();

    assert_eq!(client.status(), "OK");
    let (report, code) = server.report();
    assert_eq!((report["opened"].as_u64(), code), (Some(2), 0), "{report}");
}

// === Behind a proxy

#[test]
fn behind_haproxy_the_handler_sees_the_client_and_not_the_proxy() {
    let (server, addr) = serve("--proxy-protocol 127.0.0.2/32");
    let scratch = Scratch::new();
    let proxy = haproxy(&scratch, addr);

    let mut client = Client::chat(proxy.addr, "-");
    let said = client.ask("one");
    let me = format!("127.0.0.1:{}", port_of_client_of(proxy.addr));
    client.hang_up();

    assert_eq!(said["peer"], *me);
    assert_eq!(client.status(), "OK");
    // Who is no proxy and comes past it is nobody.
    let mut past = Client::say(addr, "-", "hello", "");
    assert_eq!(past.status(), "UNAVAILABLE");
    server.terminate();
    let (report, _) = server.report();
    assert!(
        report["closed"]["proxy_header"].as_u64() >= Some(1),
        "{report}"
    );
}

/// HAProxy in front, which comes from an address of its own.
fn haproxy(scratch: &Scratch, app: SocketAddr) -> Tool {
    Tool::listening(|front| {
        let config = format!(
            "global\n maxconn 100\n\
             defaults\n mode tcp\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n\
             frontend front\n bind {front}\n default_backend app\n\
             backend app\n server app {app} source 127.0.0.2 send-proxy-v2\n"
        );
        let mut command = Command::new("haproxy");
        command
            .arg("-f")
            .arg(scratch.file("haproxy.cfg", &config));
        command
    })
}

/// The port of the one connection that leads to `addr`, as the kernel has it: the client takes a socket of version 6.
fn port_of_client_of(addr: SocketAddr) -> u16 {
    let SocketAddr::V4(addr) = addr else {
        panic!("not of version 4: {addr}");
    };
    let ip = u32::from_ne_bytes(addr.ip().octets());
    let (localhost, to) = (
        format!("{ip:08X}:"),
        format!("{ip:08X}:{:04X}", addr.port()),
    );
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap());
    // As a set: what the kernel changes while it prints them may come twice.
    let ports: BTreeSet<_> = tables
        .iter()
        .flat_map(|table| table.lines())
        .filter_map(|line| {
            let columns: Vec<_> = line.split_whitespace().collect();
            let (_, port) = columns.get(1)?.split_once(&localhost)?;
            let is_it = columns[2].ends_with(&to) && columns[3] == ESTABLISHED;
            is_it.then(|| u16::from_str_radix(port, 16).unwrap())
        })
        .collect();
    assert_eq!(ports.len(), 1, "connections to {addr}: {ports:?}");
    ports.into_iter().sum()
}

/// As the kernel prints it.
const ESTABLISHED: &str = "01";
