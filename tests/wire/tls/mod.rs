//! TLS over real sockets: real clients, crowds of bad ones, and certificates that change under load.

mod crowd;
mod example;
mod openssl;
mod outgoing;
mod reload;

use std::{fmt::Write, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_rustls::{client::TlsStream, rustls::ClientConfig};
use tower::ServiceBuilder;
use tower_net::{
    Handshakes, Report, Server,
    deadline::DeadlineLayer,
    frame::{Delimited, FrameLayer, Request},
    listen::Tcp,
    meter::{MeterLayer, Tally},
    tls::{PemFiles, Reload, TlsAcceptLayer},
};

use crate::{
    peer::soon,
    stack::Loop,
    support::{
        pki::{Authority, Folder, Pair, connect_with, provider},
        readings::{Readings, recorded},
    },
};

/// An authority, its files, and a server of lines that has its certificate from there.
struct Town {
    authority: Authority,
    folder: Folder,
    authority_file: PathBuf,
    reload: Reload,
    handshakes: Handshakes,
    tally: Tally,
    metrics: Readings,
    addr: SocketAddr,
    server: Loop,
}

/// What a test sets differently.
#[derive(Default)]
struct Settings {
    handshakes: Option<Handshakes>,
    asks_clients: bool,
}

impl Town {
    async fn start(settings: Settings) -> Self {
        let authority = Authority::new("town hall");
        let folder = Folder::new();
        let (chain, key) = authority
            .server(&["a.test"])
            .write(&folder, "a");
        let authority_file = folder.write("ca.pem", &authority.pem());
        let mut files = PemFiles::new(chain, key)
            .provider(provider())
            .alpn(["line", "http/1.1"]);
        if settings.asks_clients {
            files = files.require_client_certificates(&authority_file);
        }
        let handshakes = settings.handshakes.unwrap_or_default();
        let ((reload, tls, meter), metrics) = recorded(|| {
            let reload = files.load().unwrap();
            let tls = TlsAcceptLayer::new(reload.config()).handshakes(handshakes.clone());
            (reload, tls, MeterLayer::new("wire"))
        });
        let tally = meter.tally();
        let stack = ServiceBuilder::new()
            .layer(meter)
            .layer(tls)
            .layer(DeadlineLayer::default())
            .layer(FrameLayer::new(Delimited::lines(4 << 20)))
            .service_fn(answer);
        let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serve = Server::new(listener)
            .serve(stack)
            .drain_for(Duration::from_secs(20));
        Self {
            authority,
            folder,
            authority_file,
            reload,
            handshakes,
            tally,
            metrics,
            addr,
            server: Loop::spawn(serve.handle(), serve.into_future()),
        }
    }

    /// A new certificate, in the files.
    fn renew(&self) -> Pair {
        let pair = self.authority.server(&["a.test"]);
        pair.write(&self.folder, "a");
        pair
    }

    async fn connect(&self) -> Client {
        let client = Client::connect(self.addr, &Arc::new(self.authority.trusting())).await;
        client.unwrap()
    }

    fn outcome(&self, outcome: &str) -> f64 {
        self.metrics
            .of("tower_net_handshakes_total", &[("outcome", outcome)])
    }

    async fn drained(self) -> Report {
        let report = self.server.drained().await.unwrap();
        assert_eq!(self.handshakes.pending(), 0);
        assert_eq!(self.tally.snapshot().active(), 0);
        report
    }
}

/// A client of lines.
struct Client {
    io: BufReader<TlsStream<TcpStream>>,
}

impl Client {
    async fn connect(addr: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let tcp = soon(TcpStream::connect(addr)).await?;
        tcp.set_nodelay(true)?;
        let tls = soon(connect_with(config, "a.test", tcp)).await?;
        Ok(Self {
            io: BufReader::new(tls),
        })
    }

    async fn call(&mut self, line: &str) -> io::Result<String> {
        self.send(line).await?;
        self.hear().await
    }

    async fn send(&mut self, line: &str) -> io::Result<()> {
        let line = format!("{line}\n");
        soon(self.io.write_all(line.as_bytes())).await?;
        soon(self.io.flush()).await
    }

    async fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        soon(self.io.read_line(&mut line)).await?;
        Ok(line.trim_end().to_owned())
    }

    /// The certificate that it was shown.
    fn shown(&self) -> &[u8] {
        let (_, session) = self.io.get_ref().get_ref();
        &session.peer_certificates().unwrap()[0]
    }
}

/// | request | reply |
/// |---|---|
/// | `whoami` | what the handshake settled |
/// | `big 20` | twenty bytes, and the connection ends |
/// | `bye` | the same, and the connection ends |
/// | anything else | the same |
async fn answer(line: Request<Bytes>) -> io::Result<Bytes> {
    let text = String::from_utf8_lossy(line.message()).into_owned();
    match text.split_once(' ') {
        Some(("big", length)) => {
            line.conn().close_after_reply();
            return Ok(vec![b'x'; length.parse().unwrap()].into());
        }
        None if text == "bye" => line.conn().close_after_reply(),
        None if text == "whoami" => {
            let tls = line.conn().tls().unwrap();
            let alpn = String::from_utf8_lossy(tls.alpn().unwrap_or_default()).into_owned();
            let mut known = format!("{} alpn={alpn}", tls.version());
            write!(known, " sni={}", tls.server_name().unwrap_or_default()).unwrap();
            write!(
                known,
                " client={}",
                tls.client_subject().unwrap_or_default()
            )
            .unwrap();
            write!(known, " resumed={}", tls.is_resumed()).unwrap();
            return Ok(known.into());
        }
        _ => {}
    }
    Ok(line.into_message())
}
