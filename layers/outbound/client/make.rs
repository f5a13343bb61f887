use std::{
    fmt,
    future::{Ready, ready},
    task::{Context, Poll},
};

use tower_service::Service;

use crate::{
    base::{
        error::{BoxError, ConfigError, NoTimer},
        io::Io,
    },
    conn::Conn,
    outbound::client::{Client, Settings},
};

/// Makes a [`Client`] in the RPC framing for each target, all over one connector.
///
/// It is a `Service<T, Response = Client>`, for [balancing](crate::balance) and whatever else makes services of targets.
/// By default its clients [fail fast](Settings::fail_fast) and [keep connected](Settings::keep_connected): beside others
/// that is what costs no call more than it must. The settings are shared, the [budget](super::RetryBudget) for retries
/// included.
#[derive(Clone)]
pub struct MakeClient<C> {
    connector: C,
    settings: Settings,
}

impl<C> MakeClient<C> {
    /// Makes clients with the default settings, but that they fail fast and keep connected.
    #[must_use]
    pub fn new(connector: C) -> Self {
        let settings = Settings::default()
            .fail_fast()
            .keep_connected(true);
        Self {
            connector,
            settings,
        }
    }

    /// Makes clients with these settings as they are.
    ///
    /// # Errors
    ///
    /// A setting that cannot work.
    pub fn with_settings(settings: Settings, connector: C) -> Result<Self, ConfigError> {
        settings.check()?;
        Ok(Self {
            connector,
            settings,
        })
    }

    /// A client for `target`.
    ///
    /// # Errors
    ///
    /// It is to [keep connected](Settings::keep_connected), and there is no runtime to connect on.
    pub fn make<T, I>(&self, target: T) -> Result<Client, NoTimer>
    where
        C: Service<T, Response = Conn<I>> + Clone + Send + 'static,
        C::Error: Into<BoxError>,
        C::Future: Send,
        T: Clone + Send + 'static,
        I: Io,
    {
        let client = Client::rpc(self.settings.clone(), self.connector.clone(), target);
        if self.settings.keep_connected {
            client.connect()?;
        }
        Ok(client)
    }
}

impl<C> fmt::Debug for MakeClient<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MakeClient")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl<C, T, I> Service<T> for MakeClient<C>
where
    C: Service<T, Response = Conn<I>> + Clone + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
    T: Clone + Send + 'static,
    I: Io,
{
    type Response = Client;
    type Error = NoTimer;
    type Future = Ready<Result<Client, NoTimer>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoTimer>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: T) -> Self::Future {
        ready(self.make(target))
    }
}
