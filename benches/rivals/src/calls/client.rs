//! The clients: so many callers on each connection, each of which makes its next call once it has the reply to the last.
//! Ours goes from socket to socket and asks as often as it has heard; tarpc and tonic have a future for each caller. Every
//! reply is looked at.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http::uri::PathAndQuery;
use tarpc::tokio_serde::formats::Bincode;
use tokio::runtime::{Builder, Runtime};
use tokio_util::codec::{Framed, LengthDelimitedCodec};
use tonic::transport::{Channel, Endpoint};

use super::Raw;
use crate::args::CallsArgs;

/// The service, as tarpc has it.
#[tarpc::service]
pub(crate) trait World {
    /// The same again.
    async fn echo(payload: Vec<u8>) -> Vec<u8>;
}

/// Whoever answers it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorldEcho;

impl World for WorldEcho {
    async fn echo(self, _: tarpc::context::Context, payload: Vec<u8>) -> Vec<u8> {
        payload
    }
}

/// A client of some connections.
pub(crate) struct Client {
    payload: Vec<u8>,
    depth: u32,
    speaks: Speaks,
}

enum Speaks {
    Ours(Vec<Stream>),
    Tarpc(Runtime, Vec<WorldClient>),
    Tonic(Runtime, Vec<Channel>),
}

impl Client {
    pub(crate) fn connect(
        name: &str,
        server: SocketAddr,
        args: &CallsArgs,
        depth: u32,
    ) -> Result<Self> {
        let connections = 0..args.connections;
        let runtime = || {
            Builder::new_current_thread()
                .enable_all()
                .build()
        };
        let speaks = match name {
            "ours_rpc" => {
                let streams = connections.map(|_| Stream::connect(server));
                Speaks::Ours(streams.collect::<Result<_>>()?)
            }
            "tarpc" => {
                let runtime = runtime()?;
                let clients = connections.map(|_| tarpc(server));
                let clients = runtime.block_on(try_join_all(clients))?;
                Speaks::Tarpc(runtime, clients)
            }
            "tonic" => {
                let runtime = runtime()?;
                let endpoint = Endpoint::from_shared(format!("http://{server}"))?;
                let channels = connections.map(|_| endpoint.connect());
                let channels = runtime.block_on(try_join_all(channels))?;
                Speaks::Tonic(runtime, channels)
            }
            _ => bail!("no client for `{name}`"),
        };
        Ok(Self {
            payload: vec![7; args.payload],
            depth,
            speaks,
        })
    }

    /// Has `depth` callers on each connection make so many calls.
    pub(crate) fn call(&mut self, calls_each: u32) -> Result<()> {
        let (payload, depth) = (&self.payload, self.depth);
        match &mut self.speaks {
            Speaks::Ours(streams) => {
                for stream in &mut *streams {
                    stream.ask(depth, payload)?;
                }
                // What a stream was last asked is answered while the others have their turn.
                for left in (0..calls_each).rev() {
                    for stream in &mut *streams {
                        let mut heard = 0;
                        while heard < depth {
                            let replies = stream.hear(depth - heard, payload)?;
                            heard += replies;
                            if left > 0 {
                                stream.ask(replies, payload)?;
                            }
                        }
                    }
                }
                Ok(())
            }
            Speaks::Tarpc(runtime, clients) => {
                let callers = clients.iter().flat_map(|client| {
                    (0..depth).map(async |_| {
                        for _ in 0..calls_each {
                            let context = tarpc::context::current();
                            let reply = client
                                .echo(context, payload.clone())
                                .await?;
                            ensure!(reply == *payload, "a wrong reply");
                        }
                        Ok(())
                    })
                });
                runtime
                    .block_on(try_join_all(callers))
                    .map(drop)
            }
            Speaks::Tonic(runtime, channels) => {
                let payload = &Bytes::from(payload.clone());
                let callers = channels.iter().flat_map(|channel| {
                    (0..depth).map(async |_| {
                        for _ in 0..calls_each {
                            let reply = unary(channel.clone(), payload.clone()).await?;
                            ensure!(reply == *payload, "a wrong reply");
                        }
                        Ok(())
                    })
                });
                runtime
                    .block_on(try_join_all(callers))
                    .map(drop)
            }
        }
    }
}

/// A connection of our own framing.
struct Stream {
    stream: TcpStream,
    /// The id of the last request, and of the last reply.
    asked: u64,
    heard: u64,
    /// What has been read of a reply that is not all here.
    begun: Vec<u8>,
}

impl Stream {
    fn connect(server: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            asked: 0,
            heard: 0,
            begun: Vec::new(),
        })
    }

    fn ask(&mut self, requests: u32, payload: &[u8]) -> Result<()> {
        let mut frames = Vec::new();
        for _ in 0..requests {
            self.asked += 1;
            frame(1, self.asked, 30_000, payload, &mut frames);
        }
        self.stream.write_all(&frames)?;
        Ok(())
    }

    /// Reads once, no more than so many replies; returns how many are whole by then.
    fn hear(&mut self, most: u32, payload: &[u8]) -> Result<u32> {
        let length = 20 + payload.len();
        let (before, most) = (self.begun.len(), most as usize * length);
        self.begun.resize(most, 0);
        let read = self
            .stream
            .read(&mut self.begun[before..])?;
        ensure!(read > 0, "the server has closed");
        self.begun.truncate(before + read);
        let (mut whole, mut expected) = (0, Vec::new());
        for reply in self.begun.chunks_exact(length) {
            self.heard += 1;
            expected.clear();
            frame(2, self.heard, 0, payload, &mut expected);
            ensure!(*reply == *expected, "a wrong reply");
            whole += 1;
        }
        self.begun.drain(..whole * length);
        Ok(whole as u32)
    }
}

async fn tarpc(server: SocketAddr) -> Result<WorldClient> {
    let stream = tokio::net::TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let framed = Framed::new(stream, LengthDelimitedCodec::new());
    let transport = tarpc::serde_transport::new(framed, Bincode::default());
    Ok(WorldClient::new(tarpc::client::Config::default(), transport).spawn())
}

async fn unary(channel: Channel, payload: Bytes) -> Result<Bytes> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready()
        .await
        .context("not ready")?;
    let path = PathAndQuery::from_static("/echo.Echo/Call");
    let reply = grpc
        .unary(tonic::Request::new(payload), path, Raw)
        .await?;
    Ok(reply.into_inner())
}

/// Appends a frame of our own framing.
fn frame(kind: u8, id: u64, left: u32, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(16 + payload.len() as u32).to_be_bytes());
    out.extend_from_slice(&[1, kind, 0, 16]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&left.to_be_bytes());
    out.extend_from_slice(payload);
}
