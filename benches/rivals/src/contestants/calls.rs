//! Servers of calls that are answered by id: ours, with all its protection, tarpc and tonic as their examples have them.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tokio::net::TcpListener;
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tonic::server::{Grpc, NamedService, UnaryService};
use tower::{Service, ServiceBuilder};
use tower_net::Server;
use tower_net::deadline::DeadlineLayer;
use tower_net::frame::{Request, RpcLayer};
use tower_net::limit::ConnectionLimitLayer;
use tower_net::listen::Tcp;
use tower_net::meter::MeterLayer;
use tower_net::trace::TraceLayer;

use super::no_delay;
use crate::calls::{Raw, World, WorldEcho};
use crate::wire::MAX_PAYLOAD;

pub(super) async fn ours(listener: TcpListener) {
    let stack = ServiceBuilder::new()
        .layer(MeterLayer::new("echo"))
        .layer(ConnectionLimitLayer::new(10_000).expect("not zero"))
        .layer(TraceLayer::new())
        .layer(DeadlineLayer::default())
        .layer(RpcLayer::new(MAX_PAYLOAD))
        .service_fn(|request: Request<Bytes>| ready(Ok::<_, io::Error>(request.into_message())));
    no_delay(&listener);
    let served = Server::new(Tcp::from(listener))
        .serve(stack)
        .await;
    served.expect("a runtime with timers");
}

pub(super) async fn tarpc(listener: TcpListener) {
    no_delay(&listener);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let framed = Framed::new(stream, LengthDelimitedCodec::new());
        let transport = tarpc::serde_transport::new(framed, Bincode::default());
        let channel = BaseChannel::with_defaults(transport);
        let calls = channel
            .execute(WorldEcho.serve())
            .for_each(|call| async move {
                tokio::spawn(call);
            });
        tokio::spawn(calls);
    }
}

pub(super) async fn tonic(listener: TcpListener) {
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = tonic::transport::Server::builder()
        .add_service(Echo)
        .serve_with_incoming(incoming)
        .await;
    served.expect("a listener");
}

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "echo.Echo";
}

impl Service<http::Request<tonic::body::Body>> for Echo {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            Ok(Grpc::new(Raw)
                .unary(Unary, request)
                .await)
        })
    }
}

struct Unary;

impl UnaryService<Bytes> for Unary {
    type Response = Bytes;
    type Future = Ready<Result<tonic::Response<Bytes>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<Bytes>) -> Self::Future {
        ready(Ok(tonic::Response::new(request.into_inner())))
    }
}
