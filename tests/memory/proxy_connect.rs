use std::{io, net::SocketAddr, sync::Arc};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_test::{assert_pending, task};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_net::{
    Addr, Conn, ConnInfo,
    error::{BoxError, find},
    io::Io,
    proxy_protocol::{
        EncodeError, Header, ProxyConnect, ProxyConnectFuture, ProxyConnectLayer, Version,
    },
};
use tower_service::Service;

use crate::{
    proxy_protocol::{accept, trusting},
    support::io::{Drip, Script, Stall},
};

const SERVER: &str = "198.51.100.1:443";

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A connector whose connections are to [`SERVER`], whatever the target.
async fn connect<I: Io, T: Clone + Send + 'static>(
    layer: ProxyConnectLayer<T>,
    io: I,
    target: T,
) -> Result<Conn<I>, BoxError> {
    let mut io = Some(io);
    let connector = service_fn(move |_: T| {
        let io = io.take().unwrap();
        let peer = Addr::Tcp(addr(SERVER));
        async move { Ok::<_, BoxError>(Conn::new(io, peer)) }
    });
    layer
        .layer(connector)
        .oneshot(target)
        .await
}

async fn all(mut far: DuplexStream) -> Vec<u8> {
    let mut sent = Vec::new();
    far.read_to_end(&mut sent)
        .await
        .unwrap();
    sent
}

#[tokio::test]
async fn the_header_is_sent_once_and_before_anything_else() {
    let (near, far) = duplex(256);
    let layer = ProxyConnectLayer::from_source(Version::V1, addr("192.0.2.7:4711"));

    let mut conn = connect(layer, near, ()).await.unwrap();
    conn.write_all(b"hello").await.unwrap();
    drop(conn);

    let line = "PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\nhello";
    assert_eq!(String::from_utf8(all(far).await).unwrap(), line);
}

#[tokio::test]
async fn the_header_is_chosen_by_the_target_and_the_connection() {
    let io = Script::new();
    let written = io.written();
    let layer = ProxyConnectLayer::new(|client: &SocketAddr, conn: &ConnInfo| {
        Header::tcp(Version::V1, *client, conn.wire_peer().tcp().unwrap())
    });

    connect(layer, io, addr("192.0.2.8:8"))
        .await
        .unwrap();

    let line = "PROXY TCP4 192.0.2.8 198.51.100.1 8 443\r\n";
    assert_eq!(written.text(), line);
}

#[tokio::test]
async fn what_is_sent_byte_by_byte_is_what_the_other_side_takes_off() {
    let (near, far) = duplex(1);
    let client = addr("192.0.2.7:4711");
    let layer = ProxyConnectLayer::new(move |_: &(), conn: &ConnInfo| {
        let header = Header::tcp(Version::V2, client, conn.wire_peer().tcp().unwrap())?;
        Ok::<_, EncodeError>(
            header
                .authority("example.com")?
                .crc32c(),
        )
    });

    let (sent, taken) = tokio::join!(
        connect(layer, Drip::new(near), ()),
        accept(trusting(), far, "10.0.0.1:1")
    );

    assert!(sent.is_ok());
    let taken = taken.unwrap();
    assert_eq!(taken.info().peer(), &Addr::Tcp(client));
    let header = taken.info().proxy().unwrap();
    assert_eq!(header.tlvs().authority(), Some("example.com"));
}

#[tokio::test]
async fn a_connection_of_our_own_says_so() {
    for version in [Version::V1, Version::V2] {
        let (near, far) = duplex(64);

        drop(connect(ProxyConnectLayer::local(version), near, ()).await);

        assert_eq!(all(far).await, Header::local(version).encode().unwrap());
    }
}

#[tokio::test]
async fn a_source_of_the_other_family_is_not_misnamed() {
    let (near, far) = duplex(64);
    let layer = ProxyConnectLayer::from_source(Version::V1, addr("[2001:db8::7]:1"));

    drop(connect(layer, near, ()).await);

    assert_eq!(all(far).await, b"PROXY UNKNOWN\r\n");
}

#[tokio::test]
async fn a_header_that_cannot_be_written_is_an_error_and_nothing_is_sent() {
    let io = Script::new();
    let written = io.written();
    let layer = ProxyConnectLayer::new(|(): &(), _| {
        Header::tcp(Version::V2, addr("1.2.3.4:1"), addr("[::1]:1"))
    });

    let error = connect(layer, io, ())
        .await
        .unwrap_err();

    assert!(find::<EncodeError>(&*error).is_some());
    assert_eq!(written.text(), "");
}

#[tokio::test]
async fn an_error_of_the_connector_is_passed_on() {
    let refused = service_fn(async |()| {
        Err::<Conn<Script>, _>(io::Error::from(io::ErrorKind::ConnectionRefused))
    });
    let connector = ProxyConnectLayer::local(Version::V2).layer(refused);

    let error = connector.oneshot(()).await.unwrap_err();

    let error = error.downcast::<io::Error>().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_server_that_closes_before_the_header_is_an_error_of_the_write() {
    let (near, far) = duplex(64);
    drop(far);

    let error = connect(ProxyConnectLayer::local(Version::V2), near, ())
        .await
        .unwrap_err();

    let error = error.downcast::<io::Error>().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_future_that_is_dropped_in_the_header_drops_the_connection() {
    let (near, far) = duplex(64);
    let layer = ProxyConnectLayer::local(Version::V2);
    let mut connecting = task::spawn(connect(layer, Stall(near), ()));
    assert_pending!(connecting.poll());

    drop(connecting);

    assert_eq!(all(far).await, b"");
}

#[tokio::test]
async fn a_future_waits_for_room_and_is_woken_by_it() {
    let (near, mut far) = duplex(8);
    let mut connecting = task::spawn(connect(ProxyConnectLayer::local(Version::V2), near, ()));
    assert_pending!(connecting.poll());

    far.read_exact(&mut [0; 8])
        .await
        .unwrap();

    assert!(connecting.is_woken());
    assert!(connecting.poll().is_ready());
}

#[test]
fn types_are_send_and_debug() {
    fn check<T: Send + Sync + Clone + std::fmt::Debug>() {}
    fn future<T: Send + std::fmt::Debug>() {}
    check::<ProxyConnectLayer<Arc<str>>>();
    check::<ProxyConnect<(), Arc<str>>>();
    future::<ProxyConnectFuture<std::future::Ready<()>, (), Script>>();
    fn service<T: Service<()>>(_: T) {}
    service(
        ProxyConnectLayer::local(Version::V1).layer(service_fn(async |()| {
            Ok::<_, BoxError>(Conn::new(Script::new(), ()))
        })),
    );
}
