use std::{
    fmt, io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use pin_project_lite::pin_project;
use tokio::io::AsyncWriteExt;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, rustls::server::Acceptor, server};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::{
        client_hello::{HelloError, HelloReader},
        error::{BoxError, ConfigError, is_disconnect},
        io::{
            Io, Linger, linger, peek,
            prelude::{PreludeError, take},
        },
        time::{later, now},
    },
    conn::{
        CloseReason, Conn, ConnInfo, Handshakes,
        handshakes::{HandshakeLimit, Ticket},
        reset_on_drop,
        staged::{Staged, take_ready},
    },
    middleware::tls::{
        HandshakeError, HandshakeFailure, TlsConfig, TlsInfo, TlsIo,
        failure::{Failed, class_of},
        metrics::{Attempt, Metrics},
    },
};

/// Accepts TLS. See the [module](crate::tls).
#[derive(Debug, Clone)]
pub struct TlsAcceptLayer {
    config: TlsConfig,
    limit: HandshakeLimit,
    max_hello: usize,
    metrics: Arc<Metrics>,
}

impl TlsAcceptLayer {
    /// With what each handshake begins: an `Arc<ServerConfig>`, or a [`TlsConfig`] that is swapped while it runs.
    ///
    /// The metrics' handles are made here, once: install the recorder first.
    #[must_use]
    pub fn new(config: impl Into<TlsConfig>) -> Self {
        Self {
            config: config.into(),
            limit: HandshakeLimit::new(Handshakes::default(), CloseReason::Handshake),
            max_hello: MAX_HELLO,
            metrics: Arc::new(Metrics::accepted()),
        }
    }

    /// How many handshakes may be under way at once, and for how long each. A clone of what the PROXY layer above
    /// has makes both count together. Default: 256 within 10 s.
    #[must_use]
    pub fn handshakes(mut self, handshakes: Handshakes) -> Self {
        self.limit = HandshakeLimit::new(handshakes, CloseReason::Handshake);
        self
    }

    /// The longest ClientHello, in bytes behind its header. Default: 16 KiB.
    ///
    /// More than 64 KiB is no use: rustls itself takes no more.
    ///
    /// # Errors
    ///
    /// A length of zero.
    pub fn max_hello(mut self, bytes: usize) -> Result<Self, ConfigError> {
        if bytes == 0 {
            return Err(ConfigError::zero("max_hello"));
        }
        self.max_hello = bytes;
        Ok(self)
    }
}

impl<S> Layer<S> for TlsAcceptLayer {
    type Service = TlsAccept<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TlsAccept {
            inner,
            shared: Arc::new(Shared {
                config: self.config.clone(),
                limit: self.limit.clone(),
                max_hello: self.max_hello,
                metrics: Arc::clone(&self.metrics),
            }),
        }
    }
}

/// The service of [`TlsAcceptLayer`].
#[derive(Debug, Clone)]
pub struct TlsAccept<S> {
    inner: S,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: TlsConfig,
    limit: HandshakeLimit,
    max_hello: usize,
    metrics: Arc<Metrics>,
}

impl<S, I> Service<Conn<I>> for TlsAccept<S>
where
    S: Service<Conn<TlsIo<I>>> + Clone,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = TlsAcceptFuture<S, I>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.shared.limit.check_time()?;
        self.inner
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, conn: Conn<I>) -> TlsAcceptFuture<S, I> {
        let staged = match self.shared.limit.begin(conn.info()) {
            Ok(ticket) => {
                let shared = Arc::clone(&self.shared);
                let handshake = async move { shared.accept(conn, ticket).await };
                Staged::after(handshake, take_ready(&mut self.inner))
            }
            Err(error) => {
                conn.refuse(CloseReason::HandshakeLimit);
                Staged::refused(error)
            }
        };
        TlsAcceptFuture { staged }
    }
}

pin_project! {
    /// The future of [`TlsAccept`]: the handshake, then the inner service.
    #[must_use = "futures do nothing unless polled"]
    pub struct TlsAcceptFuture<S, I>
    where
        S: Service<Conn<TlsIo<I>>>,
    {
        #[pin]
        staged: Staged<S, TlsIo<I>>,
    }
}

