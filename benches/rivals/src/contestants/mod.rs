//! The contestants, one file each, and the table of them.
//!
//! All run on one thread, on a listener bound by the caller, set `TCP_NODELAY`, and answer in order.

#[cfg(feature = "ours")]
mod accept;
mod bare;
#[cfg(feature = "ours")]
mod calls;
mod epoll;
#[cfg(feature = "ours")]
mod forward;
mod framed;
mod framed_feed;
mod framed_timeout;
#[cfg(feature = "ours")]
mod ours;
#[cfg(feature = "ours")]
mod tls;
mod tokio_lazy;
mod tokio_plain;
#[cfg(feature = "ours")]
mod web;

use std::future::Future;
use std::io;
use std::net;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::{TcpListener, TcpStream};

/// Every server there is, in the order of the tables. To add one: a file, and a line here.
pub(crate) const TABLE: &[Contestant] = &[
    Contestant::new("epoll", epoll::serve),
    Contestant::new("tokio", |l| on_tokio(l, tokio_plain::serve)),
    Contestant::new("tokio_lazy", |l| on_tokio(l, tokio_lazy::serve)),
    Contestant::new("framed_feed", |l| on_tokio(l, framed_feed::serve)),
    Contestant::new("framed", |l| on_tokio(l, framed::serve)),
    Contestant::new("framed_timeout", |l| on_tokio(l, framed_timeout::serve)),
    #[cfg(feature = "ours")]
    Contestant::new("ours", |l| on_tokio(l, ours::serve)),
    Contestant::new("bare", |l| on_tokio(l, bare::serve)).idle_only(),
];

/// The servers of `rivals tls`, the baseline first.
#[cfg(feature = "ours")]
pub(crate) const TLS: &[Contestant] = &[
    Contestant::new("rustls", |l| on_tokio(l, tls::bare)),
    Contestant::new("ours_tls", |l| on_tokio(l, tls::layer)),
    Contestant::new("ours_all", |l| on_tokio(l, tls::stack)),
];

/// The servers of `rivals web`, the baseline first.
#[cfg(feature = "ours")]
pub(crate) const WEB: &[Contestant] = &[
    Contestant::new("axum", |l| on_tokio(l, web::bare)),
    Contestant::new("ours_axum", |l| on_tokio(l, web::guarded)),
    Contestant::new("ours_http", |l| on_tokio(l, web::crossing)),
];

/// The proxies of `rivals forward`, the baseline first.
#[cfg(feature = "ours")]
pub(crate) const FORWARD: &[Contestant] = &[
    Contestant::new("copy", |l| on_tokio(l, forward::copy)),
    Contestant::new("ours_splice", |l| on_tokio(l, forward::splice)),
    Contestant::new("ours_metered", |l| on_tokio(l, forward::metered)),
    Contestant::new("ours_guarded", |l| on_tokio(l, forward::guard)),
    Contestant::new("ours_buffers", |l| on_tokio(l, forward::buffers)),
];

#[cfg(not(feature = "ours"))]
const FORWARD: &[Contestant] = &[];
#[cfg(not(feature = "ours"))]
const TLS: &[Contestant] = &[];
#[cfg(not(feature = "ours"))]
const WEB: &[Contestant] = &[];

/// The servers of `rivals calls`, the baseline first.
#[cfg(feature = "ours")]
pub(crate) const CALLS: &[Contestant] = &[
    Contestant::new("ours_rpc", |l| on_tokio(l, calls::ours)),
    Contestant::new("tarpc", |l| on_tokio(l, calls::tarpc)),
    Contestant::new("tonic", |l| on_tokio(l, calls::tonic)),
];

#[cfg(not(feature = "ours"))]
const CALLS: &[Contestant] = &[];

/// The servers of `rivals accept`, the baseline first.
#[cfg(feature = "ours")]
pub(crate) const ACCEPT: &[Contestant] = &[
    Contestant::new("accept", |l| on_tokio(l, accept::bare)),
    Contestant::new("accept_guarded", |l| on_tokio(l, accept::guarded)),
    Contestant::new("ours_server", |l| on_tokio(l, accept::server)),
    Contestant::new("ours_guard", |l| on_tokio(l, accept::guard)),
];

#[cfg(not(feature = "ours"))]
const ACCEPT: &[Contestant] = &[];

/// A server to be measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    /// Serves for ever; comes back only with an error.
    pub(crate) serve: fn(net::TcpListener) -> Result<()>,
    /// Whether it speaks the whole protocol, or only enough of it to hold an idle connection.
    speaks_rpc: bool,
}

impl Contestant {
    const fn new(name: &'static str, serve: fn(net::TcpListener) -> Result<()>) -> Self {
        Self {
            name,
            serve,
            speaks_rpc: true,
        }
    }

    const fn idle_only(mut self) -> Self {
        self.speaks_rpc = false;
        self
    }
}

/// How long a peer may stall before a contestant with deadlines gives it up. Never reached here.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn find(name: &str) -> Result<&'static Contestant> {
    let known = || {
        TABLE
            .iter()
            .map(|c| c.name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    TABLE
        .iter()
        .chain(TLS)
        .chain(ACCEPT)
        .chain(WEB)
        .chain(FORWARD)
        .chain(CALLS)
        .find(|contestant| contestant.name == name)
        .with_context(|| format!("no contestant `{name}`; there are: {}", known()))
}

/// The contestants for the RPC cells: those named, or all that can run them.
pub(crate) fn for_rpc(only: &[String]) -> Result<Vec<&'static Contestant>> {
    let chosen = for_idle(only)?;
    if only.is_empty() {
        return Ok(chosen
            .into_iter()
            .filter(|c| c.speaks_rpc)
            .collect());
    }
    if let Some(mute) = chosen.iter().find(|c| !c.speaks_rpc) {
        bail!("`{}` takes part in `idle` only", mute.name);
    }
    Ok(chosen)
}

/// The contestants for the memory of idle connections: those named, or all.
pub(crate) fn for_idle(only: &[String]) -> Result<Vec<&'static Contestant>> {
    if only.is_empty() {
        return Ok(TABLE.iter().collect());
    }
    only.iter()
        .map(|name| find(name))
        .collect()
}

/// Runs an async server on a current-thread runtime.
fn on_tokio<F>(listener: net::TcpListener, serve: impl FnOnce(TcpListener) -> F) -> Result<()>
where
    F: Future<Output = ()>,
{
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        serve(TcpListener::from_std(listener)?).await;
        Ok(())
    })
}

/// The accept loop of the hand-written async servers: a task for each connection.
async fn accept_each<F>(listener: TcpListener, connection: impl Fn(TcpStream) -> F)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("accept: {error}");
                return;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            eprintln!("TCP_NODELAY: {error}");
            return;
        }
        // A connection that fails is closed, and the client says so.
        tokio::spawn(connection(stream));
    }
}

/// Has the connections of `listener` send at once, without a system call for each.
#[cfg(feature = "ours")]
fn no_delay(listener: &TcpListener) {
    let nodelay = socket2::SockRef::from(listener).set_tcp_nodelay(true);
    nodelay.expect("a TCP socket");
}
