use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_util::net::Listener;

use crate::{
    base::io::{Io, Pipe},
    conn::Addr,
    edge::listen::{Tcp, TcpOptions, Unix, UnixOptions},
};

/// A TCP or Unix listener, by an address in a string.
#[derive(Debug)]
#[non_exhaustive]
pub enum Any {
    /// A host and port.
    Tcp(Tcp),
    /// A path.
    Unix(Unix),
}

impl Any {
    /// Listens at `addr`: `unix:` and a path, or a host and port.
    ///
    /// # Errors
    ///
    /// As binding the one or the other.
    pub async fn bind(addr: &str) -> io::Result<Self> {
        Self::bind_with(addr, &TcpOptions::default(), &UnixOptions::default()).await
    }

    /// Listens at `addr` with options for whichever it is.
    ///
    /// # Errors
    ///
    /// As binding the one or the other.
    pub async fn bind_with(addr: &str, tcp: &TcpOptions, unix: &UnixOptions) -> io::Result<Self> {
        match addr.strip_prefix("unix:") {
            Some(path) => unix.bind(path).map(Self::Unix),
            None => tcp.bind(addr).await.map(Self::Tcp),
        }
    }
}

impl Listener for Any {
    type Io = AnyIo;
    type Addr = Addr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(AnyIo, Addr)>> {
        match self {
            Self::Tcp(listener) => listener
                .poll_accept(cx)
                .map_ok(|(io, addr)| (AnyIo::Tcp(io), addr.into())),
            Self::Unix(listener) => listener
                .poll_accept(cx)
                .map_ok(|(io, addr)| (AnyIo::Unix(io), addr)),
        }
    }

    fn local_addr(&self) -> io::Result<Addr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Addr::from),
            Self::Unix(listener) => listener.local_addr(),
        }
    }
}

/// A stream of an [`Any`] listener.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyIo {
    /// From a TCP listener.
    Tcp(TcpStream),
    /// From a Unix listener.
    Unix(UnixStream),
}

macro_rules! either {
    ($any:expr, $io:ident => $use:expr) => {
        match $any {
            AnyIo::Tcp($io) => $use,
            AnyIo::Unix($io) => $use,
        }
    };
}

impl Io for AnyIo {
    fn socket(&self) -> Option<SockRef<'_>> {
        either!(self, io => io.socket())
    }

    fn takes_pipes(&self) -> bool {
        either!(self, io => io.takes_pipes())
    }

    fn poll_read_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_read_pipe(cx, pipe))
    }

    fn poll_write_pipe(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<io::Result<usize>> {
        either!(self, io => io.poll_write_pipe(cx, pipe))
    }
}

impl AsyncRead for AnyIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(&mut *self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for AnyIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(&mut *self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(&mut *self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut *self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(&mut *self, io => Pin::new(io).poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        either!(self, io => io.is_write_vectored())
    }
}
