//! Whom it knows.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
};

use serde_json::{Value, json};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use super::{client::Client, drained, echo};
use crate::support::{
    pki::{Authority, Folder},
    process::Process,
};

/// What a client hears of itself.
fn whoami<S: Read + Write>(stream: &mut S) -> Value {
    stream
        .write_all(b"\0\0\0\x01?")
        .unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut reply).unwrap();
    serde_json::from_slice(&reply).unwrap()
}

fn tls(stream: TcpStream, config: ClientConfig) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from("a.test").unwrap();
    let session = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(session, stream)
}

#[test]
fn a_client_is_known_by_its_address() {
    let (server, at) = echo("--whoami");
    let mut stream = at.tcp();
    let here = stream.local_addr().unwrap().to_string();

    let known = whoami(&mut stream);

    assert_eq!([&known["peer"], &known["wire_peer"]], [&here, &here]);
    assert_eq!(
        [&known["sni"], &known["tls_version"]],
        [&Value::Null, &Value::Null]
    );
    assert_eq!(known["proxy_tlvs"], json!({}));
    Client::new(stream).leave();
    drained(server);
}

#[test]
fn a_proxy_that_is_trusted_says_who_its_client_is_and_what_else_it_knows() {
    let (server, at) = echo("--whoami --proxy-protocol 127.0.0.0/8");
    let mut stream = at.tcp();
    let here = stream.local_addr().unwrap().to_string();
    let mut header =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1c\xcb\x00\x71\x07\xc0\x00\x02\x01\x00\x63\x01\xbb"
            .to_vec();
    // Of two of one type the first counts.
    header.extend(b"\x02\0\x06a.test\xe0\0\0\xe0\0\x01x");
    stream.write_all(&header).unwrap();

    let known = whoami(&mut stream);

    assert_eq!(known["peer"], "203.0.113.7:99");
    assert_eq!(known["wire_peer"], here);
    assert_eq!(known["proxy_tlvs"], json!({"0x02": "a.test", "0xe0": ""}));
    Client::new(stream).leave();
    drained(server);
}

#[test]
fn who_is_no_proxy_that_is_trusted_is_reset_and_never_believed() {
    let (server, at) = echo("--whoami --proxy-protocol 10.0.0.0/8");

    at.client().is_reset();

    assert_eq!(drained(server)["closed"], json!({"proxy_header": 1}));
}

#[test]
fn a_proxy_that_says_nothing_or_nonsense_is_closed_for_it() {
    let (server, at) = echo("--proxy-protocol 127.0.0.1 --handshake 1s");
    let (mut silent, mut half, mut wrong) = (at.client(), at.client(), at.client());
    half.write(b"PROXY TCP4 ");
    wrong.write(b"GET / HTTP/1.1\r\n\r\n");

    silent.is_closed();
    half.is_closed();
    wrong.has_ended();

    let closed = &drained(server)["closed"];
    assert_eq!(
        *closed,
        json!({"first_byte": 1, "proxy_timeout": 1, "proxy_header": 1})
    );
}

#[test]
fn over_tls_it_knows_what_the_client_asked_for_and_who_it_is() {
    let authority = Authority::new("town hall");
    let folder = Folder::new();
    let (chain, key) = authority
        .server(&["a.test"])
        .write(&folder, "a");
    let ca = folder.write("ca.pem", &authority.pem());
    let flags = format!(
        "--whoami --tls {},{} --client-ca {} --alpn rpc/2,rpc/1",
        chain.display(),
        key.display(),
        ca.display()
    );
    let (server, at) = echo(&flags);
    let mut config = authority.trusting_as(&authority.client("ada"));
    config.alpn_protocols = vec![b"rpc/1".to_vec(), b"rpc/2".to_vec()];
    let mut stream = tls(at.tcp(), config);

    let known = whoami(&mut stream);
    let mut nobody = tls(at.tcp(), authority.trusting());
    let refused = nobody
        .write_all(b"\0\0\0\x01?")
        .and_then(|()| nobody.read_exact(&mut [0]));

    assert_eq!([&known["sni"], &known["alpn"]], ["a.test", "rpc/2"]);
    assert_eq!(known["tls_version"], "TLSv1.3");
    let subject = known["client_subject"]
        .as_str()
        .unwrap();
    assert!(subject.contains("CN=ada"), "{subject}");
    assert!(refused.is_err());
    stream.conn.send_close_notify();
    stream.flush().unwrap();
    stream
        .sock
        .shutdown(Shutdown::Write)
        .unwrap();
    let mut goodbye = Vec::new();
    stream
        .sock
        .read_to_end(&mut goodbye)
        .unwrap();
    assert_eq!(
        drained(server)["closed"],
        json!({"handshake_failed": 1, "peer": 1})
    );
}

#[test]
fn a_handshake_has_its_time_and_plain_text_is_no_handshake() {
    let authority = Authority::new("town hall");
    let folder = Folder::new();
    let (chain, key) = authority
        .server(&["a.test"])
        .write(&folder, "a");
    let flags = format!(
        "--tls {},{} --handshake 1s --max-handshakes 2",
        chain.display(),
        key.display()
    );
    let (server, at) = echo(&flags);
    let mut plain = at.client();
    plain.send(b"plain");
    plain.is_closed();

    // Of three that are silent the first makes room.
    let mut silent = [at.client(), at.client(), at.client()];
    for client in &mut silent {
        client.has_ended();
    }

    let closed = &drained(server)["closed"];
    assert_eq!(
        *closed,
        json!({"handshake_failed": 1, "handshake_limit": 1, "first_byte": 2})
    );
}

#[test]
fn identity_that_cannot_be_had_is_refused_before_it_listens() {
    for (flags, problem) in [
        ("--tls /nowhere/a.pem,/nowhere/a.key", "/nowhere/a.pem"),
        ("--tls only-one", "no CERT,KEY"),
        ("--alpn rpc/1", "need --tls"),
        (
            "--proxy-protocol everybody",
            "`everybody`, which is no network",
        ),
        ("--allow 10.0.0.0/33", "`10.0.0.0/33`, which is no network"),
        ("--handshake 0s", "must not be zero"),
        ("--max-handshakes 0", "must not be zero"),
        ("--per-peer 0", "must not be zero"),
        ("--per-peer-rate 0", "`per_second`"),
        ("--per-peer-rate fast", "no rate"),
        ("--per-peer-burst 5", "needs --per-peer-rate"),
        ("--throttle 0", "must not be zero"),
    ] {
        let (code, errors) = Process::start("echo", flags).end();
        assert_eq!(code, 2, "{flags}: {errors}");
        assert!(errors.contains(problem), "{flags}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{flags}: {errors}");
    }
}
