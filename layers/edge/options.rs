//! The options of a TCP stream, whichever side began it.

use std::{io, time::Duration};

use socket2::{Socket, TcpKeepalive};

/// When a silent connection is probed, and when given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    idle: Duration,
    interval: Duration,
    probes: u32,
}

impl Keepalive {
    /// Probes after `idle` of silence, then each `interval`, and gives up after so many `probes`.
    #[must_use]
    pub fn new(idle: Duration, interval: Duration, probes: u32) -> Self {
        Self {
            idle,
            interval,
            probes,
        }
    }
}

impl Default for Keepalive {
    /// As in Go: 15 s, each 15 s, 9 probes. A dead peer is gone after two and a half minutes.
    fn default() -> Self {
        Self::new(Duration::from_secs(15), Duration::from_secs(15), 9)
    }
}

/// What is set on a socket before it listens or connects.
#[derive(Debug, Clone)]
pub(super) struct StreamOptions {
    pub(super) nodelay: bool,
    pub(super) keepalive: Option<Keepalive>,
    pub(super) user_timeout: Option<Duration>,
    pub(super) receive_buffer: Option<usize>,
    pub(super) send_buffer: Option<usize>,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Keepalive::default()),
            user_timeout: None,
            receive_buffer: None,
            send_buffer: None,
        }
    }
}

impl StreamOptions {
    /// Sets them. The buffers must be set before the handshake, whose window depends on them.
    pub(super) fn set(&self, socket: &Socket) -> io::Result<()> {
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        socket.set_tcp_nodelay(self.nodelay)?;
        if let Some(Keepalive {
            idle,
            interval,
            probes,
        }) = self.keepalive
        {
            let keepalive = TcpKeepalive::new()
                .with_time(idle)
                .with_interval(interval)
                .with_retries(probes);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        if let Some(limit) = self.user_timeout {
            socket.set_tcp_user_timeout(Some(limit.max(Duration::from_millis(1))))?;
        }
        Ok(())
    }
}

/// What may be set on either side, for a struct with a field `stream` of these.
macro_rules! stream_setters {
    () => {
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
    };
}
pub(super) use stream_setters;
