use std::{
    collections::{HashSet, VecDeque},
    convert::Infallible,
    hash::Hash,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::Stream;
use tower::discover::Change;

/// Peers that are known from the beginning and stay the same: a [`Discover`](tower::discover::Discover).
#[derive(Debug)]
pub struct Endpoints<K, S> {
    made: VecDeque<(K, S)>,
}

impl<K: Hash + Eq + Clone, S> Endpoints<K, S> {
    /// One service for each of `keys`, made by `make`. A key that comes again is left out.
    ///
    /// # Errors
    ///
    /// The first of `make`.
    pub fn new<E>(
        keys: impl IntoIterator<Item = K>,
        mut make: impl FnMut(&K) -> Result<S, E>,
    ) -> Result<Self, E> {
        let mut known = HashSet::new();
        let keys = keys
            .into_iter()
            .filter(|key| known.insert(key.clone()));
        let made = keys.map(|key| Ok((key.clone(), make(&key)?)));
        Ok(Self {
            made: made.collect::<Result<_, E>>()?,
        })
    }
}

impl<K, S> Unpin for Endpoints<K, S> {}

impl<K, S> Stream for Endpoints<K, S> {
    type Item = Result<Change<K, S>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.made.pop_front();
        Poll::Ready(next.map(|(key, service)| Ok(Change::Insert(key, service))))
    }
}
