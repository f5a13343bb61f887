//! PROXY headers of proxies that others wrote, and ours to receivers that others wrote.

use std::{
    fmt::Write,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_net::{
    CloseReason, Conn, ConnInfo, Handshakes, Report, Server, ServerHandle,
    error::BoxError,
    frame::{Delimited, FrameLayer, Request},
    listen::Tcp,
    meter::{MeterLayer, Tally},
    proxy_protocol::{EncodeError, Header, Others, ProxyConnectLayer, ProxyProtocolLayer, Version},
};

use crate::{
    peer::{End, Peer, soon, until},
    support::{
        process::{Listening, Process},
        readings::{Readings, recorded},
        tool::{Scratch, Tool, output},
    },
};

// === A service behind a proxy

/// A service of lines that answers each with what it knows of the connection.
struct Service {
    addr: SocketAddr,
    tally: Tally,
    metrics: Readings,
    handle: ServerHandle,
    serving: JoinHandle<Report>,
}

impl Service {
    /// Behind proxies on this host.
    async fn start() -> Self {
        Self::with(|layer| layer).await
    }

    async fn with(settings: impl FnOnce(ProxyProtocolLayer) -> ProxyProtocolLayer) -> Self {
        let (layer, metrics) =
            recorded(|| settings(ProxyProtocolLayer::required_from(["127.0.0.0/8"]).unwrap()));
        let (meter, tally) = MeterLayer::pair("wire");
        let stack = ServiceBuilder::new()
            .layer(meter)
            .layer(layer)
            .layer(FrameLayer::new(Delimited::lines(1024)))
            .service_fn(async |line: Request<Bytes>| Ok::<_, BoxError>(answer(&line)));
        let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = Server::new(listener).serve(stack);
        let handle = serve.handle();
        Self {
            addr,
            tally,
            metrics,
            handle,
            serving: tokio::spawn(async { serve.await.unwrap() }),
        }
    }

    fn outcome(&self, outcome: &str) -> f64 {
        let labels = [("outcome", outcome)];
        self.metrics
            .of("tower_net_proxy_headers_total", &labels)
    }

    async fn drained(self) -> Report {
        self.handle.shutdown();
        soon(self.serving).await.unwrap()
    }
}

/// For whoever speaks HTTP, the answers to the lines of a request are a response, in whose header the facts are.
fn answer(line: &Request<Bytes>) -> String {
    let facts = facts(line.conn());
    match &line.message()[..] {
        b"" => {
            line.conn().close_after_reply();
            "\r".to_owned()
        }
        line if line.starts_with(b"GET ") => "HTTP/1.0 200 OK\r".to_owned(),
        line if line.contains(&b':') => format!("Facts: {facts}\r"),
        _ => facts,
    }
}

fn facts(conn: &ConnInfo) -> String {
    let mut facts = format!("peer={} wire={}", conn.peer(), conn.wire_peer());
    let mut say = |name: &str, value: &dyn std::fmt::Debug| {
        write!(facts, " {name}={value:?}").unwrap();
    };
    if let Some(header) = conn.proxy() {
        say("version", &header.version());
        say("command", &header.command());
        say(
            "to",
            &header
                .destination()
                .map(|to| to.to_string()),
        );
        let tlvs = header.tlvs();
        say("authority", &tlvs.authority());
        say(
            "id",
            &tlvs
                .unique_id()
                .map(|id| id.escape_ascii().to_string()),
        );
        say("checked", &tlvs.crc32c().is_some());
        if let Some(ssl) = tlvs.ssl() {
            say("tls", &ssl.version());
            say("cipher", &ssl.cipher());
            say("key", &ssl.key_algorithm());
            say("certificate", &ssl.has_certificate());
        }
    }
    facts
}

/// Sends a line, and hears what the service knows.
async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> String {
    soon(stream.write_all(b"who am I\n"))
        .await
        .unwrap();
    let mut line = String::new();
    let mut reader = BufReader::with_capacity(1, stream);
    soon(reader.read_line(&mut line))
        .await
        .unwrap();
    line
}

async fn connect(addr: SocketAddr) -> (TcpStream, SocketAddr) {
    let stream = soon(TcpStream::connect(addr))
        .await
        .unwrap();
    stream.set_nodelay(true).unwrap();
    let local = stream.local_addr().unwrap();
    (stream, local)
}

fn has(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
}

// === HAProxy and nginx in front

/// HAProxy in TCP mode, with more lines for its frontend and its server.
pub(crate) fn haproxy(scratch: &Scratch, bind: &str, server: &str, app: SocketAddr) -> Tool {
    Tool::listening(|front| {
        let config = format!(
            "global\n maxconn 100\n\
             defaults\n mode tcp\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n\
             frontend front\n bind {front} {bind}\n unique-id-format id-%ci:%cp\n default_backend app\n\
             backend app\n server app {app} {server}\n"
        );
        let mut command = Command::new("haproxy");
        command
            .arg("-f")
            .arg(scratch.file("haproxy.cfg", &config));
        command
    })
}

fn nginx(scratch: &Scratch, server: impl Fn(SocketAddr) -> String) -> Tool {
    Tool::listening(|front| {
        let dir = scratch.path().display();
        let config = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n\
             daemon off;\nmaster_process off;\npid {dir}/pid;\nerror_log stderr;\nevents {{}}\n{}",
            server(front)
        );
        let mut command = Command::new("nginx");
        command
            .arg("-p")
            .arg(scratch.path())
            .args(["-e", "stderr", "-c"])
            .arg(scratch.file("nginx.conf", &config));
        command
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_names_its_clients_by_version_1() {
    let service = Service::start().await;
    let scratch = Scratch::new();
    let proxy = haproxy(&scratch, "", "send-proxy", service.addr);

    let (mut stream, local) = connect(proxy.addr).await;
    let facts = ask(&mut stream).await;

    let (peer, to) = (
        format!("peer={local} "),
        format!("{:?}", proxy.addr.to_string()),
    );
    has(&facts, &[&peer, "version=V1", "command=Proxy", &to]);
    assert!(!facts.contains(&format!("wire={local} ")), "{facts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_names_its_clients_by_version_2_and_its_checksum_holds() {
    let service = Service::start().await;
    let scratch = Scratch::new();
    let options = "send-proxy-v2 proxy-v2-options crc32c,unique-id";
    let proxy = haproxy(&scratch, "", options, service.addr);

    let (mut stream, local) = connect(proxy.addr).await;
    let facts = ask(&mut stream).await;

    let (peer, id) = (format!("peer={local} "), format!("id-{local}"));
    has(
        &facts,
        &[&peer, "version=V2", "command=Proxy", &id, "checked=true"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_says_what_it_knows_of_a_clients_tls() {
    let service = Service::start().await;
    let scratch = Scratch::new();
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["example.com".to_owned()]).unwrap();
    let pem = scratch.file("site.pem", &(cert.pem() + &signing_key.serialize_pem()));
    let bind = format!("ssl crt {}", pem.display());
    let options = "send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,cert-key,authority,crc32c";
    let proxy = haproxy(&scratch, &bind, options, service.addr);

    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (stream, local) = connect(proxy.addr).await;
    let name = ServerName::try_from("example.com").unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let mut stream = soon(connecting).await.unwrap();
    let facts = ask(&mut stream).await;

    let peer = format!("peer={local} ");
    has(
        &facts,
        &[
            &peer,
            "authority=Some(\"example.com\")",
            "tls=Some(\"TLSv1.3\")",
            "cipher=Some(\"TLS_",
            "key=Some(\"EC256\")",
            "certificate=false",
            "checked=true",
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_of_haproxy_are_its_own_and_keep_the_address_of_the_socket() {
    let service = Service::start().await;
    let scratch = Scratch::new();
    let check = "send-proxy-v2 check check-send-proxy inter 50ms";
    let proxy = haproxy(&scratch, "", check, service.addr);

    until(|| service.outcome("local") >= 3.0).await;
    let (mut stream, local) = connect(proxy.addr).await;
    let facts = ask(&mut stream).await;

    has(&facts, &[&format!("peer={local} "), "command=Proxy"]);
    assert_eq!(service.outcome("invalid"), 0.0);
    drop((stream, proxy));
    let report = service.drained().await;
    assert_eq!(report.closed_for(CloseReason::ProxyHeader), 0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_names_its_clients() {
    let service = Service::start().await;
    let scratch = Scratch::new();
    let app = service.addr;
    let proxy = nginx(&scratch, |front| {
        format!("stream {{ server {{ listen {front}; proxy_pass {app}; proxy_protocol on; }} }}\n")
    });

    let (mut stream, local) = connect(proxy.addr).await;
    let facts = ask(&mut stream).await;

    has(&facts, &[&format!("peer={local} "), "version=V1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_names_itself() {
    let service = Service::start().await;
    let url = format!("http://{}/", service.addr);

    let printed = tokio::task::spawn_blocking(move || {
        output(Command::new("curl").args([
            "--haproxy-protocol",
            "--include",
            "--silent",
            "--show-error",
            "--max-time",
            "60",
            &url,
        ]))
    });
    let facts = printed.await.unwrap();

    let [peer, wire] = ["peer=", "wire="].map(|name| {
        let found = facts.split_once(name);
        let (_, value) = found.unwrap_or_else(|| panic!("{name} is not in: {facts}"));
        value.split(' ').next().unwrap()
    });
    assert_eq!(peer, wire);
    has(&facts, &["version=V1", "command=Proxy"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_greets_whom_haproxy_names_by_the_configuration_beside_it() {
    let mut app = Process::start("behind_proxy", "--listen 127.0.0.1:0");
    let Listening::Tcp(addr) = app.listening() else {
        panic!("it listens on TCP");
    };
    let proxy = Tool::listening(|front| {
        let config =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/behind_proxy/haproxy.cfg");
        let mut command = Command::new("haproxy");
        command
            .arg("-f")
            .arg(config)
            .env("FRONT", front.to_string())
            .env("APP", addr.to_string());
        command
    });

    let (mut stream, local) = connect(proxy.addr).await;
    let greeting = ask(&mut stream).await;

    let hello = format!("hello {local}, through 127.0.0.1:");
    let to = format!(", to {}, as {local}-", proxy.addr);
    has(&greeting, &[&hello, &to, ", checksum "]);
    drop((stream, proxy));
    app.terminate();
    while app.line().is_some() {}
    let (code, errors) = app.end();
    assert_eq!(code, 0, "{errors}");
}

// === Clients by hand

#[tokio::test(flavor = "multi_thread")]
async fn a_header_in_single_bytes_is_put_together() {
    let service = Service::start().await;
    let (mut stream, _) = connect(service.addr).await;

    let client = "192.0.2.7:4711".parse().unwrap();
    let header = Header::tcp(Version::V2, client, service.addr).unwrap();
    let wire = header.crc32c().encode().unwrap();
    for byte in wire {
        stream.write_all(&[byte]).await.unwrap();
        sleep(Duration::from_millis(1)).await;
    }
    let facts = ask(&mut stream).await;

    has(&facts, &["peer=192.0.2.7:4711 ", "checked=true"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_reset_and_one_that_may_come_directly_is_served_untouched() {
    // All of 127.0.0.0/8 is this host.
    let narrow = || ProxyProtocolLayer::required_from(["127.0.0.9"]).unwrap();
    for (service, served) in [
        (Service::with(|_| narrow()).await, false),
        (
            Service::with(|_| narrow().others(Others::Direct)).await,
            true,
        ),
    ] {
        if served {
            let (mut stream, local) = connect(service.addr).await;
            let facts = ask(&mut stream).await;
            has(&facts, &[&format!("peer={local} wire={local}")]);
            assert!(!facts.contains("version"), "{facts}");
            assert_eq!(service.outcome("direct"), 1.0);
        } else {
            // The reset may be there before the connect has returned.
            if let Ok(mut stranger) = Peer::try_connect(service.addr).await {
                assert_eq!(stranger.end().await, (0, End::Reset));
            }
            until(|| service.outcome("untrusted") == 1.0).await;
        }
        let proxy = TcpSocket::new_v4().unwrap();
        let from = (Ipv4Addr::new(127, 0, 0, 9), 0);
        proxy.bind(from.into()).unwrap();
        let mut stream = soon(proxy.connect(service.addr))
            .await
            .unwrap();
        stream
            .write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
            .await
            .unwrap();
        has(
            &ask(&mut stream).await,
            &["peer=192.0.2.7:4711 wire=127.0.0.9:"],
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_half_headers_are_closed_on_time_and_keep_nobody_out() {
    let (flood, within) = (500, Duration::from_secs(4));
    let handshakes = Handshakes::new(2 * flood, within).unwrap();
    let service = Service::with(|layer| layer.handshakes(handshakes.clone())).await;
    let mut half = Vec::new();
    for _ in 0..flood {
        let (mut stream, _) = connect(service.addr).await;
        let begun = Instant::now();
        stream
            .write_all(b"PROXY TCP4 192.0.2.7 192.0.")
            .await
            .unwrap();
        half.push((Peer { stream }, begun));
    }
    until(|| service.tally.snapshot().opened() == flood as u64).await;

    let (mut good, _) = connect(service.addr).await;
    good.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
        .await
        .unwrap();
    let facts = ask(&mut good).await;
    let pending = handshakes.pending();
    for (mut peer, begun) in half {
        assert_eq!(peer.end().await, (0, End::Closed));
        // Accepted a moment before or after, and the clock of the runtime goes by the millisecond.
        let waited = begun.elapsed() + Duration::from_millis(500);
        assert!(waited >= within, "{waited:?}");
    }

    has(&facts, &["peer=192.0.2.7:4711 "]);
    assert!(
        pending > 0,
        "they were still there when the good one was served"
    );
    assert_eq!(handshakes.pending(), 0);
    drop(good);
    let report = service.drained().await;
    let closed = report.closed_for(CloseReason::ProxyTimeout);
    assert_eq!(closed, flood as u64, "{report}");
}

// === Our own headers, to receivers of others

/// Asks an HTTP receiver whom it takes for its client.
async fn told(to: SocketAddr, version: Version) -> String {
    let client: SocketAddr = "192.0.2.7:4711".parse().unwrap();
    let connector = service_fn(async |to: SocketAddr| {
        let stream = TcpStream::connect(to).await?;
        Conn::try_from(stream)
    });
    let layer = ProxyConnectLayer::new(move |to: &SocketAddr, _: &ConnInfo| {
        let header = Header::tcp(version, client, *to)?;
        if version == Version::V1 {
            return Ok::<_, EncodeError>(header);
        }
        let header = header.authority("example.com")?;
        Ok(header.unique_id("id-1")?.crc32c())
    });
    let connector = ServiceBuilder::new()
        .layer(layer)
        .service(connector);

    let mut conn = soon(connector.oneshot(to))
        .await
        .unwrap();
    conn.write_all(b"GET / HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    let mut response = String::new();
    soon(conn.read_to_string(&mut response))
        .await
        .unwrap();
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_reads_our_headers() {
    let scratch = Scratch::new();
    let receiver = nginx(&scratch, |front| {
        format!(
            "http {{ access_log off; server {{ listen {front} proxy_protocol; location / {{ \
             return 200 \"client=$proxy_protocol_addr:$proxy_protocol_port\\n\"; }} }} }}\n"
        )
    });

    for version in [Version::V1, Version::V2] {
        let response = told(receiver.addr, version).await;
        has(&response, &["client=192.0.2.7:4711"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_reads_our_headers_and_finds_their_checksum_right() {
    let scratch = Scratch::new();
    let receiver = Tool::listening(|front| {
        let config = format!(
            "global\n maxconn 100\n\
             defaults\n mode http\n timeout client 60s\n timeout connect 10s\n timeout server 60s\n\
             frontend front\n bind {front} accept-proxy\n http-request return status 200 \
             content-type text/plain lf-string \"client=%ci:%cp host=%[fc_pp_authority] id=%[fc_pp_unique_id]\"\n"
        );
        let mut command = Command::new("haproxy");
        command
            .arg("-f")
            .arg(scratch.file("haproxy.cfg", &config));
        command
    });

    let first = told(receiver.addr, Version::V1).await;
    let second = told(receiver.addr, Version::V2).await;

    has(&first, &["client=192.0.2.7:4711 "]);
    has(&second, &["client=192.0.2.7:4711 host=example.com id=id-1"]);
}
