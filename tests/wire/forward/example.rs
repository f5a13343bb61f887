//! The `forward` example from outside, with programs of others behind it.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener},
    process::Command,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    peer::alone_blocking,
    support::{
        process::{Listening, PATIENCE, Process},
        tool::{Scratch, Tool},
    },
};

/// Starts the example on a free port.
fn proxy(flags: &str) -> (Process, Listening) {
    let mut proxy = Process::start("forward", &format!("--listen 127.0.0.1:0 {flags}"));
    let at = proxy.listening();
    (proxy, at)
}

/// Drains a proxy from which nobody has to be cut.
fn drained(proxy: Process) -> Value {
    proxy.terminate();
    let (report, code) = proxy.report();
    assert_eq!(code, 0, "{report}");
    report
}

/// A server that says its name, and then what it is told.
fn upstream(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                stream
                    .write_all(name.as_bytes())
                    .unwrap();
                let mut back = stream.try_clone().unwrap();
                std::io::copy(&mut stream, &mut back).unwrap();
            });
        }
    });
    addr
}

/// What comes back for this, all of it.
fn ask(mut stream: impl Read + Write, finish: impl FnOnce(), question: &[u8]) -> String {
    stream.write_all(question).unwrap();
    finish();
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .unwrap();
    answer
}

fn ask_tcp(at: &Listening, question: &[u8]) -> String {
    let stream = at.tcp();
    let other = stream.try_clone().unwrap();
    ask(
        stream,
        || other.shutdown(Shutdown::Write).unwrap(),
        question,
    )
}

#[test]
fn connections_go_to_the_servers_in_turn() {
    let (a, b) = (upstream("a:"), upstream("b:"));
    let (proxy, at) = proxy(&format!("--to {a} --to {b}"));

    let answers = ["1", "2", "3"].map(|question| ask_tcp(&at, question.as_bytes()));

    assert_eq!(answers, ["a:1", "b:2", "a:3"]);
    let report = drained(proxy);
    assert_eq!(report["closed"]["peer"], 3, "{report}");
    assert_eq!(report["bytes"]["read"], 3, "{report}");
    assert_eq!(report["bytes"]["written"], 9, "{report}");
}

#[test]
fn a_server_that_is_not_there_is_passed_over() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = gone.local_addr().unwrap();
    drop(gone);
    let a = upstream("a:");
    let (proxy, at) = proxy(&format!("--to {nobody} --to {a}"));

    let answers = ["1", "2"].map(|question| ask_tcp(&at, question.as_bytes()));

    assert_eq!(answers, ["a:1", "a:2"]);
    drained(proxy);
}

#[test]
fn it_listens_on_a_path_as_well() {
    let scratch = Scratch::new();
    let path = scratch.path().join("proxy");
    let a = upstream("a:");
    let flags = format!("--listen unix:{} --to {a}", path.display());
    let mut proxy = Process::start("forward", &flags);
    let stream = proxy.listening().unix();
    let other = stream.try_clone().unwrap();

    let answer = ask(
        stream,
        || other.shutdown(Shutdown::Write).unwrap(),
        b"hello",
    );

    assert_eq!(answer, "a:hello");
    drained(proxy);
}

#[test]
fn haproxy_behind_it_knows_the_client() {
    let scratch = Scratch::new();
    for version in ["v1", "v2"] {
        let haproxy = Tool::listening(|addr| {
            let config = format!(
                "defaults\n mode http\n timeout client 60s\n timeout connect 60s\n timeout server 60s\n\
                 frontend it\n bind {addr} accept-proxy\n \
                 http-request return status 200 content-type text/plain lf-string %[src]:%[src_port]\n"
            );
            let config = scratch.file(&format!("{version}.cfg"), &config);
            let mut haproxy = Command::new("haproxy");
            haproxy
                .arg("-q")
                .arg("-db")
                .arg("-f")
                .arg(config);
            haproxy
        });
        let (proxy, at) = proxy(&format!(
            "--to {} --proxy-protocol-out {version}",
            haproxy.addr
        ));
        let mut client = at.tcp();
        let address = client.local_addr().unwrap();

        client
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        client
            .read_to_string(&mut answer)
            .unwrap();

        assert!(
            answer.ends_with(&format!("\r\n{address}")),
            "{version}: {answer}"
        );
        drop(client);
        drained(proxy);
    }
}

