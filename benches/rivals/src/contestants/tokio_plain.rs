//! `tokio`: what a careful person writes by hand, and the baseline of the ratios. A buffer for each
//! connection, 64 KiB reads, frames found in place, one write for all frames one read completed.
//! No limits but the frame length, no deadlines.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::accept_each;
use crate::wire::Inbox;

pub(super) async fn serve(listener: TcpListener) {
    accept_each(listener, connection).await;
}

async fn connection(mut stream: TcpStream) -> io::Result<()> {
    let mut inbox = Inbox::new();
    loop {
        let n = stream.read(inbox.spare()).await?;
        if n == 0 {
            return Ok(());
        }
        inbox.received(n)?;
        stream.write_all(inbox.whole()).await?;
        inbox.consume();
    }
}
