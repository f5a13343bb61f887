//! What other people's clients have of it: OpenSSL and curl.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
    sync::Arc,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn, Server,
    error::BoxError,
    io::{Io, Linger, linger},
    listen::Tcp,
    meter::MeterLayer,
    tls::{TlsAcceptLayer, TlsIo},
};

use super::{Client, Settings, Town};
use crate::{
    peer::{soon, until},
    stack::Loop,
    support::pki::{Authority, Folder},
};

/// Runs a tool and gives it something to say; what it said, and whether it was content.
async fn run(tool: &'static str, args: String, say: &'static str) -> (String, bool) {
    let output = tokio::task::spawn_blocking(move || -> Output {
        let mut child = Command::new(tool)
            .args(args.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("this test needs `{tool}` installed: {error}"));
        // One that was refused may have gone by now.
        let _gone = child
            .stdin
            .take()
            .unwrap()
            .write_all(say.as_bytes());
        child.wait_with_output().unwrap()
    });
    let output = soon(output).await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        String::from_utf8_lossy(&text).into_owned(),
        output.status.success(),
    )
}

impl Town {
    async fn s_client(&self, args: &str, say: &'static str) -> (String, bool) {
        let authority = self.authority_file.display();
        let args = format!(
            "s_client -connect {} -servername a.test -CAfile {authority} -verify_return_error -ign_eof {args}",
            self.addr
        );
        run("openssl", args, say).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_talks_to_us_in_both_versions_and_we_know_what_it_asked_for() {
    let town = Town::start(Settings::default()).await;
    for (flag, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let args = format!("{flag} -alpn http/1.1");
        let (said, ok) = town
            .s_client(&args, "whoami\nbye\n")
            .await;

        assert!(ok, "{said}");
        let known = format!("{version} alpn=http/1.1 sni=a.test client= resumed=false");
        assert!(said.contains(&known), "{said}");
        assert!(said.contains("ALPN protocol: http/1.1"), "{said}");
    }
    assert_eq!(town.outcome("ok_full"), 2.0);
    town.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_resumes_a_session_in_both_versions() {
    let town = Town::start(Settings::default()).await;
    for flag in ["-tls1_2", "-tls1_3"] {
        let session = town
            .folder
            .path()
            .join(format!("session{flag}"));
        let session = session.display();
        let first = format!("{flag} -sess_out {session}");
        let (said, ok) = town
            .s_client(&first, "whoami\nbye\n")
            .await;
        assert!(ok && said.contains("resumed=false"), "{said}");

        let second = format!("{flag} -sess_in {session}");
        let (said, ok) = town
            .s_client(&second, "whoami\nbye\n")
            .await;

        assert!(ok && said.contains("resumed=true"), "{said}");
        assert!(said.contains("Reused, TLSv1."), "{said}");
    }
    assert_eq!(
        (town.outcome("ok_full"), town.outcome("ok_resumed")),
        (2.0, 2.0)
    );
    town.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_hears_why_it_is_refused_without_a_certificate_or_with_somebody_elses() {
    let town = Town::start(Settings {
        asks_clients: true,
        ..Settings::default()
    })
    .await;
    let folder = Folder::new();
    let args = |name, authority: &Authority| {
        let (chain, key) = authority
            .client(name)
            .write(&folder, name);
        format!("-cert {} -key {}", chain.display(), key.display())
    };
    let alice = args("alice", &town.authority);
    let mallory = args("mallory", &Authority::new("somebody else"));
    for version in ["-tls1_2", "-tls1_3"] {
        let (said, ok) = town
            .s_client(&format!("{version} {alice}"), "whoami\nbye\n")
            .await;
        assert!(
            ok && said.contains(r"client=O=Example\, Ltd,CN=alice"),
            "{said}"
        );

        let (said, ok) = town
            .s_client(version, "whoami\nbye\n")
            .await;
        assert!(!ok && said.contains("certificate required"), "{said}");

        let (said, ok) = town
            .s_client(&format!("{version} {mallory}"), "whoami\nbye\n")
            .await;
        assert!(!ok && said.contains("alert unknown ca"), "{said}");
    }
    assert_eq!(town.outcome("their_certificate"), 4.0);
    let report = town.drained().await;
    assert_eq!(report.closed_for(CloseReason::HandshakeFailed), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_that_trusts_somebody_else_says_so_to_us() {
    let town = Town::start(Settings::default()).await;
    let folder = Folder::new();
    let stranger = folder.write("ca.pem", &Authority::new("somebody else").pem());
    for version in ["-tls1_2", "-tls1_3"] {
        let args = format!(
            "s_client -connect {} -CAfile {} -verify_return_error {version}",
            town.addr,
            stranger.display()
        );

        let (said, ok) = run("openssl", args, "").await;

        assert!(!ok, "{said}");
    }
    until(|| town.outcome("our_certificate") == 2.0).await;
    town.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_with_nothing_in_common_is_told() {
    let town = Town::start(Settings::default()).await;
    for (args, word, outcome) in [
        ("-alpn other", "no application protocol", "no_common_alpn"),
        (
            "-tls1_1 -cipher ALL:@SECLEVEL=0",
            "handshake failure",
            "no_common_version",
        ),
        (
            "-tls1_2 -cipher AES128-SHA:@SECLEVEL=0",
            "handshake failure",
            "no_common_cipher",
        ),
    ] {
        let (said, ok) = town.s_client(args, "").await;

        assert!(!ok && said.contains(word), "{said}");
        assert_eq!(town.outcome(outcome), 1.0, "{outcome}");
    }
    town.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_has_its_reply_and_the_connection_ends_in_order() {
    let authority = Authority::new("town hall");
    let folder = Folder::new();
    let authority_file = folder.write("ca.pem", &authority.pem());
    let config = authority.server(&["a.test"]).serving();
    let (meter, tally) = MeterLayer::pair("curl");
    let stack = meter.layer(TlsAcceptLayer::new(config).layer(tower::service_fn(web_page)));
    let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Server::new(listener).serve(stack);
    let server = Loop::spawn(serve.handle(), serve.into_future());

    let args = format!(
        "--silent --show-error --cacert {} --resolve a.test:{}:127.0.0.1 https://a.test:{}/",
        authority_file.display(),
        addr.port(),
        addr.port()
    );
    let (said, ok) = run("curl", args, "").await;

    assert!(ok, "{said}");
    assert_eq!(said, "hello");
    until(|| tally.snapshot().active() == 0).await;
    server.drained().await.unwrap();
}

/// The smallest web server.
async fn web_page<I: Io>(mut conn: Conn<TlsIo<I>>) -> Result<(), BoxError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(conn.read_u8().await?);
    }
    conn.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello")
        .await?;
    let _gone = linger(conn, Linger::default()).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_that_speaks_plain_http_is_closed_and_not_reset() {
    let town = Town::start(Settings::default()).await;

    let args = format!("--silent --show-error http://{}/", town.addr);
    let (said, ok) = run("curl", args, "").await;

    assert!(!ok && said.contains("Empty reply from server"), "{said}");
    assert_eq!(town.outcome("not_tls"), 1.0);
    town.drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn much_plain_text_is_read_before_the_end_and_there_is_no_reset() {
    let town = Town::start(Settings::default()).await;
    let mut plain = soon(TcpStream::connect(town.addr))
        .await
        .unwrap();

    plain
        .write_all(&[b'G'; 60_000])
        .await
        .unwrap();
    plain.shutdown().await.unwrap();
    let heard = soon(plain.read(&mut [0; 8])).await;

    assert_eq!(heard.unwrap(), 0);
    let report = town.drained().await;
    assert_eq!(report.closed_for(CloseReason::HandshakeFailed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_without_a_goodbye_is_a_peer_that_left() {
    let town = Town::start(Settings::default()).await;
    let mut client = town.connect().await;
    client.call("hello").await.unwrap();

    // The socket, and nothing said in TLS.
    let (tcp, _session) = client.io.into_inner().into_inner();
    drop(tcp);
    until(|| town.tally.snapshot().active() == 0).await;

    let report = town.drained().await;
    assert_eq!(report.closed_for(CloseReason::Peer), 1, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_last_reply_arrives_whole_although_more_was_sent_that_nobody_reads() {
    let authority = Authority::new("town hall");
    let config = authority.server(&["a.test"]).serving();
    let stack = TlsAcceptLayer::new(config).layer(tower::service_fn(big_reply));
    let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Server::new(listener).serve(stack);
    let server = Loop::spawn(serve.handle(), serve.into_future());
    let mut client = Client::connect(addr, &Arc::new(authority.trusting()))
        .await
        .unwrap();

    client.send("big").await.unwrap();
    for _ in 0..20 {
        client
            .send(&"never read".repeat(100))
            .await
            .unwrap();
    }
    let heard = client.hear().await.unwrap();
    let end = client.hear().await.unwrap();

    assert_eq!((heard.len(), &*end), (BIG, ""));
    drop(client);
    server.drained().await.unwrap();
}

/// Answers the first four bytes, and reads no more.
async fn big_reply<I: Io>(mut conn: Conn<TlsIo<I>>) -> Result<(), BoxError> {
    conn.read_exact(&mut [0; 4]).await?;
    conn.write_all(&vec![b'x'; BIG]).await?;
    linger(conn, Linger::default()).await?;
    Ok(())
}

/// More than the sockets of both sides hold.
const BIG: usize = 8 << 20;
