//! How tunnels end, and what either side is told of it.

use std::{io::ErrorKind, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tower_net::{
    CloseReason, ConnInfo,
    connect::{SocketOptions, TcpConnector},
    forward::{Forward, Side, Timeouts},
};

use super::{Proxy, forward, receive, send};
use crate::peer::{soon, until};

/// Reads on to the end, or to what comes instead of one.
async fn read_out(io: &mut TcpStream) -> Result<Vec<u8>, ErrorKind> {
    let mut all = Vec::new();
    soon(io.read_to_end(&mut all))
        .await
        .map_err(|error| error.kind())?;
    Ok(all)
}

fn reset(io: TcpStream) {
    SockRef::from(&io)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

fn ended_first(info: &ConnInfo) -> Option<Side> {
    info.tunnel()?.ended_first()
}

/// Writes until nothing goes on for a while.
async fn fill(io: &mut TcpStream) {
    let flood = vec![b'x'; 1 << 20];
    while let Ok(written) = timeout(QUIET, io.write_all(&flood)).await {
        written.unwrap();
    }
}

/// The kernel moves what it can move in far less.
const QUIET: Duration = Duration::from_millis(300);

const RESET: Result<Vec<u8>, ErrorKind> = Err(ErrorKind::ConnectionReset);

#[tokio::test]
async fn a_client_that_resets_has_the_upstream_reset() {
    let mut proxy = Proxy::plain().await;
    let (client, mut upstream, info) = proxy.open().await;
    until(|| info.tunnel().is_some()).await;

    reset(client);

    assert_eq!(read_out(&mut upstream).await, RESET);
    let report = proxy.drained().await;
    assert_eq!(report.closed_for(CloseReason::Reset), 1, "{report}");
    assert_eq!(info.tunnel().unwrap().ended_first(), Some(Side::Client));
}

#[tokio::test]
async fn an_upstream_that_resets_has_the_client_reset() {
    let mut proxy = Proxy::plain().await;
    let (mut client, upstream, info) = proxy.open().await;
    until(|| info.tunnel().is_some()).await;

    reset(upstream);

    assert_eq!(read_out(&mut client).await, RESET);
    let report = proxy.drained().await;
    assert_eq!(report.closed_for(CloseReason::Upstream), 1, "{report}");
}

#[tokio::test]
async fn a_reset_is_seen_although_the_other_side_takes_nothing() {
    for client_resets in [true, false] {
        let mut proxy = Proxy::plain().await;
        let (client, upstream, info) = proxy.open().await;
        until(|| info.tunnel().is_some()).await;
        let (mut resets, mut deaf) = match client_resets {
            true => (client, upstream),
            false => (upstream, client),
        };
        fill(&mut resets).await;

        reset(resets);
        until(|| info.close_reason().is_some()).await;

        assert_eq!(read_out(&mut deaf).await, RESET);
        let reason = match client_resets {
            true => CloseReason::Reset,
            false => CloseReason::Upstream,
        };
        let report = proxy.drained().await;
        assert_eq!(report.closed_for(reason), 1, "{report}");
    }
}

#[tokio::test]
async fn a_side_that_has_ended_and_is_gone_is_missed_although_the_other_says_nothing() {
    for client_ends in [true, false] {
        let mut proxy = Proxy::plain().await;
        let (client, upstream, info) = proxy.open().await;
        until(|| info.tunnel().is_some()).await;
        let (mut ends, mut silent) = match client_ends {
            true => (client, upstream),
            false => (upstream, client),
        };
        ends.shutdown().await.unwrap();
        assert_eq!(
            soon(silent.read(&mut [0; 1]))
                .await
                .unwrap(),
            0
        );

        reset(ends);
        until(|| info.close_reason().is_some()).await;

        // An upstream has said all before; to a client nothing more can be said.
        let reason = match client_ends {
            true => CloseReason::Reset,
            false => CloseReason::Served,
        };
        drop(silent);
        let report = proxy.drained().await;
        assert_eq!(report.closed_for(reason), 1, "{report}");
    }
}

#[tokio::test]
async fn what_was_said_in_order_by_a_peer_that_is_gone_arrives_whole_although_it_has_to_wait() {
    // Little goes on by itself, and the rest fits the window of the client: so its end has come as well.
    let options = SocketOptions::default().send_buffer(1);
    let connector = TcpConnector::new().options(options);
    let mut proxy = Proxy::start(|to| Forward::to(connector, to)).await;
    SockRef::from(&proxy.upstream)
        .set_recv_buffer_size(1)
        .unwrap();
    let (mut client, mut upstream, info) = proxy.open().await;
    let sum = send(&mut client, 60 << 10).await;
    drop(client);

    upstream
        .write_all(b"what?")
        .await
        .unwrap();
    until(|| ended_first(&info) == Some(Side::Client)).await;

    assert_eq!(receive(&mut upstream).await, (60 << 10, sum));
}

#[tokio::test]
async fn without_an_upstream_the_client_is_reset() {
    let mut nobody = None;
    let proxy = Proxy::start(|_| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        nobody = Some(addr);
        drop(listener);
        forward(addr)
    })
    .await;

    let mut client = TcpStream::connect(proxy.addr)
        .await
        .unwrap();

    assert_eq!(read_out(&mut client).await, RESET);
    let report = proxy.drained().await;
    assert_eq!(report.closed_for(CloseReason::Upstream), 1, "{report}");
}

#[tokio::test]
async fn a_question_that_has_ended_is_answered_later() {
    let mut proxy = Proxy::plain().await;
    let (mut client, mut upstream, info) = proxy.open().await;

    client.write_all(b"why").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_out(&mut upstream).await.unwrap(), b"why");
    tokio::time::sleep(Duration::from_millis(200)).await;
    upstream
        .write_all(b"because")
        .await
        .unwrap();
    drop(upstream);

    assert_eq!(read_out(&mut client).await.unwrap(), b"because");
    let report = proxy.drained().await;
    assert_eq!(report.closed_for(CloseReason::Peer), 1, "{report}");
    assert_eq!(info.tunnel().unwrap().ended_first(), Some(Side::Client));
}

