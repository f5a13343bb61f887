//! Forwarding for stream wrappers: what a wrapper does not change, it passes through whole.

/// `AsyncRead` by delegation to the field.
macro_rules! delegate_read {
    ($io:ident) => {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::pin::Pin::new(&mut self.$io).poll_read(cx, buf)
        }
    };
}

/// `AsyncWrite` by delegation to the field, vectored writes included.
macro_rules! delegate_write {
    ($io:ident) => {
        fn poll_write(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            buf: &[u8],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::pin::Pin::new(&mut self.$io).poll_write(cx, buf)
        }

        fn poll_write_vectored(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
            bufs: &[std::io::IoSlice<'_>],
        ) -> std::task::Poll<std::io::Result<usize>> {
            std::pin::Pin::new(&mut self.$io).poll_write_vectored(cx, bufs)
        }

        delegate_write!(except poll_write $io);
    };
    // For a wrapper that looks at each write and writes those two methods by hand.
    (except poll_write $io:ident) => {
        fn poll_flush(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::pin::Pin::new(&mut self.$io).poll_flush(cx)
        }

        fn poll_shutdown(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            std::pin::Pin::new(&mut self.$io).poll_shutdown(cx)
        }

        fn is_write_vectored(&self) -> bool {
            self.$io.is_write_vectored()
        }
    };
}

/// `Io` by delegation to the field: the socket stays reachable through the wrapper.
macro_rules! delegate_socket {
    ($io:ident) => {
        fn socket(&self) -> Option<socket2::SockRef<'_>> {
            self.$io.socket()
        }
    };
}

/// The way to a pipe by delegation to the field, for a wrapper that neither looks at the bytes nor counts them.
macro_rules! delegate_pipes {
    ($io:ident) => {
        fn takes_pipes(&self) -> bool {
            self.$io.takes_pipes()
        }

        fn poll_read_pipe(
            &mut self,
            cx: &mut std::task::Context<'_>,
            pipe: &mut crate::base::io::Pipe,
        ) -> std::task::Poll<std::io::Result<usize>> {
            self.$io.poll_read_pipe(cx, pipe)
        }

        fn poll_write_pipe(
            &mut self,
            cx: &mut std::task::Context<'_>,
            pipe: &mut crate::base::io::Pipe,
        ) -> std::task::Poll<std::io::Result<usize>> {
            self.$io.poll_write_pipe(cx, pipe)
        }
    };
}
