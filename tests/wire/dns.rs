//! Name servers asked over real sockets.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
};
use tower::ServiceExt;
use tower_net::{
    connect::{ConnectPhase, Name, TcpConnector},
    dns::{
        DnsLookup, DnsResolver,
        hickory_resolver::{
            ResolveError, TokioResolver,
            config::{
                LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
            },
            name_server::TokioConnectionProvider,
            proto::xfer::Protocol,
        },
    },
    error::find,
};

use crate::peer::soon;

/// A name server that knows `a.test`, and counts what it is asked.
struct NameServer {
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl NameServer {
    async fn start(answers: bool) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0")
            .await
            .unwrap();
        let addr = socket.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let serving = tokio::spawn(async move {
            let mut query = [0; 512];
            loop {
                let (length, from) = socket
                    .recv_from(&mut query)
                    .await
                    .unwrap();
                count.fetch_add(1, Relaxed);
                if answers {
                    let reply = reply_to(&query[..length]);
                    socket
                        .send_to(&reply, from)
                        .await
                        .unwrap();
                }
            }
        });
        Self {
            addr,
            asked,
            serving,
        }
    }

    fn resolver(&self) -> DnsResolver {
        let mut config = ResolverConfig::new();
        config.add_name_server(NameServerConfig::new(self.addr, Protocol::Udp));
        let mut builder =
            TokioResolver::builder_with_config(config, TokioConnectionProvider::default());
        let mut options = ResolverOpts::default();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.use_hosts_file = ResolveHosts::Never;
        *builder.options_mut() = options;
        DnsResolver::new(builder.build())
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// RFC 1035, section 4.1: the question again, and addresses of this host; or that there is no such name.
fn reply_to(query: &[u8]) -> Vec<u8> {
    let name_end = 12
        + query[12..]
            .iter()
            .position(|byte| *byte == 0)
            .unwrap();
    let question = &query[12..name_end + 5];
    let kind = u16::from_be_bytes([query[name_end + 1], query[name_end + 2]]);
    let is_known = query[12..name_end].eq_ignore_ascii_case(b"\x01a\x04test");
    let data: Option<Vec<u8>> = match kind {
        1 if is_known => Some(Ipv4Addr::LOCALHOST.octets().into()),
        28 if is_known => Some(Ipv6Addr::LOCALHOST.octets().into()),
        _ => None,
    };
    let mut reply = query[..2].to_vec();
    reply.extend([0x81, if is_known { 0x80 } else { 0x83 }, 0, 1]);
    reply.extend([0, u8::from(data.is_some()), 0, 0, 0, 0]);
    reply.extend(question);
    if let Some(data) = data {
        // The name is that of the question; an hour.
        reply.extend([0xc0, 12]);
        reply.extend(kind.to_be_bytes());
        reply.extend([0, 1, 0, 0, 14, 16, 0, data.len() as u8]);
        reply.extend(data);
    }
    reply
}

fn name(text: &str) -> Name {
    text.try_into().unwrap()
}

#[tokio::test]
async fn both_families_are_found_ipv6_first_and_remembered() {
    let server = NameServer::start(true).await;
    let resolver = server.resolver();

    let found = soon(resolver.clone().oneshot(name("a.test")))
        .await
        .unwrap();
    let asked = server.asked.load(Relaxed);
    let again = soon(resolver.oneshot(name("A.test")))
        .await
        .unwrap();

    let (v4, v6): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    assert_eq!(found, [v6, v4]);
    assert_eq!(again, found);
    assert_eq!((asked, server.asked.load(Relaxed)), (2, 2));
}

#[tokio::test]
async fn a_connector_reaches_what_the_name_server_says() {
    let server = NameServer::start(true).await;
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let connector = TcpConnector::with_resolver(server.resolver());

    // Nobody listens at this port of the other family.
    let conn = soon(connector.oneshot(("a.test", port)))
        .await
        .unwrap();

    assert_eq!(
        conn.info().wire_peer().tcp(),
        Some(listener.local_addr().unwrap())
    );
}

#[tokio::test]
async fn a_name_that_there_is_not_is_an_error_of_the_lookup() {
    let server = NameServer::start(true).await;
    let connector = TcpConnector::with_resolver(server.resolver());

    let error = soon(connector.oneshot("b.test:1"))
        .await
        .unwrap_err();

    assert_eq!(error.phase(), ConnectPhase::Lookup);
    assert!(
        find::<ResolveError>(&error)
            .unwrap()
            .is_nx_domain()
    );
}

#[tokio::test]
async fn a_name_server_that_is_silent_costs_no_more_than_the_connector_allows() {
    let server = NameServer::start(false).await;
    let connector = TcpConnector::with_resolver(server.resolver())
        .timeout(std::time::Duration::from_millis(100))
        .unwrap();

    let error = soon(connector.oneshot("a.test:1"))
        .await
        .unwrap_err();

    assert_eq!(error.phase(), ConnectPhase::Lookup);
    assert!(error.spent().is_some());
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    fn future<T: Send + std::fmt::Debug>() {}
    check::<DnsResolver>();
    future::<DnsLookup>();
}