#[test]
fn openssl_speaks_to_a_plain_server_through_it() {
    let a = upstream("a:");
    let (proxy, at) = proxy(&format!("--tls own --to {a}"));
    let Listening::Tcp(addr) = at else {
        panic!("not a TCP listener");
    };
    let mut openssl = Command::new("openssl");
    openssl
        .args(["s_client", "-quiet", "-no_ign_eof", "-connect"])
        .arg(addr.to_string())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null());
    let mut child = openssl.spawn().unwrap();
    let mut heard = [0; 8];

    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"hello\n")
        .unwrap();
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut heard)
        .unwrap();

    assert_eq!(&heard, b"a:hello\n");
    child.kill().unwrap();
    child.wait().unwrap();
    drained(proxy);
}

#[test]
fn an_idle_tunnel_takes_two_sockets_and_no_pipe_of_its_own() {
    let _machine = alone_blocking();
    let a = upstream("");
    let (proxy, at) = proxy(&format!("--to {a}"));
    let before = Descriptors::of(&proxy);
    let mut clients: Vec<_> = (0..40).map(|_| at.tcp()).collect();

    // All of them at once have more on the way than there is room for.
    let busy = clients.iter().map(|client| {
        let mut client = client.try_clone().unwrap();
        thread::spawn(move || {
            let block = vec![7; 64 * 1024];
            for _ in 0..64 {
                client.write_all(&block).unwrap();
            }
        })
    });
    let busy: Vec<_> = busy.collect();
    for client in &mut clients {
        let mut back = vec![0; 64 * 64 * 1024];
        client.read_exact(&mut back).unwrap();
    }
    busy.into_iter()
        .for_each(|busy| busy.join().unwrap());

    let idle = settled(&proxy, |now| now.pipes <= before.pipes + 64);
    assert_eq!(idle.sockets, before.sockets + 80);
    drop(clients);
    let after = settled(&proxy, |now| now.sockets <= before.sockets);
    assert_eq!(after.sockets, before.sockets);
    assert!(after.pipes <= before.pipes + 64, "{after:?}");
    drained(proxy);
}

#[test]
fn without_descriptors_for_pipes_bytes_are_copied() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};

    let a = upstream("");
    let (proxy, at) = proxy(&format!("--to {a}"));
    let mut client = at.tcp();
    client.write_all(b"x").unwrap();
    client.read_exact(&mut [0; 1]).unwrap();
    // Nothing has needed a pipe yet, and nothing can have one from now on.
    let limit = Rlimit {
        current: Some(3),
        maximum: Some(1024),
    };
    let pid = Pid::from_raw(proxy.id() as i32);
    prlimit(pid, Resource::Nofile, limit).unwrap();

    let mut writer = client.try_clone().unwrap();
    let writing = thread::spawn(move || {
        writer
            .write_all(&vec![7; 8 << 20])
            .unwrap();
        writer
            .shutdown(Shutdown::Write)
            .unwrap();
    });
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();

    writing.join().unwrap();
    assert_eq!(back.len(), 8 << 20);
    assert!(back.iter().all(|byte| *byte == 7));
    drained(proxy);
}

/// What a process has open.
#[derive(Debug, Clone, Copy)]
struct Descriptors {
    sockets: usize,
    pipes: usize,
}

impl Descriptors {
    fn of(process: &Process) -> Self {
        let folder = fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap();
        let mut this = Self {
            sockets: 0,
            pipes: 0,
        };
        for file in folder {
            // One that is closed in this moment is none.
            let target = fs::read_link(file.unwrap().path()).unwrap_or_default();
            let target = target.to_string_lossy();
            this.sockets += usize::from(target.starts_with("socket:"));
            this.pipes += usize::from(target.starts_with("pipe:"));
        }
        this
    }
}

/// What it has open once it is so, or after all patience.
fn settled(process: &Process, is_so: impl Fn(Descriptors) -> bool) -> Descriptors {
    let step = Duration::from_millis(10);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        if is_so(Descriptors::of(process)) {
            break;
        }
        thread::sleep(step);
    }
    Descriptors::of(process)
}
