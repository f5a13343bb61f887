//! Certificates that change while clients come and go.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use tower_net::tls::ConfigFault;

use super::{Client, Settings, Town};
use crate::peer::{alone, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_reloads_under_load_fail_no_handshake_and_drop_no_connection() {
    let _machine = alone().await;
    let town = Town::start(Settings::default()).await;
    let mut established = town.connect().await;
    let config = Arc::new(town.authority.trusting());
    let (over, dialled) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (config, addr) = (Arc::clone(&config), town.addr);
            let (over, dialled) = (Arc::clone(&over), Arc::clone(&dialled));
            tokio::spawn(async move {
                while !over.load(Relaxed) {
                    let mut client = Client::connect(addr, &config)
                        .await
                        .unwrap();
                    assert_eq!(client.call("hello").await.unwrap(), "hello");
                    dialled.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();

    let mut last = None;
    for _ in 0..100 {
        let before = dialled.load(Relaxed);
        let pair = town.renew();
        town.reload.reload().unwrap();
        last = Some(pair);
        // Each is in use while some come.
        until(|| dialled.load(Relaxed) > before).await;
    }
    over.store(true, Relaxed);
    for client in clients {
        client.await.unwrap();
    }

    let fresh = town.connect().await;
    assert_eq!(fresh.shown(), last.unwrap().chain[0].as_ref());
    assert_eq!(established.call("still").await.unwrap(), "still");
    let dialled = dialled.load(Relaxed) as f64 + 2.0;
    let succeeded = || town.outcome("ok_full") + town.outcome("ok_resumed");
    // A client of TLS 1.3 is done a little before we are.
    until(|| succeeded() == dialled).await;
    // Clients went on resuming across the reloads.
    assert!(town.outcome("ok_resumed") > dialled / 2.0);
    assert_eq!(
        town.metrics
            .of("tower_net_handshakes_total", &[]),
        dialled
    );
    let reloads = |outcome| {
        town.metrics
            .of("tower_net_tls_reloads_total", &[("outcome", outcome)])
    };
    assert_eq!(reloads("ok"), 100.0);

    fs::write(town.folder.path().join("a.key"), "no key").unwrap();
    let error = town.reload.reload().unwrap_err();

    assert_eq!(error.fault(), ConfigFault::NoKey);
    assert_eq!((reloads("ok"), reloads("no_key")), (100.0, 1.0));
    let still = town.connect().await;
    assert_eq!(still.shown(), fresh.shown());
    drop((fresh, still, established));
    town.drained().await;
}
