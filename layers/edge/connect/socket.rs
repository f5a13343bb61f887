use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::{
    base::io::reset_on_drop,
    conn::Conn,
    edge::{
        options::{Keepalive, StreamOptions},
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
    /// Sends small writes at once (TCP_NODELAY), rather than waiting for more. Default: on.
    #[must_use]
    pub fn nodelay(mut self, on: bool) -> Self {
        self.stream.nodelay = on;
        self
    }

    /// Probes silent connections, so that a peer that vanished is noticed. Default: [`Keepalive::default`], after
    /// 15 s.
    #[must_use]
    pub fn keepalive(mut self, keepalive: Option<Keepalive>) -> Self {
        self.stream.keepalive = keepalive;
        self
    }

    /// Breaks a connection whose data was not acknowledged for so long (TCP_USER_TIMEOUT, RFC 5482), in
    /// milliseconds and at least one. Default: the system's, about 15 minutes.
    #[must_use]
    pub fn user_timeout(mut self, limit: Duration) -> Self {
        self.stream.user_timeout = Some(limit);
        self
    }

    /// The kernel's receive buffer of each connection, in bytes; setting it turns its automatic sizing off.
    /// Default: automatic.
    #[must_use]
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.stream.receive_buffer = Some(bytes);
        self
    }

    /// The kernel's send buffer of each connection, in bytes; setting it turns its automatic sizing off.
    /// Default: automatic.
    #[must_use]
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.stream.send_buffer = Some(bytes);
        self
    }

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
            .await?;
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
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        Ok(socket)
    }
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

    #[test]
    fn a_source_address_takes_no_port_before_it_is_known_where_it_goes() {
        let options = SocketOptions::default().source(Ipv4Addr::LOCALHOST.into());

        let socket = options
            .socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)))
            .unwrap();

        let source = socket.local_addr().unwrap().as_socket();
        assert_eq!(source, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))));
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
