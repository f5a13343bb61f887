//! [`Incoming`] as tonic's `serve_with_incoming` takes it.

use tonic::transport::server::Connected;

use crate::{base::io::Io, conn::ConnHandle, server::incoming::IncomingIo};

/// What a handler finds in the extensions of its request: all that is known of the connection, the peer included.
impl<I: Io> Connected for IncomingIo<I> {
    type ConnectInfo = ConnHandle;

    fn connect_info(&self) -> ConnHandle {
        ConnHandle::new(self.info().clone())
    }
}
