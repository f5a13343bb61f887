//! The other end of the RPC framing, as obedient or as wrong as a test needs it, and a connector that leads to it.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
};
use tokio_util::codec::Framed;
use tower::{Service, service_fn};
use tower_net::{
    Conn,
    frame::{RpcCode, RpcCodec, RpcFailure, RpcFrame},
};

/// Peers in memory: each connection that is made through the connector comes out here.
#[derive(Debug)]
pub struct Peers {
    arriving: mpsc::UnboundedReceiver<DuplexStream>,
    made: Connects,
}

/// How often somebody tried to connect, and how often that is to fail.
#[derive(Debug, Clone, Default)]
pub struct Connects {
    tried: Arc<AtomicUsize>,
    fail: Arc<AtomicUsize>,
}

impl Connects {
    pub fn tried(&self) -> usize {
        self.tried.load(Relaxed)
    }

    /// So many attempts will fail from now on.
    pub fn fail(&self, times: usize) {
        self.fail.store(times, Relaxed);
    }
}

/// A connector, and where its connections lead; with room for so many bytes each way.
pub fn peers(
    room: usize,
) -> (
    impl Service<
        (),
        Response = Conn<DuplexStream>,
        Error = io::Error,
        Future = impl Future<Output = io::Result<Conn<DuplexStream>>> + Send,
    > + Clone
    + Send
    + 'static,
    Peers,
) {
    let (sender, arriving) = mpsc::unbounded_channel();
    let made = Connects::default();
    let connects = made.clone();
    let connector = service_fn(move |(): ()| {
        let (sender, connects) = (sender.clone(), connects.clone());
        async move {
            connects.tried.fetch_add(1, Relaxed);
            let left = connects.fail.load(Relaxed);
            if left > 0 {
                connects.fail.store(left - 1, Relaxed);
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused));
            }
            let (near, far) = duplex(room);
            let _gone = sender.send(far);
            Ok(Conn::new(near, ()))
        }
    });
    (connector, Peers { arriving, made })
}

impl Peers {
    pub fn connects(&self) -> Connects {
        self.made.clone()
    }

    /// The next connection.
    pub async fn next(&mut self) -> Peer {
        Peer::new(self.io().await)
    }

    /// The next connection, as bytes.
    pub async fn io(&mut self) -> DuplexStream {
        self.arriving.recv().await.unwrap()
    }

    /// Whether one is there.
    pub fn try_next(&mut self) -> Option<Peer> {
        self.arriving
            .try_recv()
            .ok()
            .map(Peer::new)
    }
}

/// One end of a connection that speaks the RPC framing.
#[derive(Debug)]
pub struct Peer {
    frames: Framed<DuplexStream, RpcCodec>,
}

/// A request as it arrived.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    pub id: u64,
    pub left: Option<Duration>,
    pub text: String,
}

impl Peer {
    pub fn new(io: DuplexStream) -> Self {
        Self {
            frames: Framed::new(io, RpcCodec::max_payload(1 << 20)),
        }
    }

    /// The next frame; none at the end of the stream.
    pub async fn frame(&mut self) -> Option<RpcFrame> {
        self.frames
            .next()
            .await
            .map(Result::unwrap)
    }

    /// The next frame, which must be a request.
    pub async fn asked(&mut self) -> Asked {
        match self.frame().await {
            Some(RpcFrame::Request {
                id, left, payload, ..
            }) => Asked {
                id,
                left,
                text: String::from_utf8(payload.to_vec()).unwrap(),
            },
            other => panic!("not a request: {other:?}"),
        }
    }

    pub async fn say(&mut self, frame: RpcFrame) {
        self.frames.send(frame).await.unwrap();
    }

    pub async fn reply(&mut self, id: u64, text: impl Into<String>) {
        let text = Bytes::from(text.into());
        self.say(RpcFrame::reply(id, text))
            .await;
    }

    /// Answers one request with its own words.
    pub async fn echo(&mut self) -> Asked {
        let asked = self.asked().await;
        self.reply(asked.id, asked.text.clone())
            .await;
        asked
    }

    /// Refuses one request.
    pub async fn refuse(&mut self) -> Asked {
        let asked = self.asked().await;
        let failure = RpcFailure::never_started(RpcCode::Refused, "not now");
        self.say(RpcFrame::failure(asked.id, failure))
            .await;
        asked
    }

    /// Answers everything with its own words, until the end.
    pub async fn serve(mut self) {
        while let Some(frame) = self.frame().await {
            if let RpcFrame::Request { id, payload, .. } = frame {
                if self
                    .frames
                    .send(RpcFrame::reply(id, payload))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        }
    }

    pub async fn raw(&mut self, bytes: &[u8]) {
        self.frames
            .get_mut()
            .write_all(bytes)
            .await
            .unwrap();
    }

    pub fn into_io(self) -> DuplexStream {
        self.frames.into_inner()
    }
}