#[tokio::test]
async fn a_half_open_tunnel_is_reset_on_time() {
    for client_ends in [true, false] {
        let limit = Duration::from_millis(300);
        let mut proxy = Proxy::with(Timeouts::default().half_close(limit)).await;
        let (client, upstream, info) = proxy.open().await;
        until(|| info.tunnel().is_some()).await;
        let (mut ends, mut other) = match client_ends {
            true => (client, upstream),
            false => (upstream, client),
        };
        let begun = Instant::now();

        ends.shutdown().await.unwrap();
        let mut end = [0; 1];
        assert_eq!(
            soon(other.read(&mut end))
                .await
                .unwrap(),
            0
        );

        assert_eq!(read_out(&mut ends).await, RESET);
        assert!(begun.elapsed() >= limit);
        let report = proxy.drained().await;
        assert_eq!(report.closed_for(CloseReason::HalfClose), 1, "{report}");
    }
}

#[tokio::test]
async fn a_reader_that_never_reads_is_reset_on_time_and_so_is_its_writer() {
    for client_writes in [true, false] {
        let limit = Duration::from_millis(300);
        let mut proxy = Proxy::with(Timeouts::default().write_stall(limit)).await;
        let (client, upstream, _info) = proxy.open().await;
        let (mut writes, mut reads) = match client_writes {
            true => (client, upstream),
            false => (upstream, client),
        };

        let flood = vec![b'x'; 1 << 20];
        let broken = loop {
            if let Err(error) = soon(writes.write_all(&flood)).await {
                break error.kind();
            }
        };

        assert!(
            matches!(broken, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{broken:?}"
        );
        // What has arrived may be read, but no end is made up behind it.
        assert_eq!(read_out(&mut reads).await, RESET);
        let report = proxy.drained().await;
        assert_eq!(report.closed_for(CloseReason::WriteStall), 1, "{report}");
    }
}

#[tokio::test]
async fn a_silent_tunnel_is_closed_on_time() {
    let limit = Duration::from_millis(300);
    let mut proxy = Proxy::with(Timeouts::default().idle(limit)).await;
    let begun = Instant::now();
    let (mut client, mut upstream, _info) = proxy.open().await;

    assert_eq!(read_out(&mut client).await.unwrap(), b"");
    assert_eq!(read_out(&mut upstream).await.unwrap(), b"");
    assert!(begun.elapsed() >= limit);
    let report = proxy.drained().await;
    assert_eq!(report.closed_for(CloseReason::Idle), 1, "{report}");
}

#[tokio::test]
async fn a_tunnel_that_is_cut_is_reset_on_both_sides() {
    let mut proxy = Proxy::plain().await;
    let (mut client, mut upstream, info) = proxy.open().await;
    until(|| info.tunnel().is_some()).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(soon(upstream.read_u8()).await.unwrap(), b'x');

    proxy.handle.shutdown();
    proxy.handle.cut();

    assert_eq!(read_out(&mut client).await, RESET);
    assert_eq!(read_out(&mut upstream).await, RESET);
    let report = soon(proxy.serving).await.unwrap();
    assert_eq!(report.cut(), 1, "{report}");
}

#[tokio::test]
async fn an_answer_that_ends_in_order_arrives_whole_although_nobody_listens_any_more() {
    let mut proxy = Proxy::plain().await;
    let (client, mut upstream, info) = proxy.open().await;
    until(|| info.tunnel().is_some()).await;
    let (mut reader, mut writer) = client.into_split();
    // More than there is room for, to somebody who reads only the beginning.
    let asking = tokio::spawn(async move {
        let flood = vec![b'x'; 16 << 20];
        let _cut_short = soon(writer.write_all(&flood)).await;
    });
    assert_eq!(soon(upstream.read_u8()).await.unwrap(), b'x');

    let sum = send(&mut upstream, 3 << 20).await;
    let received = receive(&mut reader).await;

    assert_eq!(received, (3 << 20, sum));
    drop(upstream);
    drop(reader);
    asking.await.unwrap();
}
