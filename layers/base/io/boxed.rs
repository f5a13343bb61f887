use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::base::io::Io;

/// A stream whose type is forgotten: one allocation a connection and a virtual call an operation.
pub struct BoxedIo {
    io: Box<dyn Io>,
}

impl BoxedIo {
    /// Boxes `io`.
    pub fn new(io: impl Io) -> Self {
        Self { io: Box::new(io) }
    }
}

impl Io for BoxedIo {
    delegate_socket!(io);
    delegate_pipes!(io);
}

impl AsyncRead for BoxedIo {
    delegate_read!(io);
}

impl AsyncWrite for BoxedIo {
    delegate_write!(io);
}

impl fmt::Debug for BoxedIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxedIo")
            .finish_non_exhaustive()
    }
}
