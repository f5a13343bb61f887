//! From what you have to the same behind these layers: before and after, and what each guard then bounds.
//!
//! | from | what changes | what stays |
//! |---|---|---|
//! | [`axum::serve`](from_axum_serve) | the listener | routes, extractors, WebSockets, graceful shutdown |
//! | [an accept loop of your own](from_an_accept_loop) | where connections come from | what serves them |
//! | [tokio-util's `Framed`](from_framed) | the loop becomes a service of requests | the codec |
//! | [tonic](from_tonic) | the incoming | services, interceptors, TLS if tonic has it |

/// # From `axum::serve`
///
/// Before:
///
/// ```no_run
/// # #![allow(dead_code)]
/// # async fn shutdown() {}
/// # async fn run(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
/// use std::net::SocketAddr;
///
/// let listener = tokio::net::TcpListener::bind("0.0.0.0:3000").await?;
/// let app = app.into_make_service_with_connect_info::<SocketAddr>();
/// axum::serve(listener, app)
///     .with_graceful_shutdown(shutdown())
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// After, with the listener changed, which has the signal now, and tells axum once all in its queue are with it:
///
/// ```no_run
/// # #![allow(dead_code)]
/// # async fn shutdown() {}
/// # async fn run(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
/// use std::{net::SocketAddr, time::Duration};
/// use tower_net::{guard::{Guard, Settings}, listen::Tcp};
///
/// let incoming = Guard::new(Settings::default().service("web"))?
///     .listen(Tcp::bind("0.0.0.0:3000").await?)
///     .request_deadline(Duration::from_secs(30))?
///     .with_graceful_shutdown(shutdown());
/// let (handle, closing) = (incoming.handle(), incoming.closing());
/// let app = app.into_make_service_with_connect_info::<SocketAddr>();
/// axum::serve(incoming.for_axum(), app)
///     .with_graceful_shutdown(closing)
///     .await?;
/// println!("{}", handle.report().await); // waits for WebSockets as well, and cuts them in the end
/// # Ok(())
/// # }
/// ```
///
/// Or as one stack, in which requests are known as such, and a WebSocket's handler hears of a drain:
///
/// ```no_run
/// # #![allow(dead_code)]
/// # async fn shutdown() {}
/// # async fn run(app: axum::Router) -> Result<(), Box<dyn std::error::Error>> {
/// use tower::ServiceBuilder;
/// use tower_net::{Server, guard::{Guard, Settings}, http::HttpLayer};
///
/// let stack = ServiceBuilder::new()
///     .layer(Guard::new(Settings::default().service("web"))?)
///     .layer(HttpLayer::default())
///     .service(app); // `ConnectInfo<SocketAddr>` and `Extension<ConnHandle>` are there
/// let report = Server::bind("0.0.0.0:3000")
///     .await?
///     .serve(stack)
///     .with_graceful_shutdown(shutdown())
///     .await?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
///
/// What bounds what:
///
/// | a client that | `axum::serve` | behind a [`Guard`](crate::guard::Guard) | in one stack |
/// |---|---|---|---|
/// | connects once more than there is room | no limit but descriptors | `connections`, `per_peer`, `connect_rate` | the same |
/// | says nothing | never closed | `first_byte`, 3 s | the same |
/// | says `P`, or drips a head | never closed | `request_deadline` | `head_deadline`, 10 s |
/// | drips frames of HTTP/2 headers | never closed | `request_deadline` | `head_deadline`, 10 s |
/// | sends HTTP/2's preface alone | never closed | `request_deadline` | `head_deadline`, 10 s |
/// | drips a body that the handler wants whole | never closed | `request_deadline`; not over HTTP/2 | `handler_deadline`, 30 s: 503, then closed |
/// | does not read the response | never closed | `write_stall`, 30 s; `min_rate`; over HTTP/2 `idle`, which pings keep off | the same, over HTTP/2 as well |
/// | keeps a connection and says nothing more | never closed | `idle`, 90 s | the same |
/// | waits for a handler that takes longer than `idle` | answered | answered, if there is a `request_deadline` that is longer still | answered, by `handler_deadline` |
/// | has a WebSocket, or a stream without end, in a drain | WebSockets dropped unseen, streams waited for without end | counted, cut after `drain_for` | the same, and told |
///
/// # Measured
///
/// slowhttptest 1.8.2, 400 slow clients from one address, against a process that may have 256 descriptors. Meanwhile
/// somebody from another address asks for a page every 100 ms, each time on a new connection, and gives up after a
/// second. Deadlines of 1 s, 200 connections at most, 150 of a peer (`axum_guarded` and `axum_stack` in `examples/`):
///
/// | slow | | `axum::serve` | `axum_guarded` | `axum_stack` |
/// |---|---|---|---|---|
/// | heads, `-H` | pages answered | 7 of 18 | 21 of 21 | 21 of 21 |
/// | | "service available", in the end | no | yes | yes |
/// | | slow connections after 10 s | 374 open, 26 waiting | 0: 173 by `request`, 227 over the limit | 0: 174 and 226 |
/// | bodies, `-B` | pages answered | 7 of 18 | 21 of 21 | 21 of 21 |
/// | | "service available", in the end | no | yes | yes |
/// | | slow connections after 10 s | 374 open, 26 waiting | 0: 175 by `request`, 225 over the limit | 0: 172 by `handler`, 228 |
/// | readers, `-X` | pages answered | 11 of 21 | 110 of 110 | 110 of 110 |
/// | | "service available", in the end | no | yes | yes |
/// | | slow connections after 10 s | 374 open, 26 waiting | 0: 181 by `write_stall`, 219 over the limit | 0: 190 and 210 |
///
/// The test ends with its last slow connection, so those that are closed make it short: hence the 21 pages. Slow readers
/// that are reset the tool goes on counting as connected.
pub mod from_axum_serve {}

