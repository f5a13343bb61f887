//! `framed_feed`: `Framed` used well. Replies are fed while requests are at hand, and flushed when
//! the next one has to be waited for.

use std::io;

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::accept_each;

pub(super) async fn serve(listener: TcpListener) {
    accept_each(listener, connection).await;
}

async fn connection(stream: TcpStream) -> io::Result<()> {
    let mut framed = Framed::new(stream, LengthDelimitedCodec::new());
    loop {
        let next = match framed.next().now_or_never() {
            Some(next) => next,
            None => {
                SinkExt::<Bytes>::flush(&mut framed).await?;
                framed.next().await
            }
        };
        let Some(frame) = next else {
            return SinkExt::<Bytes>::flush(&mut framed).await;
        };
        framed.feed(frame?.freeze()).await?;
    }
}
