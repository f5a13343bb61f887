//! The full stack, as a service in production has it, and the handler that all tests here talk to.

use std::{
    io,
    net::SocketAddr,
    panic,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::{task::JoinHandle, time::sleep};
use tower::{Service, ServiceBuilder, util::Either};
use tower_net::{
    Backoff, Conn, Report, Serve, ServeError, ServeFuture, Server, ServerHandle,
    deadline::{DeadlineLayer, Deadlines},
    error::BoxError,
    frame::{FrameError, FrameLayer, Framing, LengthDelimited, Request, RpcCodec, RpcLayer},
    io::Io,
    limit::{ConnectionLimitHandle, ConnectionLimitLayer, OverLimit},
    listen::Tcp,
    meter::{MeterLayer, Tally},
    pressure::{PressureLayer, Thresholds},
    trace::TraceLayer,
};

use crate::peer::soon;

/// What one test sets differently from another.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) limit: usize,
    pub(crate) over: OverLimit,
    pub(crate) deadlines: Deadlines,
    pub(crate) framing: Framing,
    pub(crate) max_frame: usize,
    pub(crate) skip_oversize: bool,
    /// Frames of the RPC framing.
    pub(crate) rpc: bool,
    pub(crate) drain: Duration,
    pub(crate) backoff: Backoff,
    pub(crate) pressure: Thresholds,
}

impl Default for Settings {
    /// Limits that no test reaches unless it means to.
    fn default() -> Self {
        let deadlines = Deadlines::default()
            .first_byte(FAR)
            .idle(FAR)
            .write_stall(FAR);
        let framing = Framing::default()
            .pipelined(64)
            .request_deadline(FAR)
            .handler_deadline(FAR)
            .reply_deadline(FAR);
        Self {
            limit: 20_000,
            over: OverLimit::Reset,
            deadlines,
            framing,
            max_frame: 4 << 20,
            skip_oversize: false,
            rpc: false,
            drain: FAR,
            backoff: Backoff::default(),
            pressure: Thresholds::default(),
        }
    }
}

/// The stack, and what can be read of it from outside.
#[derive(Debug, Clone)]
pub(crate) struct Stack<S> {
    pub(crate) service: S,
    pub(crate) tally: Tally,
    pub(crate) places: ConnectionLimitHandle,
}

impl Settings {
    pub(crate) fn stack<I: Io>(
        self,
    ) -> Stack<
        impl Service<Conn<I>, Response = (), Error = BoxError, Future: Send> + Clone + Send + 'static,
    > {
        let (meter, tally) = MeterLayer::pair("wire");
        let limit = ConnectionLimitLayer::new(self.limit).unwrap();
        let limit = limit.over_limit(self.over);
        let places = limit.handle();
        let mut codec = LengthDelimited::max_frame(self.max_frame);
        if self.skip_oversize {
            codec = codec.skip_oversize();
        }
        let crossing = if self.rpc {
            let codec = RpcCodec::max_payload(self.max_frame);
            Either::Left(RpcLayer::with_framing(codec, self.framing).unwrap())
        } else {
            let frames = FrameLayer::with_framing(codec, self.framing).unwrap();
            Either::Right(frames.last_reply(last_words))
        };
        let service = ServiceBuilder::new()
            .layer(meter)
            .layer(PressureLayer::new(self.pressure).unwrap())
            .layer(TraceLayer::new())
            .layer(limit)
            .layer(DeadlineLayer::new(self.deadlines).unwrap())
            .layer(crossing)
            .service_fn(answer);
        Stack {
            service,
            tally,
            places,
        }
    }

    /// Serves on a free port, on the runtime of the caller.
    pub(crate) async fn start(self) -> Running {
        let listener = Tcp::bind("127.0.0.1:0").await.unwrap();
        self.start_on(listener)
    }

