//! An axum application like any other; it knows nothing of what serves it.

use std::{convert::Infallible, future::pending, net::SocketAddr, pin::pin, time::Duration};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{
        ConnectInfo, Path,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::Version,
    response::{
        Response,
        sse::{Event, Sse},
    },
    routing::{any, get, post},
};
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tower_net::ConnHandle;

pub(crate) const HELP: &str = "\
  GET /                 a greeting
  GET /whoami           who the client is, as text
  POST /add             {\"a\": 1, \"b\": 2} and their sum, as JSON
  POST /length          how long the body is
  GET /bytes/N          so many bytes
  GET /slow/MS          a greeting that takes so long
  GET /events           an event every 100 ms, without end
  /ws                   a WebSocket that echoes
  /ws/count             a WebSocket that counts to three, and ends";

pub(crate) fn router() -> Router {
    Router::new()
        .route("/", get("hello\n"))
        .route("/whoami", get(whoami))
        .route("/add", post(add))
        .route("/length", post(length))
        .route("/bytes/{count}", get(bytes))
        .route("/slow/{millis}", get(slow))
        .route("/events", get(events))
        .route("/ws", any(websocket))
        .route("/ws/count", any(count))
}

async fn whoami(ConnectInfo(peer): ConnectInfo<SocketAddr>, version: Version) -> String {
    format!("{peer} {version:?}\n")
}

#[derive(Deserialize)]
struct Terms {
    a: i64,
    b: i64,
}

#[derive(Serialize)]
struct Sum {
    sum: i64,
}

async fn add(Json(terms): Json<Terms>) -> Json<Sum> {
    Json(Sum {
        sum: terms.a.saturating_add(terms.b),
    })
}

async fn length(body: Bytes) -> String {
    format!("{}\n", body.len())
}

async fn bytes(Path(count): Path<usize>) -> Vec<u8> {
    vec![b'x'; count.min(MOST_BYTES)]
}

async fn slow(Path(millis): Path<u64>) -> &'static str {
    sleep(Duration::from_millis(millis)).await;
    "hello at last\n"
}

async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(stream::unfold(1_u64, async |number| {
        sleep(TICK).await;
        Some((Ok(Event::default().data(number.to_string())), number + 1))
    }))
}

/// Under `HttpLayer` every request has the handle to its connection, and the socket hears of a drain through it.
async fn websocket(upgrade: WebSocketUpgrade, conn: Option<Extension<ConnHandle>>) -> Response {
    upgrade.on_upgrade(async |socket| echo(socket, conn.map(|Extension(conn)| conn)).await)
}

async fn count(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket| {
        for number in 1..=3 {
            let message = Message::from(number.to_string());
            if socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

/// Echoes, and says goodbye when it is told to leave.
async fn echo(mut socket: WebSocket, conn: Option<ConnHandle>) {
    let mut told = pin!(async {
        match &conn {
            Some(conn) => {
                conn.told_to_leave().await;
            }
            None => pending().await,
        }
    });
    let mut leaving = false;
    loop {
        let reply = tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => message,
                // The library answers pings itself.
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => return,
            },
            () = &mut told, if !leaving => {
                leaving = true;
                Message::Close(Some(CloseFrame {
                    code: close_code::AWAY,
                    reason: "going away".into(),
                }))
            }
        };
        if socket.send(reply).await.is_err() {
            return;
        }
    }
}

/// A peer that does not read is to cost us no more than this.
const MOST_BYTES: usize = 16 << 20;

const TICK: Duration = Duration::from_millis(100);
