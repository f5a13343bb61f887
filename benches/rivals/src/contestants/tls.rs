//! TLS servers that echo: tokio-rustls by hand, our layer over the same echo, and our whole stack.
//!
//! All have one configuration: TLS 1.3, a P-256 certificate of their own making, 256 sessions to resume.

use std::{future::ready, io, sync::Arc};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::version::TLS13;
use tower::{ServiceBuilder, service_fn};
use tower_net::{
    Conn, Server,
    deadline::DeadlineLayer,
    frame::{Delimited, FrameLayer, Request},
    limit::ConnectionLimitLayer,
    listen::Tcp,
    meter::MeterLayer,
    tls::TlsAcceptLayer,
    trace::TraceLayer,
};

use super::{accept_each, no_delay};

pub(super) async fn bare(listener: TcpListener) {
    let acceptor = TlsAcceptor::from(config());
    accept_each(listener, move |stream| {
        let acceptor = acceptor.clone();
        async move { echo(acceptor.accept(stream).await?).await }
    })
    .await;
}

pub(super) async fn layer(listener: TcpListener) {
    no_delay(&listener);
    let stack = ServiceBuilder::new()
        .layer(TlsAcceptLayer::new(config()))
        .service(service_fn(|conn: Conn<_>| echo(conn)));
    let served = Server::new(Tcp::from(listener))
        .serve(stack)
        .await;
    served.expect("a runtime with timers");
}

pub(super) async fn stack(listener: TcpListener) {
    no_delay(&listener);
    let stack = ServiceBuilder::new()
        .layer(MeterLayer::new("echo"))
        .layer(ConnectionLimitLayer::new(10_000).expect("not zero"))
        .layer(TraceLayer::new())
        .layer(TlsAcceptLayer::new(config()))
        .layer(DeadlineLayer::default())
        .layer(FrameLayer::new(Delimited::lines(64)))
        .service_fn(|request: Request<Bytes>| ready(Ok::<_, io::Error>(request.into_message())));
    let served = Server::new(Tcp::from(listener))
        .serve(stack)
        .await;
    served.expect("a runtime with timers");
}

/// Whatever comes, through a small buffer, as a task that idles would have it.
async fn echo(mut io: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = [0; 64];
    loop {
        let read = io.read(&mut buffer).await?;
        if read == 0 {
            return io.shutdown().await;
        }
        io.write_all(&buffer[..read]).await?;
        io.flush().await?;
    }
}

fn config() -> Arc<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("known")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into());
    Arc::new(config.expect("a pair"))
}
