//! What the layer adds to a handshake, beside the same handshake with tokio-rustls alone. A resumed one of TLS 1.2 costs
//! no public key, so that what the layer does is not lost in it. Both include the client's part.

#[allow(
    dead_code,
    reason = "the other benches use all of it, this one has a peer of its own"
)]
mod harness;

use std::{io, sync::Arc};

use harness::Scene;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, HandshakeKind, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{PrivatePkcs8KeyDer, ServerName},
        version::TLS12,
    },
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_net::{
    Conn,
    tls::{TlsAcceptLayer, TlsIo},
};

const SCENES: &[Scene] = &[
    ("tokio-rustls", |rounds| run(rounds, bare)),
    ("tls", |rounds| run(rounds, layered)),
];

fn main() {
    harness::main(
        "tls",
        "a resumed handshake, both sides of it, and one byte",
        SCENES,
    );
}

async fn bare(config: Arc<ServerConfig>, rounds: u64, client: Client) {
    let acceptor = TlsAcceptor::from(config);
    for _ in 0..rounds {
        let (near, far) = duplex(16 * 1024);
        let serve = async {
            let io = acceptor
                .accept(near)
                .await
                .expect("a handshake");
            echo_one(io).await
        };
        let (served, ()) = tokio::join!(serve, client.connect(far));
        served.expect("a clean end");
    }
}

async fn layered(config: Arc<ServerConfig>, rounds: u64, client: Client) {
    let service = service_fn(async |conn: Conn<TlsIo<DuplexStream>>| echo_one(conn).await);
    let mut stack = ServiceBuilder::new()
        .layer(TlsAcceptLayer::new(config))
        .service(service);
    for _ in 0..rounds {
        let (near, far) = duplex(16 * 1024);
        let serve = async {
            let ready = stack.ready().await?;
            tower::Service::call(ready, Conn::new(near, ())).await
        };
        let (served, ()) = tokio::join!(serve, client.connect(far));
        served.expect("a clean end");
    }
}

async fn echo_one(mut io: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let byte = io.read_u8().await?;
    io.write_u8(byte).await?;
    io.flush().await
}

/// A client that has a session to resume.
#[derive(Clone)]
struct Client(Arc<ClientConfig>);

impl Client {
    async fn connect(&self, io: DuplexStream) {
        let name = ServerName::try_from("localhost").expect("a name");
        let connecting = TlsConnector::from(Arc::clone(&self.0)).connect(name, io);
        let mut io = connecting.await.expect("a handshake");
        io.write_u8(7).await.expect("sent");
        io.flush().await.expect("sent");
        assert_eq!(io.read_u8().await.expect("heard"), 7);
        let kind = io.get_ref().1.handshake_kind();
        FULL.with(|full| full.set(full.get() + u64::from(kind != Some(HandshakeKind::Resumed))));
    }
}

thread_local! {
    /// Handshakes that were not resumed.
    static FULL: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

fn run<F>(rounds: u64, serve: fn(Arc<ServerConfig>, u64, Client) -> F)
where
    F: Future<Output = ()>,
{
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS12])
        .expect("known")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a pair");
    let mut roots = RootCertStore::empty();
    roots
        .add(made.cert.der().clone())
        .expect("a certificate");
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS12])
        .expect("known")
        .with_root_certificates(roots)
        .with_no_client_auth();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let serving = serve(Arc::new(config), rounds, Client(Arc::new(client)));
    runtime
        .expect("a runtime")
        .block_on(serving);
    assert_eq!(FULL.get(), 1, "only the first one is not resumed");
}
