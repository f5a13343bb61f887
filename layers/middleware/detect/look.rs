use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{
    Detected, OTHER, Shared,
    protocol::{Answer, Hello},
    route::{Route, Serving},
};
use crate::{
    base::{
        error::BoxError,
        io::{Io, RewoundIo},
        time::now,
    },
    conn::{
        CloseReason, Conn, Elapsed,
        opening::{Opened, Opening},
        waits::plus,
    },
};

/// What became of a connection whose first bytes were looked at.
pub(super) enum Looked<I> {
    Route(Serving),
    Other(Conn<RewoundIo<I>>),
    Over(Result<(), BoxError>),
}

/// Looks at the first bytes of `conn`, and gives it to the route that they are for.
pub(super) async fn look<I: Io>(shared: Arc<Shared<I>>, mut conn: Conn<I>) -> Looked<I> {
    let info = Arc::clone(conn.info());
    // For the handshakes behind this, which are not to have their time anew.
    info.handshake_since();
    let over = |result| {
        info.passed.cut_short();
        Looked::Over(result)
    };
    let settings = shared.settings;
    let spoke = AtomicBool::new(false);
    let mut seen = BytesMut::new();
    let mut search = Search {
        routes: &shared.routes,
        at: 0,
        hello: Hello::new(settings.max_bytes),
    };
    let found = {
        let by = plus(info.stamp(now()), settings.within);
        let searching = search.run(&mut conn, &mut seen, settings.max_bytes, &spoke);
        let mut opening = pin!(Opening::new(by, searching));
        loop {
            let spoke = || spoke.load(Relaxed);
            let opened = poll_fn(|cx| opening.as_mut().poll(cx, &info, spoke));
            match opened.await {
                Opened::Said(found) => break found,
                Opened::Left(reason) => {
                    info.end_with(reason);
                    return over(Ok(()));
                }
                Opened::Late => {}
            }
            let silent = !spoke();
            if silent && settings.silent_is_other {
                break Ok(Found::Other);
            }
            let (which, spared) = if silent {
                (CloseReason::FirstByte, &shared.spared_silent)
            } else {
                (CloseReason::Detect, &shared.spared_slow)
            };
            if !settings.dry_run {
                info.end_with(which);
                let elapsed = Elapsed::new(which, Some(settings.within));
                return over(Err(elapsed.into()));
            }
            spared.increment(1);
        }
    };
    let route = match found {
        Ok(Found::Nobody) => {
            info.end_with(CloseReason::Peer);
            return over(Ok(()));
        }
        Err(error) => {
            info.ending.saw_failure(&error);
            return over(Err(error.into()));
        }
        Ok(Found::Route(route)) => Some(route),
        Ok(Found::Other) => None,
    };
    info.facts.add(Detected {
        protocol: route.map_or(OTHER, |route| route.protocol.name()),
        hello: search.hello.into_known(),
    });
    let seen = seen.freeze();
    let conn = conn.map_io(|io| RewoundIo::new(seen, io));
    if let Some(route) = route {
        route.detected.increment(1);
        Looked::Route(route.serve(conn))
    } else {
        shared.other.increment(1);
        Looked::Other(conn)
    }
}

enum Found<'a, I> {
    Route(&'a Route<I>),
    Other,
    /// The peer left without a byte.
    Nobody,
}

/// The first route that has not said no.
struct Search<'a, I> {
    routes: &'a [Route<I>],
    at: usize,
    hello: Hello,
}

impl<'a, I> Search<'a, I> {
    /// Reads until a route is found.
    ///
    /// Cancel safe: what was read is in `seen`.
    async fn run<R: AsyncRead + Unpin>(
        &mut self,
        io: &mut R,
        seen: &mut BytesMut,
        most: usize,
        spoke: &AtomicBool,
    ) -> io::Result<Found<'a, I>> {
        if self.routes.is_empty() {
            return Ok(Found::Other);
        }
        // No route is asked before there is a byte: a matcher might say no to nothing, and mean not yet.
        let mut want = 1;
        loop {
            // Whoever is chosen reads all of it again, so that reading ahead costs nothing and saves reads.
            let room = want.max(CHUNK).min(most - seen.len());
            seen.reserve(room.min(CHUNK));
            let read = io
                .take(room as u64)
                .read_buf(seen)
                .await?;
            if seen.is_empty() {
                return Ok(Found::Nobody);
            }
            spoke.store(true, Relaxed);
            let is_all = read == 0 || seen.len() >= most;
            match self.choose(seen, is_all) {
                Ok(route) => return Ok(route.map_or(Found::Other, Found::Route)),
                Err(more) => want = more,
            }
        }
    }

    /// The route for these bytes, or none of them; or how many more are needed to tell, unless there are no more.
    fn choose(&mut self, seen: &[u8], is_all: bool) -> Result<Option<&'a Route<I>>, usize> {
        while let Some(route) = self.routes.get(self.at) {
            match route
                .protocol
                .ask(seen, &mut self.hello)
            {
                Answer::Yes => return Ok(Some(route)),
                Answer::More(want) if !is_all => return Err(want),
                Answer::No | Answer::More(_) => self.at += 1,
            }
        }
        Ok(None)
    }
}

/// Read at once at the least, and reserved at the most before bytes arrive: a usual hello or request head.
const CHUNK: usize = 512;