    pub(crate) fn start_on(self, listener: Tcp) -> Running {
        let addr = listener.local_addr().unwrap();
        let (drain, backoff) = (self.drain, self.backoff.clone());
        let stack = self.stack();
        let serve = Server::new(listener)
            .serve(stack.service)
            .drain_for(drain)
            .backoff(backoff);
        Running::spawn(addr, serve, stack.tally, stack.places)
    }
}

/// A server at work.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) tally: Tally,
    pub(crate) places: ConnectionLimitHandle,
    pub(crate) handle: ServerHandle,
    pub(crate) serving: JoinHandle<Report>,
}

impl Running {
    fn spawn<S>(
        addr: SocketAddr,
        serve: Serve<Tcp, S>,
        tally: Tally,
        places: ConnectionLimitHandle,
    ) -> Self
    where
        Serve<Tcp, S>: IntoFuture<Output = Result<Report, ServeError>, IntoFuture = ServeFuture>,
    {
        let handle = serve.handle();
        let serving = serve.into_future();
        Self {
            addr,
            tally,
            places,
            handle,
            serving: tokio::spawn(async { serving.await.unwrap() }),
        }
    }

    /// Waits for the end, which somebody has asked for.
    pub(crate) async fn report(self) -> Report {
        let report = soon(self.serving).await.unwrap();
        let closed: u64 = report
            .closed()
            .map(|(_, count)| count)
            .sum();
        assert_eq!(report.opened(), closed + report.stuck(), "{report}");
        report
    }

    /// Drains, and waits for that.
    pub(crate) async fn drained(self) -> Report {
        self.handle.shutdown();
        self.report().await
    }
}

/// An accept loop at work, whatever it accepts from.
pub(crate) struct Loop {
    pub(crate) handle: ServerHandle,
    pub(crate) serving: JoinHandle<Result<Report, ServeError>>,
}

impl Loop {
    pub(crate) fn spawn(handle: ServerHandle, serving: ServeFuture) -> Self {
        let serving = tokio::spawn(serving);
        Self { handle, serving }
    }

    pub(crate) async fn drained(self) -> Result<Report, ServeError> {
        self.handle.shutdown();
        soon(self.serving).await.unwrap()
    }
}

/// Says in a frame why there will be no further one.
fn last_words(error: &FrameError) -> Option<Bytes> {
    Some(Bytes::from(error.reason().label()))
}

/// Does what the request says; whatever it does not know it sends back.
async fn answer(request: Request<Bytes>) -> io::Result<Bytes> {
    STARTED.fetch_add(1, Relaxed);
    let words = String::from_utf8_lossy(request.message()).into_owned();
    match words.split_once(' ') {
        Some(("big", length)) => return Ok(Bytes::from_static(&ZEROS[..number(length)])),
        Some(("late", length)) => {
            sleep(Duration::from_millis(1)).await;
            return Ok(Bytes::from_static(&ZEROS[..number(length)]));
        }
        Some(("after", millis)) => sleep(Duration::from_millis(number(millis) as u64)).await,
        Some(("block", millis)) => {
            BLOCKING.fetch_add(1, Relaxed);
            std::thread::sleep(Duration::from_millis(number(millis) as u64));
        }
        None if words == "leave" => request.conn().close_after_reply(),
        None if words == "fail" => return Err(io::Error::other("asked to fail")),
        // A panic without the message on standard error that a hook would print.
        None if words == "panic" => panic::resume_unwind(Box::new("asked to")),
        _ => {}
    }
    Ok(request.into_message())
}

fn number(digits: &str) -> usize {
    digits.trim().parse().unwrap()
}

/// Requests that a handler of this process has begun.
pub(crate) static STARTED: AtomicU64 = AtomicU64::new(0);

/// Of them, those that do not let go of their thread.
pub(crate) static BLOCKING: AtomicU64 = AtomicU64::new(0);

/// The content of big replies, which takes no memory.
static ZEROS: [u8; 4 << 20] = [0; 4 << 20];

/// Beyond the end of every test.
pub(crate) const FAR: Duration = Duration::from_secs(300);
