//! A small pipelined client: many calls in flight on one connection, their replies in order.

use std::{
    io,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpStream, ToSocketAddrs,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::codec::{Encoder, FramedRead};
use tower_net::error::BoxError;

use crate::protocol::{Call, ClientCodec, Reply};

/// A handle to one connection; clones share it, and the last one dropped closes it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    asks: mpsc::Sender<Ask>,
    ended: Arc<OnceLock<String>>,
}

#[derive(Debug)]
struct Ask {
    frame: Bytes,
    reply: oneshot::Sender<Reply>,
}

impl Client {
    /// Connects, within a few seconds.
    pub(crate) async fn connect(addr: impl ToSocketAddrs) -> io::Result<Self> {
        let stream = timeout(CONNECT, TcpStream::connect(addr)).await??;
        // Calls are written in batches already: to wait for more would only add latency.
        stream.set_nodelay(true)?;
        let (asks, queue) = mpsc::channel(IN_FLIGHT);
        let ended = Arc::new(OnceLock::new());
        #[expect(
            clippy::disallowed_methods,
            reason = "ends by itself: with the connection, or soon after the last handle"
        )]
        tokio::spawn(run(stream, queue, Arc::clone(&ended)));
        Ok(Self { asks, ended })
    }

    /// Asks, and waits for the reply.
    ///
    /// An error says that the connection ended first, and why. Whether the call took effect is not known,
    /// unless the server drained: then what was not answered was never begun.
    pub(crate) async fn call(&self, call: Call) -> Result<Reply, BoxError> {
        // Encoded here, so that a call that is too large fails alone.
        let mut frame = BytesMut::new();
        ClientCodec::new().encode(call, &mut frame)?;
        let (reply, answer) = oneshot::channel();
        let frame = frame.freeze();
        if self
            .asks
            .send(Ask { frame, reply })
            .await
            .is_ok()
        {
            if let Ok(reply) = answer.await {
                return Ok(reply);
            }
        }
        let why = self
            .ended
            .get()
            .map_or("connection is closing", |why| why);
        Err(why.into())
    }
}

/// The connection's task: says why it is over before it lets go of those who wait.
async fn run(stream: TcpStream, mut asks: mpsc::Receiver<Ask>, ended: Arc<OnceLock<String>>) {
    let (from, to) = stream.into_split();
    let (asked, mut unanswered) = mpsc::channel(IN_FLIGHT);
    let result = {
        let mut receiving = pin!(receive(from, &mut unanswered));
        tokio::select! {
            result = &mut receiving => result,
            // Replies come after the last call, and even after a write has failed.
            _ = send(to, &mut asks, asked) => receiving.await,
        }
    };
    ended.get_or_init(|| match result {
        Ok(()) => "server closed the connection".to_owned(),
        Err(error) => error.to_string(),
    });
}

/// Writes calls in batches, as they come.
async fn send(
    mut to: OwnedWriteHalf,
    asks: &mut mpsc::Receiver<Ask>,
    asked: mpsc::Sender<oneshot::Sender<Reply>>,
) -> Result<(), BoxError> {
    let (mut batch, mut output) = (Vec::new(), BytesMut::new());
    while asks
        .recv_many(&mut batch, IN_FLIGHT)
        .await
        > 0
    {
        for Ask { frame, reply } in batch.drain(..) {
            if asked.capacity() == 0 {
                // Room is made by replies, and nobody replies to what was not sent.
                to.write_all_buf(&mut output).await?;
            }
            asked.send(reply).await?;
            output.extend_from_slice(&frame);
        }
        to.write_all_buf(&mut output).await?;
    }
    Ok(to.shutdown().await?)
}

/// Hands each reply to whoever has waited longest.
async fn receive(
    from: OwnedReadHalf,
    unanswered: &mut mpsc::Receiver<oneshot::Sender<Reply>>,
) -> Result<(), BoxError> {
    let mut replies = FramedRead::new(from, ClientCodec::new());
    while let Some(reply) = replies.next().await {
        let reply = reply?;
        let Ok(caller) = unanswered.try_recv() else {
            return Err(format!("server says, unasked: {reply}").into());
        };
        // A caller that has given up meanwhile needs no answer.
        let _gone = caller.send(reply);
    }
    Ok(())
}

/// As deep as the server's pipeline: more would only wait there instead of here.
const IN_FLIGHT: usize = 64;

/// For one round trip, and a lost packet or two.
const CONNECT: Duration = Duration::from_secs(5);
