//! `framed_timeout`: `framed` with the protection most services settle for, a
//! `tokio::time::timeout` around each read and each write.

use std::io;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::{DEADLINE, accept_each};

pub(super) async fn serve(listener: TcpListener) {
    accept_each(listener, connection).await;
}

async fn connection(stream: TcpStream) -> io::Result<()> {
    let mut framed = Framed::new(stream, LengthDelimitedCodec::new());
    while let Some(frame) = timeout(DEADLINE, framed.next()).await? {
        timeout(DEADLINE, framed.send(frame?.freeze())).await??;
    }
    Ok(())
}
