//! Stop accepting, ask, wait, cut.
//!
//! ```text
//!  signal: every connection       what was queued is accepted,       drain_for is over,
//!    │     is told to leave         the listeners are closed           or a second signal
//!    ▼                                    ▼                                  ▼
//!  ──┼── draining: idle ones end now, ────┴── busy ones finish ──────────────┼── cutting ── report
//!    │                                                                       │    resets, 1 s at most
//! ```

use std::{future::pending, time::Duration};

use tokio::time::{sleep_until, timeout};

use crate::{
    base::time::later,
    conn::CloseReason,
    server::{
        live::{CUT_WITHIN, Live, Phase},
        report::Report,
    },
};

/// Cuts what is still open when `grace` is over. Runs beside the drain, from its beginning.
pub(crate) async fn cut_after(live: &Live, grace: Duration) {
    live.reached(Phase::Draining).await;
    tracing::info!(open = live.len(), ?grace, "draining");
    match later(live.draining_since(), grace) {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
    live.advance(Phase::Cutting);
}

/// Waits for every connection, which has been told to leave, and cuts those that have not left in time.
pub(crate) async fn drain(live: &Live) -> Report {
    tokio::select! {
        () = live.all_ended() => {}
        () = live.reached(Phase::Cutting) => {}
    }
    live.advance(Phase::Cutting);
    live.cut(CloseReason::Cut);
    // A task that does not yield even then is counted, and not waited for.
    let _all = timeout(CUT_WITHIN, live.all_ended()).await;
    let report = live.account();
    live.ended_with(&report);
    tracing::info!(%report, "drained");
    report
}