impl<S, I> Future for TlsAcceptFuture<S, I>
where
    S: Service<Conn<TlsIo<I>>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().staged.poll(cx)
    }
}

impl<S, I> fmt::Debug for TlsAcceptFuture<S, I>
where
    S: Service<Conn<TlsIo<I>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsAcceptFuture")
            .field(&self.staged)
            .finish()
    }
}

impl Shared {
    async fn accept<I: Io>(
        &self,
        conn: Conn<I>,
        ticket: Ticket,
    ) -> Result<Conn<TlsIo<I>>, BoxError> {
        let (io, info) = conn.into_parts();
        let attempt = Attempt::begin(&self.metrics);
        // Here, and not in the handshake, until it is certain that one is worth its while: one that is ended
        // before that leaves its stream behind, to be closed as its reason asks for.
        let mut io = Some(io);
        let ticket = Arc::new(ticket);
        let handshake = self.handshake(&mut io, &ticket);
        let handshake = self
            .limit
            .run(Arc::clone(&ticket), handshake);
        let failed = match handshake.await {
            Ok(Ok(tls)) => {
                let known = TlsInfo::of(tls.get_ref().1);
                attempt.succeeded(known.is_resumed());
                known.record(info.span());
                info.facts.add(known);
                info.handshakes_done();
                return Ok(Conn::from_parts(TlsIo::new(tls), info));
            }
            Ok(Err(failed)) => failed,
            Err(unfinished) => Failed::unfinished(unfinished),
        };
        // A goodbye is no handshake.
        drop(ticket);
        info.passed.cut_short();
        let reason = info.end_with(failed.reason);
        attempt.failed(failed.error.failure());
        log(&failed.error, &info);
        if let Some(io) = failed.io.or(io) {
            if reason.resets() {
                reset_on_drop(&io, &info);
            } else if failed.error.failure().has_a_listener() {
                say_goodbye(io, &failed.alert).await;
            }
        }
        Err(failed.error.into())
    }

    /// The handshake itself; takes the stream once the whole ClientHello is here.
    async fn handshake<I: Io>(
        &self,
        slot: &mut Option<I>,
        ticket: &Ticket,
    ) -> Result<server::TlsStream<I>, Failed<I>> {
        let io = slot
            .as_mut()
            .expect("given with its stream");
        let hello = self.read_hello(io, ticket).await?;
        ticket.heard();
        if has_left(io) {
            return Err(HandshakeFailure::Vanished.into());
        }
        let io = slot.take().expect("taken once");
        let (begun, mut rest) = begin(&hello, io).await?;
        // Of what came with the hello rustls has room for more than can be left.
        let begun = begun.into_stream_with(self.config.current(), |session| {
            while !rest.is_empty() && session.read_tls(&mut rest).is_ok() {}
        });
        drop(hello);
        let accepting = begun.into_fallible();
        accepting
            .await
            .map_err(|(error, io)| Failed::new(class_of(&error), error).with_io(io))
    }

    /// The bytes of the ClientHello, and what came with it.
    async fn read_hello<I: Io>(&self, io: &mut I, ticket: &Ticket) -> Result<BytesMut, Failed<I>> {
        let mut reader = HelloReader::new(self.max_hello);
        let most = self.max_hello.saturating_add(HEADERS);
        let mut seen = BytesMut::new();
        let read = take(io, &mut seen, (most, AHEAD), |seen| {
            if !seen.is_empty() {
                ticket.spoke();
            }
            reader.step(seen)
        });
        match read.await {
            Ok(_) => Ok(seen),
            Err(error) => Err(no_hello(error, seen.is_empty())),
        }
    }
}

/// Gives rustls the hello that was read, and whatever else it needs to take it. What it has not been given yet comes
/// back.
async fn begin<I: Io>(hello: &[u8], io: I) -> Result<(StartHandshake<I>, &[u8]), Failed<I>> {
    let mut acceptor = Acceptor::default();
    let mut rest = hello;
    while !rest.is_empty() {
        if let Err(error) = acceptor.read_tls(&mut rest) {
            return Err(Failed::new(HandshakeFailure::TooLong, error).with_io(io));
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok((StartHandshake::from_parts(accepted, io), rest)),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let error = io::Error::new(io::ErrorKind::InvalidData, error);
                let mut failed = Failed::new(class_of(&error), error).with_io(io);
                // Into memory, which takes everything.
                let _written = alert.write_all(&mut failed.alert);
                return Err(failed);
            }
        }
    }
    // The record goes on behind the hello: a record is taken whole or not at all.
    let mut accepting = pin!(LazyConfigAcceptor::new(acceptor, io));
    match accepting.as_mut().await {
        Ok(begun) => Ok((begun, rest)),
        Err(error) => {
            let mut failed = Failed::new(class_of(&error), error);
            failed.io = accepting.take_io();
            Err(failed)
        }
    }
}

