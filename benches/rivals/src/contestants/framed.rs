//! `framed`: the loop of the tutorials. `tokio-util`'s `Framed` with its length-delimited codec,
//! and a `send`, which flushes, for each reply.

use std::io;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::accept_each;

pub(super) async fn serve(listener: TcpListener) {
    accept_each(listener, connection).await;
}

async fn connection(stream: TcpStream) -> io::Result<()> {
    let mut framed = Framed::new(stream, LengthDelimitedCodec::new());
    while let Some(frame) = framed.next().await {
        framed.send(frame?.freeze()).await?;
    }
    Ok(())
}
