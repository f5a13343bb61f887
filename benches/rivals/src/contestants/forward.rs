//! Proxies of one stream: tokio's own copy, our forward with its bytes in pipes and in buffers, all guards around it.

use std::io;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tower::{Service, ServiceBuilder, service_fn};
use tower_net::deadline::DeadlineLayer;
use tower_net::error::BoxError;
use tower_net::forward::Forward;
use tower_net::guard::{Guard, Settings};
use tower_net::io::OpaqueIo;
use tower_net::listen::Tcp;
use tower_net::meter::MeterLayer;
use tower_net::{Conn, Server};

use super::{accept_each, no_delay};
use crate::forward::upstream;

pub(super) async fn copy(listener: TcpListener) {
    accept_each(listener, |mut client| async move {
        let mut upstream = TcpStream::connect(upstream()).await?;
        upstream.set_nodelay(true)?;
        copy_bidirectional(&mut client, &mut upstream).await?;
        Ok(())
    })
    .await;
}

pub(super) async fn splice(listener: TcpListener) {
    serve(listener, forward()).await;
}

/// What only counts the bytes leaves them in the pipes.
pub(super) async fn metered(listener: TcpListener) {
    let stack = ServiceBuilder::new()
        .layer(MeterLayer::new("proxy"))
        .layer(DeadlineLayer::default())
        .service(forward());
    serve(listener, stack).await;
}

pub(super) async fn guard(listener: TcpListener) {
    let guard = Guard::new(Settings::default()).expect("good settings");
    let stack = ServiceBuilder::new()
        .layer(guard)
        .service(forward());
    serve(listener, stack).await;
}

/// With a stream in between that hides what is below.
pub(super) async fn buffers(listener: TcpListener) {
    let stack = ServiceBuilder::new()
        .map_request(|conn: Conn<TcpStream>| conn.map_io(OpaqueIo::new))
        .service(forward());
    serve(listener, stack).await;
}

fn forward() -> Forward<
    impl Service<(), Response = Conn<TcpStream>, Error = io::Error, Future: Send>
    + Clone
    + Send
    + 'static,
    (),
> {
    let dial = service_fn(async |()| {
        let stream = TcpStream::connect(upstream()).await?;
        stream.set_nodelay(true)?;
        stream.try_into()
    });
    Forward::to(dial, ())
}

async fn serve<S>(listener: TcpListener, stack: S)
where
    S: Service<Conn<TcpStream>, Response = (), Future: Send> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
{
    no_delay(&listener);
    let served = Server::new(Tcp::from(listener))
        .serve(stack)
        .await;
    served.expect("a runtime with timers");
}
