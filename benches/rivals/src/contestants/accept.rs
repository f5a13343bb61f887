//! Servers that accept, answer once and close: by hand, by hand with the usual guards, our server, and all our guards.
//!
//! All read and write the same, and set `TCP_NODELAY` on the listener, from which connections have it.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower::{Layer, service_fn};
use tower_net::guard::{Guard, Settings};
use tower_net::listen::Tcp;
use tower_net::{Conn, Server};

use super::no_delay;
use crate::accept::EXCHANGE;

pub(super) async fn bare(listener: TcpListener) {
    accept_each(listener, |stream, _| {
        tokio::spawn(answer(stream));
    })
    .await;
}

/// As many write it: a semaphore, a map of peers, and a timeout around the read.
pub(super) async fn guarded(listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let peers = Peers::default();
    accept_each(listener, |mut stream, peer| {
        let place = Arc::clone(&places).try_acquire_owned();
        let (Ok(place), Some(seat)) = (place, peers.enter(peer)) else {
            return;
        };
        tokio::spawn(async move {
            let _held = (place, seat);
            let request = timeout(FIRST_BYTE, read(&mut stream)).await??;
            stream.write_all(&request).await
        });
    })
    .await;
}

pub(super) async fn server(listener: TcpListener) {
    let service = service_fn(|conn: Conn<TcpStream>| answer(conn));
    no_delay(&listener);
    let served = Server::new(Tcp::from(listener))
        .serve(service)
        .await;
    served.expect("a runtime with timers");
}

pub(super) async fn guard(listener: TcpListener) {
    let guard = Guard::new(Settings::default()).expect("good settings");
    let stack = guard.layer(service_fn(|conn: Conn<_>| answer(conn)));
    no_delay(&listener);
    let served = Server::new(Tcp::from(listener))
        .serve(stack)
        .await;
    served.expect("a runtime with timers");
}

/// The service.
async fn answer(mut io: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let request = read(&mut io).await?;
    io.write_all(&request).await
}

async fn read(mut io: impl AsyncRead + Unpin) -> io::Result<[u8; EXCHANGE]> {
    let mut request = [0; EXCHANGE];
    io.read_exact(&mut request).await?;
    Ok(request)
}

async fn accept_each(listener: TcpListener, connection: impl Fn(TcpStream, IpAddr)) {
    no_delay(&listener);
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => connection(stream, peer.ip()),
            Err(error) => {
                eprintln!("accept: {error}");
                return;
            }
        }
    }
}

/// How many connections each peer has open.
#[derive(Clone, Default)]
struct Peers(Arc<Mutex<HashMap<IpAddr, u32>>>);

impl Peers {
    fn enter(&self, peer: IpAddr) -> Option<Seat> {
        let mut open = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let open = open.entry(peer).or_default();
        if *open >= PER_PEER {
            return None;
        }
        *open += 1;
        Some(Seat(self.clone(), peer))
    }
}

struct Seat(Peers, IpAddr);

impl Drop for Seat {
    fn drop(&mut self) {
        let Self(Peers(open), peer) = self;
        let mut open = open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = open.get_mut(peer) {
            *left -= 1;
            if *left == 0 {
                open.remove(peer);
            }
        }
    }
}

/// These as `Settings` have them.
const CONNECTIONS: usize = 10_000;
const PER_PEER: u32 = 256;
const FIRST_BYTE: Duration = Duration::from_secs(3);
