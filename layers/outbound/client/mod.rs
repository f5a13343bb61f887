//! Calls over a connection that stays: many at once, each with a deadline that travels with it.
//!
//! **Where it goes**: around a connector, which is any `Service<T, Response = Conn<I>>`; what is above it sees a plain
//! service of calls, which tower's layers fit on, and [balancing](crate::balance) over several.
//!
//! ```
//! use std::net::SocketAddr;
//! use bytes::Bytes;
//! use tokio::net::TcpStream;
//! use tower::{ServiceExt, service_fn};
//! use tower_net::client::Client;
//!
//! # use tower_net::{Server, frame::{Request, RpcLayer}, listen::Tcp};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let listener = Tcp::bind("127.0.0.1:0").await?;
//! # let server = listener.local_addr()?;
//! # let echo = service_fn(async |ask: Request<Bytes>| Ok::<_, std::io::Error>(ask.into_message()));
//! # let stack = tower::ServiceBuilder::new().layer(RpcLayer::new(1024)).service(echo);
//! # tokio::spawn(Server::new(listener).serve(stack).into_future());
//! let connector = service_fn(async |to: SocketAddr| TcpStream::connect(to).await?.try_into());
//! let client = Client::new(connector, server);
//! let (one, two) = tokio::join!(
//!     client.send(Bytes::from_static(b"how much?")), // waits for a place within its deadline
//!     client.clone().oneshot(Bytes::from_static(b"since when?")), // a service like any other
//! );
//! assert_eq!((&one?[..], &two?[..]), (&b"how much?"[..], &b"since when?"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! # How it goes on
//!
//! The first call opens a connection, and all share it: with the [RPC framing](crate::frame::RpcCodec), where answers
//! find their call by its id; or [in order](InOrder), with any codec. What is to be sent is encoded when there
//! is nothing else to do, and goes out in one write. One task drives a connection; there is none for a call.
//!
//! A connection that the peer ends while nobody waits is forgotten, and the next call opens another. When the peer says
//! that it leaves, calls that it has not begun move to a new connection, and those that it has are waited for.
//!
//! # Budgets
//!
//! A call is due at the earlier of the [current](Deadline::current) deadline where it is made and of the client's own
//! [limit](Settings::call_deadline). Everything is within that: the wait for a place, for a connection, and for the
//! answer; and the peer is told how much of it is left. A call with nothing left is not sent. [`Spent`] says in which of
//! these phases the time went.
//!
//! Where it is polled for readiness, a call waits for its place before it is made, and no deadline of ours holds; in
//! [`send`](Client::send) one does.
//!
//! # What is done twice
//!
//! A call is made a second time, once, if it was lost with a connection that had served others before, and not a byte of
//! it can have reached the peer. And only as long as the [budget](RetryBudget) for it lasts. All other failures are the
//! caller's to judge: [`CallError::never_started`]. A call that the peer [refused](crate::frame::RpcCode::Refused) is one
//! of them: the connection is well, and another would lead to the same peer.
//!
//! What was written is what the stream says it took. One that keeps bytes of its own, as TLS does, may have sent some in a
//! write that failed: all that was in that write may have been processed then. Of what a socket refuses nothing was sent,
//! also below layers that let [pipes](crate::io::Io::takes_pipes) through. That an idle peer has ended the connection is
//! looked for before a call is written to it.
//!
//! A call that a leaving peer has not begun has not failed: it goes to the next connection, however often that happens
//! within its deadline. Only from a peer that leaves without having begun with any call it goes on once, twice more as
//! long as the budget lasts, and then fails: it may be what has every peer leave.
//!
//! # How it ends
//!
//! | what happens | the calls in flight | new calls |
//! |---|---|---|
//! | the peer ends the connection, or it breaks | fail as [closed](CallCause::Closed), or see above | a new connection |
//! | the peer leaves | are answered; those that it has not begun move | a new connection |
//! | the peer answers what was never asked, or what is no frame | fail as [closed](CallCause::Closed) | a new connection |
//! | the peer takes no byte for [too long](Settings::write_stall) | the same, with a reset | a new connection |
//! | the peer says nothing for [too long](Settings::silence) | go on waiting, each for its own deadline | a new connection |
//! | no connection can be made | | wait for the next attempt, or [fail](Settings::fail_fast) |
//! | the connector panics | | those that wait fail as [not connected](CallCause::Connect), whatever is set |
//! | the last client is dropped | are answered; the connection is closed after the last of them | |
//! | the runtime ends | fail as closed | fail |
//!
//! # Bounds
//!
//! Calls in flight, and so everything else: [`in_flight`](Settings::in_flight). Bytes encoded and not written:
//! [`high_water`](Settings::high_water). Those who wait for a place are the callers' own futures, in the order in which
//! they came. Connections: one that takes calls, and those that finish theirs, of which each has at least one.
//!
//! # Readiness
//!
//! Ready when there is a place, which is this client's until it calls or is dropped; with
//! [`keep_connected`](Settings::keep_connected) only while the peer is there, or once the runtime is gone, which a call
//! then says. A clone has no place of its own.
//!
//! # Errors
//!
//! [`CallError`].
//!
//! # On drop
//!
//! Dropping a call gives it up: see [`CallFuture`]. Dropping the last client ends the connection, in order, once its
//! last call is over.