/// # From an accept loop of your own
///
/// Before:
///
/// ```no_run
/// # #![allow(dead_code)]
/// # async fn speak(_: tokio::net::TcpStream) {}
/// # async fn run() -> std::io::Result<()> {
/// let listener = tokio::net::TcpListener::bind("0.0.0.0:3001").await?;
/// loop {
///     let (stream, _peer) = listener.accept().await?; // one ECONNABORTED ends it
///     tokio::spawn(speak(stream));
/// }
/// # }
/// ```
///
/// After:
///
/// ```no_run
/// # #![allow(dead_code)]
/// # async fn shutdown() {}
/// # async fn speak<I: tower_net::io::Io>(_: tower_net::IncomingIo<I>) {}
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_net::{guard::{Guard, Settings}, listen::Tcp};
///
/// let mut incoming = Guard::new(Settings::default().service("mine"))?
///     .listen(Tcp::bind("0.0.0.0:3001").await?)
///     .with_graceful_shutdown(shutdown());
/// while let Some(stream) = incoming.accept().await {
///     tokio::spawn(speak(stream)); // a stream like any other; `stream.info()` knows the peer
/// }
/// println!("{}", incoming.report().await?);
/// # Ok(())
/// # }
/// ```
///
/// If all of a connection happens in `speak`, it can as well be the service itself: panics are contained then, and the task
/// is ours to end.
///
/// ```no_run
/// # #![allow(dead_code)]
/// # async fn speak<I: tower_net::io::Io>(_: tower_net::Conn<I>) -> std::io::Result<()> { Ok(()) }
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use tower::ServiceBuilder;
/// use tower_net::{Conn, Server, guard::{Guard, Settings}};
///
/// let stack = ServiceBuilder::new()
///     .layer(Guard::new(Settings::default().service("mine"))?)
///     .service_fn(async |conn: Conn<_>| speak(conn).await);
/// let report = Server::bind("0.0.0.0:3001").await?.serve(stack).await?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
///
/// | what goes wrong | the loop | behind a [`Guard`](crate::guard::Guard) |
/// |---|---|---|
/// | a connection is gone before it is accepted | the server ends | is counted, and the next one accepted |
/// | no descriptors are left | the server ends, or spins | accepts pause up to 1 s ([`Backoff`](crate::Backoff)) |
/// | too many connections, of all or of one peer | no limit | `connections`, `per_peer`, `connect_rate` |
/// | a peer that says nothing | a task for ever | `first_byte`, 3 s |
/// | a peer that has fallen silent, or does not read | a task for ever | `idle`, 90 s; `write_stall`, 30 s |
/// | a request that drips | a task for ever | [`request_deadline`](crate::Incoming::request_deadline), or `min_rate` |
/// | a restart | connections are dropped | told to leave, waited for, counted, cut |
///
/// `examples/hyper_guarded.rs` is such a loop around hyper.
pub mod from_an_accept_loop {}

