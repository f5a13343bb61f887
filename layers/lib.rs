//! Tower middleware for raw-stream services.

#[macro_use]
mod base;
mod conn;
mod edge;
mod middleware;
mod server;

pub use crate::{base::*, conn::*, edge::*, middleware::*, server::*};
#[cfg(test)]
mod sizes {
    #[test]
    fn print() {
        use std::mem::size_of;
        println!(
            "info {} waits {} ending {}",
            size_of::<crate::ConnInfo>(),
            size_of::<crate::conn::waits::Waits>(),
            size_of::<crate::conn::ending_size::E>()
        );
        println!(
            "watch {} sleep {} timer {}",
            size_of::<crate::conn::watch::Watch>(),
            size_of::<tokio::time::Sleep>(),
            size_of::<crate::base::time::Timer>()
        );
        println!(
            "addr {} tcp {}",
            size_of::<crate::Addr>(),
            size_of::<tokio::net::TcpStream>()
        );
        use crate::frame::*;
        type F = std::future::Ready<Result<bytes::Bytes, std::io::Error>>;
        type S = fn(Request<bytes::Bytes>) -> F;
        type Svc = tower::util::ServiceFn<S>;
        type Io = crate::deadline::DeadlineIo<
            crate::io::GuardedIo<
                crate::io::GuardedIo<
                    crate::meter::MeterIo<tokio::net::TcpStream>,
                    crate::trace::Closing,
                >,
                crate::limit::Place,
            >,
        >;
        println!(
            "io {} meter {} frame {}",
            size_of::<Io>(),
            size_of::<crate::meter::MeterIo<tokio::net::TcpStream>>(),
            size_of::<FrameFuture<Io, Svc, LengthDelimited, Silent>>()
        );
        println!(
            "codec {} closing {} place {}",
            size_of::<LengthDelimited>(),
            size_of::<crate::trace::Closing>(),
            size_of::<crate::limit::Place>()
        );
    }
}