mod call;
mod counted;
mod driver;
mod error;
mod exchange;
mod flight;
mod lease;
mod lost;
mod make;
mod metrics;
mod protocol;
mod retry;
mod serial;
mod settings;
mod shared;
mod table;
mod timers;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::PollSemaphore;
use tower_service::Service;

pub use self::{
    call::CallFuture,
    error::{CallCause, CallError, Disconnected, SharedError, Unasked},
    lease::{Lease, Once, Unpooled, UnpooledFuture},
    make::MakeClient,
    protocol::{Heard, InOrder, Protocol},
    retry::RetryBudget,
    serial::{Serial, SerialFuture},
    settings::Settings,
};
use self::{
    shared::{Shared, no_timer},
    table::lock,
};
use crate::{
    base::{
        error::{BoxError, ConfigError, NoTimer},
        io::Io,
    },
    conn::Conn,
    middleware::frame::RpcCodec,
};
#[cfg(doc)]
use crate::{conn::Deadline, outbound::budget::Spent};

/// Makes calls to one target over a connection that is shared. See the [module](self).
///
/// Clones share the connection and its places.
pub struct Client<Q = Bytes, R = Bytes> {
    handle: Arc<ClientHandle<Q, R>>,
    places: PollSemaphore,
    place: Option<OwnedSemaphorePermit>,
    /// Where it waits for the peer, if it does.
    seat: Option<usize>,
}

/// Tells, when it is dropped, that no client is left.
struct ClientHandle<Q, R> {
    shared: Arc<Shared<Q, R>>,
}

impl<Q, R> Drop for ClientHandle<Q, R> {
    fn drop(&mut self) {
        let todo = lock(&self.shared.table).abandon();
        self.shared.settle(todo);
    }
}

impl Client {
    /// A client in the RPC framing, with every setting at its default.
    ///
    /// It connects when it is first called. The connector is cloned for each connection.
    #[must_use]
    pub fn new<C, T, I>(connector: C, target: T) -> Self
    where
        C: Service<T, Response = Conn<I>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
        T: Clone + Send + 'static,
        I: Io,
    {
        Self::rpc(Settings::default(), connector, target)
    }

    /// A client in the RPC framing, with settings.
    ///
    /// # Errors
    ///
    /// A setting that cannot work.
    pub fn with_settings<C, T, I>(
        settings: Settings,
        connector: C,
        target: T,
    ) -> Result<Self, ConfigError>
    where
        C: Service<T, Response = Conn<I>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
        T: Clone + Send + 'static,
        I: Io,
    {
        settings.check()?;
        Ok(Self::rpc(settings, connector, target))
    }