/// # From tokio-util's `Framed`
///
/// Before, in the task of each connection:
///
/// ```no_run
/// # #![allow(dead_code)]
/// # use bytes::{Bytes, BytesMut};
/// # async fn handle(frame: BytesMut) -> Bytes { frame.freeze() }
/// # async fn speak(stream: tokio::net::TcpStream) -> std::io::Result<()> {
/// use futures_util::{SinkExt, StreamExt};
/// use tokio_util::codec::{Framed, LengthDelimitedCodec};
///
/// let mut framed = Framed::new(stream, LengthDelimitedCodec::new());
/// while let Some(frame) = framed.next().await {
///     let reply = handle(frame?).await;
///     framed.send(reply).await?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// After, with the same codec, and the loop ours:
///
/// ```no_run
/// # #![allow(dead_code)]
/// # use bytes::{Bytes, BytesMut};
/// # async fn handle(frame: BytesMut) -> Bytes { frame.freeze() }
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use tokio_util::codec::LengthDelimitedCodec;
/// use tower::ServiceBuilder;
/// use tower_net::{Server, frame::{FrameLayer, Request}, guard::{Guard, Settings}};
///
/// let stack = ServiceBuilder::new()
///     .layer(Guard::new(Settings::default().service("rpc"))?)
///     .layer(FrameLayer::new(LengthDelimitedCodec::new()))
///     .service_fn(async |request: Request<BytesMut>| {
///         Ok::<Bytes, std::io::Error>(handle(request.into_message()).await)
///     });
/// Server::bind("0.0.0.0:7000").await?.serve(stack).await?;
/// # Ok(())
/// # }
/// ```
///
/// [`LengthDelimited`](crate::frame::LengthDelimited) in the place of tokio-util's codec does not reserve what a peer merely
/// announces.
///
/// | what | the loop | under [`FrameLayer`](crate::frame) |
/// |---|---|---|
/// | a frame that never ends | a task for ever | request deadline, 30 s |
/// | a handler that never ends | a task for ever | handler deadline, 30 s |
/// | a peer that does not read its replies | a task for ever | reply deadline, 30 s; replies queued: 64 KiB, then reading stops |
/// | frames that come faster than they are handled | one at a time | up to [`pipelined`](crate::frame::Framing::pipelined) at once, in order |
/// | many small replies | a write each | one write, once nothing is left to do |
/// | bytes that are no frame | an error in a log | a last reply, an orderly close, a reason that is counted |
/// | a restart | replies are lost | what has begun to arrive is answered |
pub mod from_framed {}

/// # From tonic
///
/// Before:
///
/// ```no_run
/// # #![allow(dead_code)]
/// # use std::convert::Infallible;
/// # use http::{Request, Response};
/// # use tonic::body::Body;
/// # async fn shutdown() {}
/// # async fn run<S>(greeter: S) -> Result<(), Box<dyn std::error::Error>>
/// # where
/// #     S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
/// #     S::Future: Send,
/// # {
/// use tonic::transport::Server;
///
/// Server::builder()
///     .serve_with_shutdown("0.0.0.0:50051".parse()?, greeter, shutdown())
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// After:
///
/// ```no_run
/// # #![allow(dead_code)]
/// # use std::convert::Infallible;
/// # use http::{Request, Response};
/// # use tonic::body::Body;
/// # async fn shutdown() {}
/// # async fn run<S>(greeter: S) -> Result<(), Box<dyn std::error::Error>>
/// # where
/// #     S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
/// #     S::Future: Send,
/// # {
/// use tonic::transport::Server;
/// use tower_net::{guard::{Guard, Settings}, listen::Tcp};
///
/// let incoming = Guard::new(Settings::default().service("grpc"))?
///     .listen(Tcp::bind("0.0.0.0:50051").await?)
///     .with_graceful_shutdown(shutdown());
/// let (handle, closing) = (incoming.handle(), incoming.closing());
/// Server::builder()
///     .serve_with_incoming_shutdown(greeter, incoming, closing)
///     .await?;
/// println!("{}", handle.report().await);
/// # Ok(())
/// # }
/// ```
///
/// With `add_service` it is the router that has these methods, without the service among their arguments. A handler finds
/// the [`ConnHandle`](crate::ConnHandle) in its request's extensions.
///
/// | a client that | tonic | behind a [`Guard`](crate::guard::Guard) |
/// |---|---|---|
/// | connects once more than there is room | no limit but descriptors | `connections`, `per_peer`, `connect_rate` |
/// | says nothing | never closed | `first_byte`, 3 s |
/// | drips its preface, or a head | never closed | [`request_deadline`](crate::Incoming::request_deadline), if it is set |
/// | has no call under way | `http2_keepalive_interval`, off | `idle`, 90 s |
/// | does not read | never closed | `write_stall`, 30 s |
/// | has a stream without end in a drain | waited for without end | cut after `drain_for` |
pub mod from_tonic {}
