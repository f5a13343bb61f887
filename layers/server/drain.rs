//! Stop accepting, ask, wait, cut.
//!
//! ```text
//!  signal          accept what is queued,      every connection          drain_for is over
//!    │             close the listeners         has been told             or a second signal
//!    ▼                   ▼                         ▼                          ▼
//!  ──┼── draining ───────┴─────────────────────────┴── idle ones end now ─────┼── cutting ── report
//!    │                                                 busy ones finish       │    resets, 1 s at most
//! ```

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    base::time::{later, now},
    conn::CloseReason,
    server::{
        live::{CUT_WITHIN, Live, Phase},
        report::Report,
    },
};

/// Ends every connection: asks first, and cuts after `grace` or when told to.
pub(crate) async fn drain(live: &Live, grace: Duration) -> Report {
    let begun = now();
    tracing::info!(open = live.len(), ?grace, "draining");
    live.tell_to_leave();
    let left = async {
        tokio::select! {
            () = live.all_ended() => {}
            () = live.reached(Phase::Cutting) => {}
        }
    };
    match later(begun, grace) {
        Some(deadline) => {
            // Either way it is over.
            let _in_time = tokio::time::timeout_at(deadline, left).await;
        }
        None => left.await,
    }
    live.advance(Phase::Cutting);
    live.cut(CloseReason::Cut);
    let _all = timeout(CUT_WITHIN, live.all_ended()).await;
    let report = Report::new(live.counts(), live.len(), now() - begun);
    tracing::info!(%report, "drained");
    report
}
