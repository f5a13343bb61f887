use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::BytesMut;
use metrics::{Counter, counter};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;
use tracing::{debug, field};

use crate::{
    base::{
        error::{BoxError, ConfigError},
        io::{
            Io,
            prelude::{self, PreludeError},
        },
    },
    conn::{
        CloseReason, Conn, ConnInfo, Handshakes, Networks,
        handshakes::{HandshakeLimit, Ticket},
        refusals::Refusals,
        staged::{Staged, take_ready},
    },
    middleware::proxy_protocol::{
        error::{HeaderError, Problem, ProxyError},
        header::{Command, Header, Version},
        rules::HeaderRules,
    },
};

/// What becomes of a peer that is none of those who must send a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Others {
    /// It is reset at once.
    #[default]
    Refuse,
    /// It is served as it is, and its bytes are not touched: a header that it sends reaches the service.
    Direct,
    /// It must send a header as well, and is not believed: the header is taken off, and the peer is the one on the
    /// socket. For proxies that send one and may not speak for anybody.
    IgnoreHeader,
}

/// Takes PROXY headers off connections. See the [module](crate::proxy_protocol).
#[derive(Debug, Clone)]
pub struct ProxyProtocolLayer {
    settings: Settings,
}

#[derive(Debug, Clone)]
struct Settings {
    trusted: Networks,
    trust_unnamed: bool,
    others: Others,
    rules: HeaderRules,
    handshakes: HandshakeLimit,
    refusals: Refusals,
    outcomes: Outcomes,
}

impl ProxyProtocolLayer {
    /// A peer in one of these networks must send a header, and is believed. The address is that of the socket
    /// ([`wire_peer`](ConnInfo::wire_peer)), whatever else was announced.
    ///
    /// Takes [`Networks`], or what they are made of: `["10.0.0.0/8", "fd00::/8"]`.
    ///
    /// # Errors
    ///
    /// One of them is no network.
    pub fn required_from<N>(networks: N) -> Result<Self, ConfigError>
    where
        N: TryInto<Networks>,
        ConfigError: From<N::Error>,
    {
        Ok(Self {
            settings: Settings {
                trusted: networks.try_into()?,
                trust_unnamed: false,
                others: Others::default(),
                rules: HeaderRules::default(),
                handshakes: within(Handshakes::default()),
                refusals: Refusals::new(CloseReason::ProxyHeader),
                outcomes: Outcomes::new(),
            },
        })
    }

    /// What to do with everybody else. Default: [`Others::Refuse`].
    #[must_use]
    pub fn others(mut self, others: Others) -> Self {
        self.settings.others = others;
        self
    }

    /// Has peers without an IP address, which come over a Unix socket, send a header and be believed. Who can open
    /// the socket can then name any client. Default: off, they are [others](Self::others).
    #[must_use]
    pub fn trust_unnamed(mut self, on: bool) -> Self {
        self.settings.trust_unnamed = on;
        self
    }

    /// Which headers are accepted. Default: [`HeaderRules::default`].
    #[must_use]
    pub fn rules(mut self, rules: HeaderRules) -> Self {
        self.settings.rules = rules;
        self
    }

    /// How many headers may be outstanding at once, and for how long each. Give the same one to the TLS layer below:
    /// a connection then has one time for both. Default: [`Handshakes::default`], 256 at once, within 10 s each.
    #[must_use]
    pub fn handshakes(mut self, handshakes: Handshakes) -> Self {
        self.settings.handshakes = within(handshakes);
        self
    }

    /// Serves as it is who would have been refused for where it comes from, and counts it. Nobody else's header is
    /// believed for that, and a header that is due and missing or malformed still ends its connection. Default: off.
    ///
    /// The number and time of headers have [a dry run of their own](Handshakes::dry_run).
    #[must_use]
    pub fn dry_run(mut self, on: bool) -> Self {
        self.settings.refusals.dry_run(on);
        self
    }
}

impl<S> Layer<S> for ProxyProtocolLayer {
    type Service = ProxyProtocol<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ProxyProtocol {
            inner,
            settings: Arc::new(self.settings.clone()),
        }
    }
}

/// The service of [`ProxyProtocolLayer`].
#[derive(Debug, Clone)]
pub struct ProxyProtocol<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S, I> Service<Conn<I>> for ProxyProtocol<S>
where
    S: Service<Conn<I>> + Clone,
    S::Error: Into<BoxError>,
    I: Io,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ProxyProtocolFuture<S, I>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.settings.handshakes.check_time()?;
        self.inner
            .poll_ready(cx)
            .map_err(Into::into)
    }

    fn call(&mut self, conn: Conn<I>) -> ProxyProtocolFuture<S, I> {
        let settings = &self.settings;
        let believe = settings.trusts(conn.info());
        if !believe && settings.others != Others::IgnoreHeader {
            if settings.others == Others::Refuse && settings.refusals.refuse() {
                settings
                    .outcomes
                    .count(Outcome::Untrusted);
                conn.info().passed.cut_short();
                conn.refuse(CloseReason::ProxyHeader);
                return ProxyProtocolFuture {
                    staged: Staged::refused(ProxyError::new(Problem::Untrusted)),
                };
            }
            settings.outcomes.count(Outcome::Direct);
            return ProxyProtocolFuture {
                staged: Staged::at_once(self.inner.call(conn)),
            };
        }
        let staged = match settings.handshakes.begin(conn.info()) {
            Ok(ticket) => {
                let reading = take_header(Arc::clone(settings), conn, ticket, believe);
                Staged::after(reading, take_ready(&mut self.inner))
            }
            Err(error) => {
                settings.outcomes.count(Outcome::Limit);
                conn.refuse(CloseReason::HandshakeLimit);
                Staged::refused(error)
            }
        };
        ProxyProtocolFuture { staged }
    }
}

