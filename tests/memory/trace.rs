use std::{
    io,
    sync::{Arc, Mutex, OnceLock},
};

use tower::{ServiceBuilder, service_fn};
use tower_layer::Layer as _;
use tower_net::{CloseReason, Conn, error::BoxError, io::Io, meter::MeterLayer, trace::TraceLayer};
use tracing::{
    Dispatch, Event, Id, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Record},
    subscriber::set_default,
};
use tracing_subscriber::{
    layer::{Context, Layer, SubscriberExt},
    registry::{LookupSpan, Registry},
};

use crate::support::{
    io::Script,
    peer::{Peer, serve},
    service::secs,
};

#[tokio::test]
async fn a_connection_has_one_root_span_wherever_it_was_accepted() {
    let (log, _on) = Log::start();
    let outside = tracing::info_span!("outside").entered();

    let service = TraceLayer::new().layer(service_fn(swallow));
    let (info, served) = serve(Script::new().end(), service);
    drop(outside);
    served.await.unwrap().unwrap();

    let opened = log.lines("open connection");
    assert_eq!(opened.len(), 1);
    assert!(opened[0].contains("root"), "{opened:?}");
    assert!(opened[0].contains(&format!("conn={}", info.id())));
    assert!(opened[0].contains("peer=unnamed"));
}

#[tokio::test(start_paused = true)]
async fn one_event_tells_how_it_ended() {
    let (log, _on) = Log::start();
    let service = ServiceBuilder::new()
        .layer(MeterLayer::new("test"))
        .layer(TraceLayer::new())
        .service_fn(swallow);
    let mut peer = Peer::of(service);

    peer.send("hello").await;
    tokio::time::sleep(secs(2)).await;
    peer.leave().await;

    let closed = log.lines("closed");
    assert_eq!(closed.len(), 1, "{closed:?}");
    for part in ["DEBUG", "reason=peer", "read=5", "written=0", "seconds=2"] {
        assert!(closed[0].contains(part), "{part} in {closed:?}");
    }
    assert!(closed[0].contains("in connection"), "{closed:?}");
}

#[tokio::test]
async fn the_level_goes_by_the_reason() {
    for reason in CloseReason::ALL {
        let (log, _on) = Log::start();
        let service = TraceLayer::new().layer(service_fn(async |conn: Conn<_>| {
            conn.info().end_with(*reason);
            swallow(conn).await
        }));

        tower::ServiceExt::oneshot(service, Conn::new(Script::new().end(), ()))
            .await
            .unwrap();

        let expected = match reason {
            CloseReason::Aborted | CloseReason::Error | CloseReason::Panic => Level::WARN,
            CloseReason::Age | CloseReason::Drain | CloseReason::Idle => Level::DEBUG,
            CloseReason::Peer | CloseReason::Served => Level::DEBUG,
            CloseReason::HandshakeFailed | CloseReason::Reclaimed => Level::DEBUG,
            _ => Level::INFO,
        };
        let closed = log.lines("closed");
        assert!(closed[0].starts_with(expected.as_str()), "{closed:?}");
        assert!(
            closed[0].contains(&format!("reason={reason}")),
            "{closed:?}"
        );
    }
}

#[tokio::test]
async fn what_the_service_logs_is_inside_the_span() {
    let (log, _on) = Log::start();
    let service = TraceLayer::new().layer(service_fn(async |conn: Conn<_>| {
        tracing::info!("at work");
        swallow(conn).await
    }));

    let (_, served) = serve(Script::new().end(), service);
    served.await.unwrap().unwrap();

    assert!(log.lines("at work")[0].contains("in connection"));
}

#[tokio::test]
async fn a_span_that_a_request_makes_for_itself_keeps_no_connection_open() {
    let (log, _on) = Log::start();
    let (sender, spans) = std::sync::mpsc::channel();
    let service = TraceLayer::new().layer(service_fn(move |conn: Conn<_>| {
        let request = tracing::info_span!(parent: None, "request");
        sender.send(request).unwrap();
        swallow(conn)
    }));

    let (_, served) = serve(Script::new().end(), service);
    served.await.unwrap().unwrap();
    let at_the_end = (
        log.lines("close connection").len(),
        log.lines("close request").len(),
    );
    drop(spans);

    assert_eq!(at_the_end, (1, 0));
    assert_eq!(log.lines("close request").len(), 1);
}

#[tokio::test]
async fn the_event_waits_for_the_stream_wherever_it_was_moved() {
    let (log, _on) = Log::start();
    let (sender, moved) = std::sync::mpsc::channel();
    let service = TraceLayer::new().layer(service_fn(move |conn: Conn<_>| {
        sender.send(conn).unwrap();
        std::future::ready(Ok::<_, BoxError>(()))
    }));

    let (_, served) = serve(Script::new(), service);
    served.await.unwrap().unwrap();
    let before = log.lines("closed").len();
    drop(moved);

    assert_eq!((before, log.lines("closed").len()), (0, 1));
}

async fn swallow<I: Io>(mut conn: Conn<I>) -> Result<(), BoxError> {
    tokio::io::copy(&mut conn, &mut tokio::io::sink()).await?;
    Ok::<_, io::Error>(()).map_err(Into::into)
}

/// Everything that is traced, a line each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        // While there is but one subscriber, what is traced for the first time on a thread that has none is taken to
        // interest nobody, on all threads.
        static ANOTHER: OnceLock<Dispatch> = OnceLock::new();
        ANOTHER.get_or_init(|| Dispatch::new(Registry::default()));
        let log = Self::default();
        let on = set_default(Registry::default().with(log.clone()));
        (log, on)
    }

    /// The lines with these words.
    pub(crate) fn lines(&self, words: &str) -> Vec<String> {
        let lines = self.0.lock().unwrap();
        lines
            .iter()
            .filter(|line| line.contains(words))
            .cloned()
            .collect()
    }

    fn add(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0 += &match field.name() {
            "message" => format!(" {value:?}"),
            name => format!(" {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0 += &format!(" {}={value}", field.name());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Log {
    fn on_new_span(&self, span: &Attributes<'_>, id: &Id, spans: Context<'_, S>) {
        let mut fields = Fields(String::new());
        span.record(&mut fields);
        let is_root = spans
            .span(id)
            .unwrap()
            .parent()
            .is_none();
        let root = if is_root { " root" } else { "" };
        self.add(format!("open {}{root}{}", span.metadata().name(), fields.0));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, spans: Context<'_, S>) {
        let mut fields = Fields(String::new());
        values.record(&mut fields);
        let span = spans.span(id).unwrap();
        self.add(format!("record {}{}", span.name(), fields.0));
    }

    fn on_close(&self, id: Id, spans: Context<'_, S>) {
        self.add(format!("close {}", spans.span(&id).unwrap().name()));
    }

    fn on_event(&self, event: &Event<'_>, spans: Context<'_, S>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        let within = spans.event_span(event);
        let within = within.map_or_else(String::new, |span| format!(" in {}", span.name()));
        let level = event.metadata().level();
        self.add(format!("{level}{}{within}", fields.0));
    }
}
