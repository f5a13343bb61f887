//! `bare`: the least memory a connection can take on tokio, a task that holds no buffer. It waits
//! for readiness, reads to the stack and writes back what came, whole frames or not: enough for the
//! one exchange before a connection idles, and no more.

use std::io;

use tokio::net::{TcpListener, TcpStream};

use super::accept_each;

pub(super) async fn serve(listener: TcpListener) {
    accept_each(listener, connection).await;
}

async fn connection(stream: TcpStream) -> io::Result<()> {
    loop {
        stream.readable().await?;
        match echo(&stream) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Not async, so that the buffer is not part of the task.
fn echo(stream: &TcpStream) -> io::Result<usize> {
    let mut buffer = [0; 4096];
    let n = stream.try_read(&mut buffer)?;
    if n > 0 && stream.try_write(&buffer[..n])? < n {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(n)
}
