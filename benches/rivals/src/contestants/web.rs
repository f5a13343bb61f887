//! HTTP servers, the same axum `Router` each: axum alone, behind our guards, and below our own crossing to HTTP.

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::task::yield_now;
use tower::ServiceBuilder;
use tower_net::Server;
use tower_net::guard::{Guard, Settings};
use tower_net::http::HttpLayer;
use tower_net::listen::Tcp;

use crate::web::{ANSWER, AT_ONCE, LATER};

pub(super) async fn bare(listener: TcpListener) {
    let listener = listener.tap_io(|stream| {
        stream
            .set_nodelay(true)
            .expect("a TCP socket");
    });
    let served = axum::serve(listener, router()).await;
    served.expect("a listener");
}

pub(super) async fn guarded(listener: TcpListener) {
    let incoming = guard()
        .listen(no_delay(listener))
        .request_deadline(Duration::from_secs(30))
        .expect("not zero");
    let served = axum::serve(incoming.for_axum(), router()).await;
    served.expect("a listener");
}

pub(super) async fn crossing(listener: TcpListener) {
    let stack = ServiceBuilder::new()
        .layer(guard())
        .layer(HttpLayer::default())
        .service(router());
    let served = Server::new(no_delay(listener))
        .serve(stack)
        .await;
    served.expect("a runtime with timers");
}

fn router() -> Router {
    let later = || async {
        yield_now().await;
        ANSWER
    };
    Router::new()
        .route(AT_ONCE, get(async || ANSWER))
        .route(LATER, get(later))
}

/// Every guard at its default; all clients here are one peer, and come at once.
fn guard() -> Guard {
    let settings = Settings::default()
        .service("web")
        .per_peer(10_000)
        .connect_rate(10_000.0, 10_000);
    Guard::new(settings).expect("no limit is zero")
}

fn no_delay(listener: TcpListener) -> Tcp {
    let nodelay = socket2::SockRef::from(&listener).set_tcp_nodelay(true);
    nodelay.expect("a TCP socket");
    Tcp::from(listener)
}