    fn rpc<C, T, I>(settings: Settings, connector: C, target: T) -> Self
    where
        C: Service<T, Response = Conn<I>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
        T: Clone + Send + 'static,
        I: Io,
    {
        let protocol = RpcCodec::max_payload(settings.max_payload);
        Self::over(Shared::new(connector, target, protocol, settings))
    }
}

impl<Q, R> Client<Q, R>
where
    Q: Clone + Send + 'static,
    R: Send + 'static,
{
    /// A client in any [`Protocol`]: its frames of your own, in order or with ids.
    ///
    /// # Errors
    ///
    /// A setting that cannot work.
    pub fn with_protocol<P, C, T, I>(
        protocol: P,
        settings: Settings,
        connector: C,
        target: T,
    ) -> Result<Self, ConfigError>
    where
        P: Protocol<Q, Reply = R>,
        C: Service<T, Response = Conn<I>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
        T: Clone + Send + 'static,
        I: Io,
    {
        settings.check()?;
        Ok(Self::over(Shared::new(
            connector, target, protocol, settings,
        )))
    }
}

impl<Q, R> Client<Q, R> {
    fn over(shared: Arc<Shared<Q, R>>) -> Self {
        let places = PollSemaphore::new(Arc::clone(&shared.places));
        Self {
            handle: Arc::new(ClientHandle { shared }),
            places,
            place: None,
            seat: None,
        }
    }

    fn shared(&self) -> &Arc<Shared<Q, R>> {
        &self.handle.shared
    }

    /// Makes a call, and waits for a place first if it has to, within the same deadline.
    pub fn send(&self, call: Q) -> CallFuture<Q, R> {
        CallFuture::wait(self.shared(), call)
    }

    /// Connects now, if it has not, rather than with the first call.
    ///
    /// # Errors
    ///
    /// There is no runtime to connect on.
    pub fn connect(&self) -> Result<(), NoTimer> {
        let shared = self.shared();
        shared.check()?;
        let todo = lock(&shared.table).start();
        shared.settle(todo);
        Ok(())
    }

    /// Calls that have been made and are not over, those that wait for a place not counted.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        lock(&self.shared().table).calls()
    }

    /// Connections, those that are being made and those that finish their last calls included.
    #[must_use]
    pub fn connections(&self) -> usize {
        lock(&self.shared().table).connections()
    }
}

impl<Q, R> Clone for Client<Q, R> {
    fn clone(&self) -> Self {
        // Neither a place nor a seat: those are the other one's.
        Self {
            handle: Arc::clone(&self.handle),
            places: self.places.clone(),
            place: None,
            seat: None,
        }
    }
}

impl<Q, R> Drop for Client<Q, R> {
    fn drop(&mut self) {
        if self.seat.is_some() {
            let shared = Arc::clone(self.shared());
            lock(&shared.table).give_up_seat(&mut self.seat);
        }
    }
}

impl<Q, R> Service<Q> for Client<Q, R> {
    type Response = R;
    type Error = CallError;
    type Future = CallFuture<Q, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        let shared = Arc::clone(self.shared());
        shared.check().map_err(no_timer)?;
        if shared.settings.keep_connected && !lock(&shared.table).poll_proven(&mut self.seat, cx) {
            return Poll::Pending;
        }
        if self.place.is_none() {
            self.place = ready!(self.places.poll_acquire(cx));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Q) -> CallFuture<Q, R> {
        let place = self.place.take();
        let place = place.expect("called when it was ready");
        CallFuture::begin(self.shared(), call, place)
    }
}

impl<Q, R> fmt::Debug for Client<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("settings", &self.shared().settings)
            .finish_non_exhaustive()
    }
}
