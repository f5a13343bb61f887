//! Code of others that panics inside a client ends what it was with, and nothing else.

use std::{
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::io::duplex;
use tower::service_fn;
use tower_net::{
    Conn,
    client::{Client, Disconnected, Heard, Protocol, Settings},
    error::{BoxError, find},
    frame::RpcCodec,
};

use crate::{client::settle, support::rpc::peers};

/// A call that panics when it is cloned, or written, if it says so.
struct Call(&'static str);

impl Clone for Call {
    fn clone(&self) -> Self {
        assert!(self.0 != "cloned", "told to panic");
        Self(self.0)
    }
}

#[derive(Clone)]
struct Fragile(RpcCodec);

impl Protocol<Call> for Fragile {
    type Reply = Bytes;

    const HAS_IDS: bool = true;

    fn ask(
        &mut self,
        id: u64,
        left: Option<Duration>,
        call: Call,
        out: &mut BytesMut,
    ) -> Result<(), BoxError> {
        assert!(call.0 != "written", "told to panic");
        Protocol::ask(
            &mut self.0,
            id,
            left,
            Bytes::from_static(call.0.as_bytes()),
            out,
        )
    }

    fn cancel(&mut self, id: u64, out: &mut BytesMut) -> Result<(), BoxError> {
        Protocol::<Bytes>::cancel(&mut self.0, id, out)
    }

    fn hear(
        &mut self,
        input: &mut BytesMut,
        ended: bool,
    ) -> Result<Option<Heard<Bytes>>, BoxError> {
        Protocol::<Bytes>::hear(&mut self.0, input, ended)
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_as_it_is_cloned_or_written_is_over_with_its_connection() {
    for poison in ["cloned", "written"] {
        let (connector, mut peers) = peers(256);
        let protocol = Fragile(RpcCodec::max_payload(256));
        let client = Client::with_protocol(protocol, Settings::default(), connector, ()).unwrap();
        let before = tokio::spawn(client.send(Call("before")));
        let mut peer = peers.next().await;
        peer.asked().await;

        let error = client
            .send(Call(poison))
            .await
            .unwrap_err();

        let cause = find::<Disconnected>(&error);
        assert!(matches!(cause, Some(Disconnected::Aborted)), "{error:?}");
        assert!(error.never_started());
        let error = before.await.unwrap().unwrap_err();
        assert!(!error.never_started());
        assert_eq!((client.connections(), client.in_flight()), (0, 0));
        let next = tokio::spawn(client.send(Call("next")));
        peers.next().await.echo().await;
        assert_eq!(next.await.unwrap().unwrap(), "next");
    }
}

/// Panics when it is dropped, and says that it was.
struct Clings(Arc<AtomicBool>);

impl Drop for Clings {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
        panic!("told to panic");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_panics_as_it_is_dropped_is_survived() {
    let dropped = Arc::new(AtomicBool::new(false));
    let clings = dropped.clone();
    let connector = service_fn(move |()| {
        let clings = clings.clone();
        async move {
            let _clings = Clings(clings);
            pending::<()>().await;
            Ok::<_, io::Error>(Conn::new(duplex(1).0, ()))
        }
    });
    let client = Client::new(connector, ());
    let call = tokio::spawn(client.send(Bytes::from_static(b"x")));
    settle().await;

    // Nobody needs the connection any more.
    call.abort();
    drop(client);
    settle().await;

    // A second panic while the first is under way would be the end of the process.
    assert!(dropped.load(Relaxed));
}
