use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use crate::{
    base::io::Io,
    conn::Conn,
    middleware::meter::{MeterIo, Tally, tally::Names},
};

/// Counts the connections and bytes of a service. See the [module](crate::meter).
#[derive(Debug, Clone)]
pub struct MeterLayer {
    tally: Tally,
}

impl MeterLayer {
    /// Counts under `service`, the value of the `service` label in the metrics.
    ///
    /// The metrics' handles are made here, once: install the recorder first.
    #[must_use]
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            tally: Tally::new(ACCEPTED, service.into()),
        }
    }

    /// A handle to read what it counts.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// The layer, and a handle to read what it counts.
    #[must_use]
    pub fn pair(service: impl Into<String>) -> (Self, Tally) {
        let layer = Self::new(service);
        let tally = layer.tally();
        (layer, tally)
    }
}

impl<S> Layer<S> for MeterLayer {
    type Service = Meter<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Meter {
            inner,
            tally: self.tally.clone(),
        }
    }
}

/// The service of [`MeterLayer`].
#[derive(Debug, Clone)]
pub struct Meter<S> {
    inner: S,
    tally: Tally,
}

impl<S, I> Service<Conn<I>> for Meter<S>
where
    S: Service<Conn<MeterIo<I>>>,
    I: Io,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, conn: Conn<I>) -> S::Future {
        self.inner
            .call(MeterIo::around(conn, &self.tally))
    }
}

const ACCEPTED: &Names = &Names {
    opened: "tower_net_connections_opened_total",
    closed: "tower_net_connections_closed_total",
    active: "tower_net_connections_active",
    read: "tower_net_received_bytes_total",
    written: "tower_net_sent_bytes_total",
    first_byte: "tower_net_first_byte_seconds",
    lifetime: "tower_net_connection_seconds",
};
