//! The clients: so many calls at once, all of them answered before the next ones. Every reply is looked at.

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
    Ours { streams: Vec<TcpStream>, id: u64 },
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
                let streams = connections
                    .map(|_| {
                        let stream = TcpStream::connect(server)?;
                        stream.set_nodelay(true)?;
                        Ok(stream)
                    })
                    .collect::<Result<_>>()?;
                Speaks::Ours { streams, id: 0 }
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

    /// Makes so many bursts: `depth` calls on each connection, all of which are answered before the next.
    pub(crate) fn burst(&mut self, bursts: u32) -> Result<()> {
        let (payload, depth) = (&self.payload, self.depth);
        match &mut self.speaks {
            Speaks::Ours { streams, id } => {
                let mut replies = vec![0; (20 + payload.len()) * depth as usize];
                for _ in 0..bursts {
                    let (mut requests, mut expected) = (Vec::new(), Vec::new());
                    for _ in 0..depth {
                        *id += 1;
                        frame(1, *id, 30_000, payload, &mut requests);
                        frame(2, *id, 0, payload, &mut expected);
                    }
                    for stream in &mut *streams {
                        stream.write_all(&requests)?;
                    }
                    for stream in &mut *streams {
                        stream.read_exact(&mut replies)?;
                        ensure!(replies == expected, "a wrong reply");
                    }
                }
                Ok(())
            }
            Speaks::Tarpc(runtime, clients) => runtime.block_on(async {
                for _ in 0..bursts {
                    let calls = clients.iter().flat_map(|client| {
                        (0..depth).map(|_| client.echo(tarpc::context::current(), payload.clone()))
                    });
                    for reply in try_join_all(calls).await? {
                        ensure!(reply == *payload, "a wrong reply");
                    }
                }
                Ok(())
            }),
            Speaks::Tonic(runtime, channels) => runtime.block_on(async {
                let payload = Bytes::from(payload.clone());
                for _ in 0..bursts {
                    let calls = channels.iter().flat_map(|channel| {
                        (0..depth).map(|_| unary(channel.clone(), payload.clone()))
                    });
                    for reply in try_join_all(calls).await? {
                        ensure!(reply == payload, "a wrong reply");
                    }
                }
                Ok(())
            }),
        }
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
