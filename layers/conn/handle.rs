use std::{fmt, ops::Deref, sync::Arc};

use crate::conn::ConnInfo;

/// What is known of a connection, as one value that can be cloned and put anywhere: into the extensions of an HTTP
/// request, where every crossing of this crate puts it.
///
/// It is an [`Arc`] of a [`ConnInfo`], as a type of its own for those who look things up by their type.
#[derive(Clone)]
pub struct ConnHandle {
    info: Arc<ConnInfo>,
}

impl ConnHandle {
    /// The handle to the connection with this info.
    #[must_use]
    pub fn new(info: Arc<ConnInfo>) -> Self {
        Self { info }
    }

    /// The info, to be kept.
    #[must_use]
    pub fn info(&self) -> &Arc<ConnInfo> {
        &self.info
    }
}

impl Deref for ConnHandle {
    type Target = ConnInfo;

    fn deref(&self) -> &ConnInfo {
        &self.info
    }
}

impl fmt::Debug for ConnHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}
