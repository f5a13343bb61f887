//! The client: typed calls to a server, or to several of which each call goes to the one with less to do.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use tokio::net::TcpStream;
use tower::{Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_net::{
    Conn,
    client::{self, InOrder, MakeClient, Settings},
    connect::TcpConnector,
    error::BoxError,
};
#[cfg(feature = "balance")]
use tower_net::{
    balance::{Balanced, Endpoints},
    error::NoTimer,
};

use crate::protocol::{self, Call, ClientCodec, MAX_FRAME, Mode, Reply};

/// A client; clones share its connections, and the last one dropped closes them.
#[derive(Debug, Clone)]
pub(crate) enum Client {
    /// The plain thing.
    One(client::Client<Call, Reply>),
    /// With more around it, whose type is forgotten.
    Any(BoxCloneSyncService<Call, Reply, BoxError>),
}

/// How connections are made: by TCP, for the most part.
pub(crate) trait Connect:
    Service<SocketAddr, Response = Conn<TcpStream>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<C> Connect for C where
    C: Service<SocketAddr, Response = Conn<TcpStream>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Connects by TCP.
pub(crate) fn tcp() -> impl Connect {
    TcpConnector::new()
}

impl Client {
    /// A client of these servers. It connects with the first call; with several servers, now.
    pub(crate) fn new(
        mode: Mode,
        servers: &[SocketAddr],
        settings: Settings,
        connect: impl Connect,
    ) -> Result<Self, BoxError> {
        let settings = settings
            .in_flight(IN_FLIGHT)
            .connect_deadline(CONNECT)
            .max_payload(MAX_FRAME)
            .fail_fast()
            .keep_connected(servers.len() > 1);
        let calls = match (mode, servers) {
            (_, []) => return Err("no server is named".into()),
            // Answers come in the order of the calls, and are typed by the codec itself.
            (Mode::Pipelined, servers) => {
                let make = |server: &SocketAddr| {
                    let protocol = InOrder::new(ClientCodec::new());
                    let (settings, connect) = (settings.clone(), connect.clone());
                    client::Client::with_protocol(protocol, settings, connect, *server)
                };
                match servers {
                    [server] => return Ok(Self::One(make(server)?)),
                    #[cfg(not(feature = "balance"))]
                    _ => return Err(SEVERAL.into()),
                    #[cfg(feature = "balance")]
                    several => {
                        let made = |server: &SocketAddr| {
                            let client = make(server)?;
                            client.connect()?;
                            Ok::<_, BoxError>(client)
                        };
                        erased(Balanced::over(Endpoints::new(several.to_vec(), made)?))
                    }
                }
            }
            // Frames with ids, deadlines and cancels; what is in them is typed here.
            (Mode::Multiplexed, servers) => {
                let make = MakeClient::with_settings(settings, connect)?;
                let made = |server: &SocketAddr| make.make(*server);
                match servers {
                    [server] => typed(made(server)?),
                    #[cfg(not(feature = "balance"))]
                    _ => return Err(SEVERAL.into()),
                    #[cfg(feature = "balance")]
                    several => {
                        let endpoints = Endpoints::new::<NoTimer>(several.to_vec(), made)?;
                        typed(Balanced::over(endpoints))
                    }
                }
            }
        };
        Ok(Self::Any(calls))
    }

    /// Asks, and waits for the reply.
    ///
    /// The error says why there is none. Whether the call took effect is not known then, unless it was never started;
    /// or the server drained: then what was not answered was never begun.
    pub(crate) async fn call(&self, call: Call) -> Result<Reply, BoxError> {
        match self {
            Self::One(client) => Ok(client.send(call).await?),
            Self::Any(calls) => calls.clone().oneshot(call).await,
        }
    }
}

fn erased<S>(calls: S) -> BoxCloneSyncService<Call, Reply, BoxError>
where
    S: Service<Call, Response = Reply, Future: Send> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
{
    BoxCloneSyncService::new(calls.map_err(Into::into))
}

fn typed<S>(calls: S) -> BoxCloneSyncService<Call, Reply, BoxError>
where
    S: Service<Bytes, Response = Bytes, Future: Send> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
{
    erased(service_fn(move |call: Call| {
        let calls = calls.clone();
        async move {
            let call = protocol::encode(&call)?;
            let reply = calls
                .oneshot(call)
                .await
                .map_err(Into::into)?;
            protocol::parse(reply)
        }
    }))
}

#[cfg(not(feature = "balance"))]
const SEVERAL: &str = "several servers need `--features balance`";

/// As deep as the server's own limit: more would only wait there instead of here.
const IN_FLIGHT: usize = 64;

/// For one round trip, and a lost packet or two.
const CONNECT: Duration = Duration::from_secs(5);