/// Why there is no hello, and what its sender is told.
fn no_hello<I>(error: PreludeError<HelloError>, silent: bool) -> Failed<I> {
    let (failure, alert) = match &error {
        PreludeError::Refused(HelloError::NotTls { begun: false }) => {
            (HandshakeFailure::NotTls, None)
        }
        PreludeError::Refused(HelloError::TooLong { .. }) | PreludeError::TooLong(_) => {
            (HandshakeFailure::TooLong, Some(HANDSHAKE_FAILURE))
        }
        PreludeError::Refused(_) => (HandshakeFailure::Malformed, Some(DECODE_ERROR)),
        PreludeError::Ended(_) => (HandshakeFailure::Vanished, None),
        PreludeError::Io(error) => (class_of(error), None),
        PreludeError::Elapsed => (HandshakeFailure::Late, None),
    };
    let mut failed = match error {
        PreludeError::Refused(error) => Failed::new(failure, error),
        PreludeError::Ended(_) => Failed::from(failure),
        other => Failed::new(failure, other),
    };
    if failure == HandshakeFailure::Vanished && silent {
        failed.reason = CloseReason::Peer;
    }
    if let Some(description) = alert {
        failed.alert = fatal_alert(description);
    }
    failed
}

/// A fatal alert in a record of its own, not encrypted (RFC 8446, sections 5.1 and 6).
fn fatal_alert(description: u8) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, description]
}

/// Closes in order: a close with unread input would be a reset, and take the alert with it.
async fn say_goodbye<I: Io>(mut io: I, alert: &[u8]) {
    let goodbye = async {
        if io.write_all(alert).await.is_ok() {
            let bounds = Linger::default()
                .total(GOODBYE)
                .bytes(GOODBYE_BYTES);
            // Whoever does not wait for it has nothing to lose.
            let _gone = linger(io, bounds).await;
        }
    };
    if let Some(by) = later(now(), GOODBYE) {
        let _in_time = tokio::time::timeout_at(by, goodbye).await;
    }
}

/// Probes are every listener's daily bread; what is left is worth a look.
fn log(error: &HandshakeError, info: &ConnInfo) {
    macro_rules! failed {
        ($event:ident) => {
            tracing::$event!(
                parent: info.span(),
                conn = %info.id(),
                peer = %info.peer(),
                failure = error.failure().label(),
                cause = error.cause(),
                "TLS handshake failed",
            )
        };
    }
    if error.failure().is_a_probe() {
        failed!(debug);
    } else {
        failed!(info);
    }
}

/// Whether the peer has ended its side or is gone, and left nothing to read.
fn has_left<I: Io>(io: &I) -> bool {
    match peek(io) {
        Some(Ok(unread)) => unread == 0,
        Some(Err(error)) => is_disconnect(&error),
        None => false,
    }
}

/// On the wire a hello has its own header and those of its records, which may be as small as one byte: whoever splits
/// so finely is given room for a hello of a usual size.
const HEADERS: usize = 4 + 5 * 1024;

/// What clients send is a few hundred bytes, with post-quantum key shares two thousand. As Envoy has it.
const MAX_HELLO: usize = 16 * 1024;

/// A read takes so many bytes at least, if they are there: a hello is mostly one read then. (As much is held for a
/// peer that is silent, while its handshake is under way.)
const AHEAD: usize = 2 * 1024;

/// An alert, or an end, has crossed the world in less.
const GOODBYE: Duration = Duration::from_secs(1);

/// More than any request that a client sends before it listens.
const GOODBYE_BYTES: u64 = 64 * 1024;

const HANDSHAKE_FAILURE: u8 = 40;
const DECODE_ERROR: u8 = 50;
