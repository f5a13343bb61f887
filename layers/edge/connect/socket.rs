use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::{
    base::io::reset_on_drop,
    conn::Conn,
    edge::{
        connect::error::NoAddress,
        options::{Keepalive, StreamOptions, stream_setters},
        sockopt::set_bind_address_no_port,
    },
};

/// Options of the sockets that a [`TcpConnector`](crate::connect::TcpConnector) opens.
#[derive(Debug, Clone, Default)]
pub struct SocketOptions {
    stream: StreamOptions,
    source_v4: Option<Ipv4Addr>,
    source_v6: Option<Ipv6Addr>,
    reset_on_close: bool,
}

impl SocketOptions {
    stream_setters!();

    /// Connects from this address of ours; say one of each family for both. With one of one family alone, addresses of
    /// the other are not tried. Default: the system chooses.
    ///
    /// The port is chosen at the connect (SO_REUSEADDR, IP_BIND_ADDRESS_NO_PORT), so that one source address has all
    /// its ports for each address that is connected to.
    #[must_use]
    pub fn source(mut self, addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(addr) => self.source_v4 = Some(addr),
            IpAddr::V6(addr) => self.source_v6 = Some(addr),
        }
        self
    }

    /// Closes every connection with a reset, which leaves nothing in TIME_WAIT and no port held. Default: off.
    ///
    /// A reset throws away what the other end has not read: only for protocols in which our last word is always
    /// answered. Where that is known of one connection at a time, call
    /// [`reset_on_drop`](crate::io::reset_on_drop) once its last answer is here, and leave this off.
    #[must_use]
    pub fn reset_on_close(mut self, on: bool) -> Self {
        self.reset_on_close = on;
        self
    }

    /// Whether an address can be connected to from our side.
    pub(super) fn reaches(&self, addr: &SocketAddr) -> bool {
        let (v4, v6) = (self.source_v4.is_some(), self.source_v6.is_some());
        v4 == v6 || addr.is_ipv4() == v4
    }

    pub(super) async fn dial(&self, addr: SocketAddr) -> io::Result<Conn<TcpStream>> {
        let socket = self.socket(addr)?;
        let stream = TcpSocket::from_std_stream(socket.into())
            .connect(addr)
            .await
            .map_err(|error| told_apart(error, || reaches_out(addr)))?;
        check_other_end(&stream)?;
        if self.reset_on_close {
            reset_on_drop(&stream)?;
        }
        stream.try_into()
    }

    fn socket(&self, addr: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(addr),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        self.stream.set(&socket)?;
        let source = match addr {
            SocketAddr::V4(_) => self.source_v4.map(IpAddr::V4),
            SocketAddr::V6(_) => self.source_v6.map(IpAddr::V6),
        };
        if let Some(source) = source {
            socket.set_reuse_address(true)?;
            set_bind_address_no_port(&socket)?;
            // Of a port there is no question yet.
            socket
                .bind(&SocketAddr::new(source, 0).into())
                .map_err(|error| match error.raw_os_error() {
                    Some(libc::EADDRNOTAVAIL) => NoAddress::Ours(source).into(),
                    _ => error,
                })?;
        }
        Ok(socket)
    }
}

/// No port, or no address of ours to go with it: the error is the same.
fn told_apart(error: io::Error, reaches_out: impl FnOnce() -> bool) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) if !reaches_out() => NoAddress::OfFamily.into(),
        _ => error,
    }
}

/// Whether the system finds an address of ours from which to reach this one. It chooses as it does for TCP, and takes a
/// port that is none of TCP's; nothing is sent.
fn reaches_out(addr: SocketAddr) -> bool {
    let any: IpAddr = match addr {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let asked = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(addr));
    !asked.is_err_and(|error| error.raw_os_error() == Some(libc::EADDRNOTAVAIL))
}

/// A connect to a local port that nobody listens on can be given that very port to come from, and meets itself (RFC
/// 9293, section 3.5): it would be an echo that nobody serves, on a port that its service can no longer take.
fn check_other_end(stream: &TcpStream) -> io::Result<()> {
    if stream.local_addr()? != stream.peer_addr()? {
        return Ok(());
    }
    // In TIME_WAIT it would hold the port for a minute.
    reset_on_drop(stream)?;
    let problem = "nobody listens there: the connection was one with itself";
    Err(io::Error::new(io::ErrorKind::ConnectionRefused, problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::connect::Shortage;

    #[test]
    fn a_source_address_takes_no_port_before_it_is_known_where_it_goes() {
        let options = SocketOptions::default().source(Ipv4Addr::LOCALHOST.into());

        let socket = options
            .socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)))
            .unwrap();

        let source = socket.local_addr().unwrap().as_socket();
        assert_eq!(source, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))));
    }

    #[test]
    fn a_port_that_is_missing_is_told_from_an_address() {
        let failed = || io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);

        let port = told_apart(failed(), || true);
        let address = told_apart(failed(), || false);
        let other = told_apart(io::ErrorKind::TimedOut.into(), || panic!("it is not asked"));

        assert_eq!(Shortage::of(&port), Some(Shortage::Ports));
        assert_eq!(Shortage::of(&address), None);
        assert_eq!(address.kind(), io::ErrorKind::AddrNotAvailable);
        assert_eq!(other.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn an_address_that_is_reached_out_to_need_not_be_there() {
        assert!(reaches_out(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))));
    }

    #[tokio::test]
    async fn a_connection_with_itself_is_refused() {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind("127.0.0.1:0".parse().unwrap())
            .unwrap();
        let own = socket.local_addr().unwrap();
        let stream = socket.connect(own).await.unwrap();

        let error = check_other_end(&stream).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
