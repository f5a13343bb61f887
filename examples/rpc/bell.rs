//! The good clients that wait: each hears of every change of one key that a worker's client changes.
//!
//! Most of the time they have nothing but a wait in flight. That is work, not idleness: no deadline of the
//! demo may end them, and the drain must give them a last answer.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::sleep;

use crate::{
    client::Client,
    load::{Seen, Shared},
    protocol::{Call, Reply},
};

/// Waits for one ring after the other, until the connection is over.
pub(crate) async fn listen(client: Client, shared: Arc<Shared>) -> Seen {
    let mut seen = Seen::new();
    let mut last = None;
    loop {
        let wait = Call::Wait {
            key: BELL.to_owned(),
            seen: last.clone(),
        };
        let reply = client.call(wait).await;
        let draining = shared.draining.load(Relaxed);
        match reply {
            Ok(Reply::Value(Some(ring))) if number(&ring) > last.as_deref().and_then(number) => {
                last = Some(ring);
            }
            Ok(Reply::Unchanged) if draining => {}
            Ok(reply) => {
                seen.wrong += 1;
                seen.complaints
                    .push(format!("after ring {last:?}: {reply}"));
                return seen;
            }
            Err(error) => {
                seen.lost_to(error, draining);
                return seen;
            }
        }
        seen.answered += 1;
        shared.answered.fetch_add(1, Relaxed);
    }
}

/// Rings now and then, until the connection is over.
pub(crate) async fn ring(client: Client, shared: Arc<Shared>) -> Seen {
    let mut seen = Seen::new();
    for number in 0_u64.. {
        let call = Call::Put {
            key: BELL.to_owned(),
            value: number.to_string(),
        };
        match client.call(call).await {
            Ok(Reply::Stored { replaced }) if replaced == (number > 0) => seen.answered += 1,
            Ok(reply) => {
                seen.wrong += 1;
                seen.complaints
                    .push(format!("ring {number}: {reply}"));
                break;
            }
            Err(error) => {
                seen.lost_to(error, shared.draining.load(Relaxed));
                break;
            }
        }
        sleep(PAUSE).await;
    }
    seen
}

fn number(ring: &str) -> Option<u64> {
    ring.parse().ok()
}

const BELL: &str = "bell";

/// Between two rings.
const PAUSE: Duration = Duration::from_millis(200);
