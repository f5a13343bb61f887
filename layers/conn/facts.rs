//! What layers learn of a connection: facts, each of a type of its own, written once and read by reference.
//!
//! A connection has none or a few (the peer that a proxy announced, what TLS settled), so they are a chain: no
//! lock, no map, and no memory for a connection without any.

use std::{any::Any, fmt, sync::OnceLock};

/// The facts of one connection.
#[derive(Default)]
pub(crate) struct Facts {
    first: Link,
}

type Link = OnceLock<Box<Fact<dyn Any + Send + Sync>>>;

struct Fact<T: ?Sized> {
    next: Link,
    value: T,
}

impl Facts {
    /// The fact of type `T`, if it is known.
    pub(crate) fn get<T: Any>(&self) -> Option<&T> {
        let mut link = &self.first;
        loop {
            let fact = link.get()?;
            if let Some(value) = fact.value.downcast_ref() {
                return Some(value);
            }
            link = &fact.next;
        }
    }

    /// Adds a fact, unless one of its type is known; returns the one that holds.
    pub(crate) fn add<T: Any + Send + Sync>(&self, value: T) -> &T {
        let mut fresh = Some(value);
        let mut link = &self.first;
        loop {
            let fact = link.get_or_init(|| {
                Box::new(Fact {
                    next: Link::new(),
                    value: fresh.take().expect("added once"),
                })
            });
            if let Some(value) = fact.value.downcast_ref() {
                return value;
            }
            link = &fact.next;
        }
    }
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts")
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_many_types_are_kept_and_the_first_of_each_stays() {
        let facts = Facts::default();

        assert_eq!(facts.get::<u8>(), None);
        assert_eq!(
            (facts.add(1_u8), facts.add("two"), facts.add(3_u8)),
            (&1, &"two", &1)
        );
        assert_eq!(
            (facts.get::<u8>(), facts.get::<&str>()),
            (Some(&1), Some(&"two"))
        );
        assert_eq!(facts.get::<u16>(), None);
    }
}
