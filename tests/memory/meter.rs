use std::{future::poll_fn, io, pin::Pin};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_net::{
    CloseReason, Conn,
    error::BoxError,
    meter::{Meter, MeterIo, MeterLayer, Snapshot, Tally},
};
use tower_service::Service;

use crate::support::{
    io::{Drip, Script, Vectored},
    peer::serve,
    readings::recorded,
    service::secs,
};

/// What `serve` does with a metered connection over `io`, and what is counted then.
async fn metered<I, F>(io: I, serve: impl Fn(Conn<MeterIo<I>>) -> F) -> (F::Output, Snapshot)
where
    I: tower_net::io::Io,
    F: Future<Output = io::Result<()>>,
{
    let (layer, tally) = MeterLayer::pair("test");
    let service = layer.layer(service_fn(serve));
    let output = service.oneshot(Conn::new(io, ())).await;
    (output, tally.snapshot())
}

async fn echo<I: tower_net::io::Io>(conn: Conn<I>) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(conn);
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

#[tokio::test]
async fn open_rises_on_call_and_falls_when_the_stream_is_dropped() {
    let (layer, tally) = MeterLayer::pair("test");
    let mut service = layer.layer(service_fn(async |conn| Ok::<_, BoxError>(conn)));
    let before = tally.snapshot();

    let conn = service
        .call(Conn::new(Script::new(), ()))
        .await;
    let during = tally.snapshot();
    drop(conn);
    let after = tally.snapshot();

    let counts = [before, during, after].map(|at| (at.opened(), at.closed(), at.active()));
    assert_eq!(counts, [(0, 0, 0), (1, 0, 1), (1, 1, 0)]);
}

#[tokio::test]
async fn dropping_the_future_before_its_first_poll_leaves_nothing_open() {
    let (layer, tally) = MeterLayer::pair("test");
    let mut service = layer.layer(service_fn(echo::<MeterIo<Script>>));

    drop(service.call(Conn::new(Script::new(), ())));

    assert_eq!(
        (tally.snapshot().opened(), tally.snapshot().active()),
        (1, 0)
    );
}

#[tokio::test]
async fn only_bytes_that_the_inner_stream_accepted_are_counted() {
    let io = Drip::new(Script::new());

    let (ended, counts) = metered(io, async |mut conn| {
        let first = conn.write(b"abc").await?;
        assert_eq!(first, 1);
        conn.write_all(b"bc").await
    })
    .await;

    assert!(ended.is_ok());
    assert_eq!((counts.written(), counts.read()), (3, 0));
}

#[tokio::test]
async fn part_filled_read_buffers_are_not_counted_twice() {
    let io = Drip::new(Script::new().bytes("abcdef").end());

    let (_, counts) = metered(io, async |mut conn| {
        let mut space = [0; 16];
        let mut buf = ReadBuf::new(&mut space);
        buf.put_slice(b"here before");
        for _ in 0..5 {
            poll_fn(|cx| Pin::new(&mut conn).poll_read(cx, &mut buf)).await?;
        }
        Ok(())
    })
    .await;

    assert_eq!(counts.read(), 5);
}

#[tokio::test]
async fn vectored_writes_are_counted_once() {
    let (io, calls) = Vectored::pair();

    let (_, counts) = metered(io, async |mut conn| {
        let parts = [io::IoSlice::new(b"ab"), io::IoSlice::new(b"cd")];
        let written = conn.write_vectored(&parts).await?;
        assert_eq!(written, 4);
        Ok(())
    })
    .await;

    assert_eq!((counts.written(), calls.counts()), (4, [0, 1, 0, 0]));
}

#[tokio::test]
async fn an_error_is_passed_on_untouched_and_ends_as_a_reset() {
    let io = Script::new().fail(io::ErrorKind::ConnectionReset);

    let (ended, counts) = metered(io, echo).await;

    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(
        (counts.closed_for(CloseReason::Reset), counts.closed()),
        (1, 1)
    );
}

#[tokio::test]
async fn the_reason_is_found_out_from_what_was_seen() {
    let (_, by_peer) = metered(Script::new().bytes("hi").end(), echo).await;
    let (_, by_service) = metered(Script::new(), async |_| Ok(())).await;

    assert_eq!(by_peer.closed_for(CloseReason::Peer), 1);
    assert_eq!(by_service.closed_for(CloseReason::Served), 1);
}

#[tokio::test]
async fn a_read_without_room_is_not_the_end_of_the_stream() {
    let (_, counts) = metered(Script::new().bytes("hi"), async |mut conn| {
        let read = conn.read(&mut []).await?;
        assert_eq!(read, 0);
        Ok(())
    })
    .await;

    assert_eq!(counts.closed_for(CloseReason::Served), 1);
}

#[tokio::test]
async fn a_panic_closes_as_a_panic() {
    let (layer, tally) = MeterLayer::pair("test");
    let service = layer.layer(service_fn(async |_: Conn<MeterIo<Script>>| {
        panic!("told to panic");
        #[expect(unreachable_code, reason = "the type of the service")]
        Ok::<_, BoxError>(())
    }));

    let (_, served) = serve(Script::new(), service);

    assert!(served.await.unwrap_err().is_panic());
    assert_eq!(
        tally
            .snapshot()
            .closed_for(CloseReason::Panic),
        1
    );
    assert_eq!(tally.snapshot().active(), 0);
}