pin_project! {
    /// The future of [`ProxyProtocol`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ProxyProtocolFuture<S, I>
    where
        S: Service<Conn<I>>,
    {
        #[pin]
        staged: Staged<S, I>,
    }
}

impl<S, I> Future for ProxyProtocolFuture<S, I>
where
    S: Service<Conn<I>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().staged.poll(cx)
    }
}

impl<S, I> fmt::Debug for ProxyProtocolFuture<S, I>
where
    S: Service<Conn<I>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ProxyProtocolFuture")
            .field(&self.staged)
            .finish()
    }
}

impl Settings {
    fn trusts(&self, info: &ConnInfo) -> bool {
        match info.wire_peer().ip() {
            Some(ip) => self.trusted.contains(ip),
            None => self.trust_unnamed,
        }
    }

    /// What the connection is served as, now that its header is here.
    fn accept(&self, info: &ConnInfo, header: Header, believe: bool) {
        if !believe {
            return self.outcomes.count(Outcome::Ignored);
        }
        self.outcomes
            .count(match (header.command(), header.version()) {
                (Command::Local, _) => Outcome::Local,
                (Command::Proxy, Version::V1) => Outcome::V1,
                (Command::Proxy, Version::V2) => Outcome::V2,
            });
        if let Some(client) = header.source() {
            info.announce_peer(client);
            info.span()
                .record("announced", field::display(info.peer()));
        }
        info.facts.add(header);
    }
}

/// Takes the header off a connection, and nothing behind it: so the stream stays as it is.
async fn take_header<I: Io>(
    settings: Arc<Settings>,
    mut conn: Conn<I>,
    ticket: Ticket,
    believe: bool,
) -> Result<Conn<I>, BoxError> {
    let info = Arc::clone(conn.info());
    let ticket = Arc::new(ticket);
    let mut seen = BytesMut::new();
    let taken = {
        let step = |seen: &[u8]| {
            if !seen.is_empty() {
                ticket.spoke();
            }
            settings.rules.step(seen)
        };
        let taking = prelude::take(
            conn.io_mut(),
            &mut seen,
            (settings.rules.longest(), 0),
            step,
        );
        let running = settings
            .handshakes
            .run(Arc::clone(&ticket), taking);
        running.await
    };
    let (problem, reason, outcome) = match taken {
        Ok(Ok((header, length))) => {
            debug_assert_eq!(length, seen.len(), "a byte behind the header was taken");
            settings.accept(&info, header, believe);
            return Ok(conn);
        }
        Ok(Err(PreludeError::Ended(0))) => (Problem::Left, CloseReason::Peer, Outcome::Silent),
        Ok(Err(PreludeError::Io(error))) => {
            (Problem::Io(error), CloseReason::Reset, Outcome::Failed)
        }
        Ok(Err(malformed)) => {
            let error = match malformed {
                PreludeError::Refused(error) => error,
                PreludeError::TooLong(limit) => HeaderError::TooLong {
                    length: limit + 1,
                    limit,
                },
                _ => HeaderError::Truncated { length: seen.len() },
            };
            let raw = &seen[..seen.len().min(LOGGED)];
            debug!(
                conn = %info.id(),
                wire_peer = %info.wire_peer(),
                %error,
                raw = %raw.escape_ascii(),
                "PROXY header refused",
            );
            (
                Problem::Header(error),
                CloseReason::ProxyHeader,
                Outcome::Invalid,
            )
        }
        Err(unfinished) => {
            let reason = unfinished.reason();
            let outcome = match reason {
                CloseReason::ProxyTimeout => Outcome::Timeout,
                CloseReason::HandshakeLimit => Outcome::Limit,
                _ => Outcome::Silent,
            };
            (Problem::Unfinished(unfinished), reason, outcome)
        }
    };
    settings.outcomes.count(outcome);
    info.passed.cut_short();
    // One that makes room for another is not to linger in TIME_WAIT.
    if reason.resets() {
        conn.refuse(reason);
    } else {
        info.end_with(reason);
    }
    Err(ProxyError::new(problem).into())
}

fn within(handshakes: Handshakes) -> HandshakeLimit {
    HandshakeLimit::new(handshakes, CloseReason::ProxyTimeout)
}

/// What became of a connection that should have had a header, or of one that need not.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    Direct,
    Failed,
    Ignored,
    Invalid,
    Limit,
    Local,
    Silent,
    Timeout,
    Untrusted,
    V1,
    V2,
}

/// The labels, in the order of [`Outcome`].
const OUTCOMES: [&str; 11] = [
    "direct",
    "failed",
    "ignored",
    "invalid",
    "limit",
    "local",
    "silent",
    "timeout",
    "untrusted",
    "v1",
    "v2",
];

#[derive(Debug, Clone)]
struct Outcomes(Arc<[Counter; OUTCOMES.len()]>);

impl Outcomes {
    fn new() -> Self {
        Self(Arc::new(OUTCOMES.map(
            |outcome| counter!("tower_net_proxy_headers_total", "outcome" => outcome),
        )))
    }

    fn count(&self, outcome: Outcome) {
        self.0[outcome as usize].increment(1);
    }
}

/// Of a header that is refused: enough to see what somebody sent in its place.
const LOGGED: usize = 256;