#[tokio::test]
async fn a_clone_of_the_layer_shares_its_tally() {
    let (layer, tally) = MeterLayer::pair("test");
    let [one, other] = [layer.clone(), layer].map(|layer| layer.layer(service_fn(echo)));

    for service in [one.clone(), one, other] {
        let io = Script::new().bytes("hi").end();
        service
            .oneshot(Conn::new(io, ()))
            .await
            .unwrap();
    }

    let counts = tally.snapshot();
    assert_eq!(
        (counts.opened(), counts.read(), counts.written()),
        (3, 6, 6)
    );
}

#[tokio::test]
async fn bytes_are_visible_while_the_connection_is_open() {
    let (layer, tally) = MeterLayer::pair("test");
    let (near, mut far) = duplex(1024);
    let (info, _served) = serve(near, layer.layer(service_fn(echo)));

    far.write_all(b"hello").await.unwrap();
    far.read_exact(&mut [0; 5])
        .await
        .unwrap();

    let counts = tally.snapshot();
    assert_eq!(
        (counts.active(), counts.read(), counts.written()),
        (1, 5, 5)
    );
    assert_eq!((info.bytes_read(), info.bytes_written()), (5, 5));
}

#[tokio::test]
async fn bytes_of_a_connection_that_never_waits_are_visible_after_64_kib() {
    let (layer, tally) = MeterLayer::pair("test");
    let service = layer.layer(service_fn(async |mut conn: Conn<MeterIo<Script>>| {
        conn.write_all(&[0; 100 * 1024]).await?;
        Ok::<_, BoxError>(conn)
    }));

    let _open = service
        .oneshot(Conn::new(Script::new(), ()))
        .await;

    let counts = tally.snapshot();
    assert_eq!((counts.active(), counts.written()), (1, 100 * 1024));
}

#[tokio::test]
async fn only_the_outermost_meter_keeps_the_connections_own_counts() {
    let (outer, inner) = (MeterLayer::pair("outer"), MeterLayer::pair("inner"));
    let service = ServiceBuilder::new()
        .layer(outer.0)
        .layer(inner.0)
        .service_fn(echo);
    let conn = Conn::new(Script::new().bytes("hello").end(), ());
    let info = std::sync::Arc::clone(conn.info());

    service.oneshot(conn).await.unwrap();

    let read = [outer.1, inner.1].map(|tally: Tally| tally.snapshot().read());
    assert_eq!((read, info.bytes_read()), ([5, 5], 5));
}

#[tokio::test]
async fn a_stream_moved_elsewhere_is_open_until_it_is_dropped_there() {
    let (layer, tally) = MeterLayer::pair("test");
    let (sender, moved) = std::sync::mpsc::channel();
    let service = layer.layer(service_fn(async |conn: Conn<MeterIo<Script>>| {
        sender
            .send(conn)
            .map_err(|_| "nobody there")
    }));

    let ended = service
        .oneshot(Conn::new(Script::new(), ()))
        .await;
    let open = tally.snapshot().active();
    drop(moved);

    assert_eq!((ended, open, tally.snapshot().active()), (Ok(()), 1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_metrics_facade_is_told_the_same() {
    let (layer, metrics) = recorded(|| MeterLayer::new("kv"));
    let (near, mut far) = duplex(1024);
    let rpc = [("service", "kv")];
    let (_, served) = serve(near, layer.layer(service_fn(echo::<MeterIo<DuplexStream>>)));

    tokio::time::sleep(secs(2)).await;
    far.write_all(b"hello").await.unwrap();
    far.read_exact(&mut [0; 5])
        .await
        .unwrap();
    let active = metrics.of("tower_net_connections_active", &rpc);
    let received = metrics.of("tower_net_received_bytes_total", &rpc);
    drop(far);
    served.await.unwrap().unwrap();

    assert_eq!((active, received), (1.0, 5.0));
    let by_peer = [("service", "kv"), ("reason", "peer")];
    for (name, labels, value) in [
        ("tower_net_connections_opened_total", &rpc[..], 1.0),
        ("tower_net_connections_closed_total", &by_peer, 1.0),
        ("tower_net_connections_closed_total", &rpc, 1.0),
        ("tower_net_connections_active", &rpc, 0.0),
        ("tower_net_sent_bytes_total", &rpc, 5.0),
        ("tower_net_first_byte_seconds", &rpc, 1.0),
        ("tower_net_connection_seconds", &rpc, 1.0),
    ] {
        assert_eq!(metrics.of(name, labels), value, "{name}");
    }
}

#[test]
fn types_are_send_sync_and_debug() {
    fn check<T: Send + Sync + std::fmt::Debug>() {}
    check::<MeterLayer>();
    check::<Meter<()>>();
    check::<MeterIo<DuplexStream>>();
    check::<Tally>();
    check::<Snapshot>();
}

#[tokio::test]
async fn a_stream_that_ends_without_a_goodbye_was_left_by_its_peer_and_one_that_fails_was_reset() {
    for (kind, reason) in [
        (io::ErrorKind::UnexpectedEof, CloseReason::Peer),
        (io::ErrorKind::ConnectionReset, CloseReason::Reset),
    ] {
        let (layer, tally) = MeterLayer::pair("test");
        let service = tower::service_fn(async |mut conn: Conn<MeterIo<Script>>| {
            conn.read_u8().await.map(drop)
        });

        let conn = Conn::new(Script::new().fail(kind), ());
        let served = layer.layer(service).call(conn).await;

        assert_eq!(served.unwrap_err().kind(), kind);
        assert_eq!(tally.snapshot().closed_for(reason), 1, "{kind}");
    }
}
