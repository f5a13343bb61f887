//! What a connection has sent and not heard of: found again by its id, or by its turn.
//!
//! # Invariants
//!
//! Ids rise, as the framing wants it, and none is used twice: the upper part counts calls, the lower one names a seat.

use std::collections::VecDeque;

use slab::Slab;

use crate::outbound::client::settings::MOST_IN_FLIGHT;

/// A call that was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) key: usize,
    pub(super) id: u64,
    /// Where it begins in all that was ever written to the connection.
    pub(super) at: u64,
    /// The connection had been used before it.
    pub(super) reused: bool,
}

/// Whom an answer is for.
#[derive(Debug)]
pub(super) enum Found {
    One(Sent),
    /// It was sent, and nobody waits for the answer any more.
    Late,
    /// It was never sent.
    Never,
}

/// The calls in flight on one connection.
#[derive(Debug)]
pub(super) struct Flight {
    /// Calls that were ever sent.
    count: u64,
    seats: Seats,
}

#[derive(Debug)]
enum Seats {
    ById(Slab<Sent>),
    /// `None` where nobody waits any more.
    InOrder(VecDeque<Option<Sent>>),
}

impl Flight {
    pub(super) fn new(has_ids: bool) -> Self {
        let seats = if has_ids {
            Seats::ById(Slab::new())
        } else {
            Seats::InOrder(VecDeque::new())
        };
        Self { count: 0, seats }
    }

    /// The id of the call that is sent next, as long as nothing is taken out before that.
    pub(super) fn next_id(&self) -> u64 {
        let count = self.count + 1;
        match &self.seats {
            Seats::ById(seats) => count * MOST_IN_FLIGHT as u64 + seats.vacant_key() as u64,
            Seats::InOrder(_) => count,
        }
    }

    /// Under the id that was the next one.
    pub(super) fn insert(&mut self, sent: Sent) {
        self.count += 1;
        match &mut self.seats {
            Seats::ById(seats) => {
                let taken = seats.insert(sent);
                debug_assert_eq!(taken, seat(sent.id), "nothing was taken out since");
            }
            Seats::InOrder(seats) => seats.push_back(Some(sent)),
        }
    }

    /// Takes out whom an answer is for: the call with the id, or without one the next in order.
    pub(super) fn answered(&mut self, id: Option<u64>) -> Found {
        match (&mut self.seats, id) {
            (Seats::ById(seats), Some(id)) => {
                let seat = seat(id);
                match seats.get(seat) {
                    Some(sent) if sent.id == id => Found::One(seats.remove(seat)),
                    // More than is known of it would have to be kept for every call there ever was.
                    _ if (1..=self.count).contains(&(id / MOST_IN_FLIGHT as u64)) => Found::Late,
                    _ => Found::Never,
                }
            }
            (Seats::InOrder(seats), None) => match seats.pop_front() {
                Some(Some(sent)) => Found::One(sent),
                Some(None) => Found::Late,
                None => Found::Never,
            },
            _ => Found::Never,
        }
    }

    /// Nobody waits for the answer any more. Whether the call was in flight.
    pub(super) fn give_up(&mut self, id: u64) -> bool {
        match &mut self.seats {
            Seats::ById(seats) => {
                let is_there = seats
                    .get(seat(id))
                    .is_some_and(|sent| sent.id == id);
                if is_there {
                    seats.remove(seat(id));
                }
                is_there
            }
            Seats::InOrder(seats) => {
                let of_it = |sent: &&mut Option<Sent>| sent.is_some_and(|sent| sent.id == id);
                let place = seats.iter_mut().find(of_it);
                place.and_then(Option::take).is_some()
            }
        }
    }

    /// Calls that somebody waits for, the first that was sent first; with an id, only those above it. They are in
    /// flight no more.
    pub(super) fn take_above(&mut self, last: u64) -> Vec<Sent> {
        self.take(|sent| sent.id > last)
    }

    /// The same, but those that begin at this point of all that was written, or behind it.
    pub(super) fn take_from(&mut self, at: u64) -> Vec<Sent> {
        self.take(|sent| sent.at >= at)
    }

    fn take(&mut self, is_one: impl Fn(&Sent) -> bool) -> Vec<Sent> {
        match &mut self.seats {
            Seats::ById(seats) => {
                let mut taken = Vec::new();
                seats.retain(|_, sent| {
                    let takes = is_one(sent);
                    if takes {
                        taken.push(*sent);
                    }
                    !takes
                });
                taken.sort_unstable_by_key(|sent| sent.id);
                taken
            }
            Seats::InOrder(seats) => {
                let taken = seats
                    .iter_mut()
                    .filter(|sent| sent.is_some_and(|sent| is_one(&sent)));
                taken.filter_map(Option::take).collect()
            }
        }
    }

    /// Whether nobody waits for anything.
    pub(super) fn is_idle(&self) -> bool {
        match &self.seats {
            Seats::ById(seats) => seats.is_empty(),
            Seats::InOrder(seats) => seats.iter().all(Option::is_none),
        }
    }
}

fn seat(id: u64) -> usize {
    (id % MOST_IN_FLIGHT as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(flight: &mut Flight, key: usize) -> u64 {
        let id = flight.next_id();
        flight.insert(Sent {
            key,
            id,
            at: 0,
            reused: false,
        });
        id
    }

    fn key(found: Found) -> Option<usize> {
        match found {
            Found::One(sent) => Some(sent.key),
            _ => None,
        }
    }

    #[test]
    fn ids_rise_whatever_seats_are_free() {
        let mut flight = Flight::new(true);
        let first = [send(&mut flight, 1), send(&mut flight, 2)];
        assert_eq!(key(flight.answered(Some(first[0]))), Some(1));
        let third = send(&mut flight, 3);
        assert!(0 < first[0] && first[0] < first[1] && first[1] < third);
        assert_eq!(key(flight.answered(Some(third))), Some(3));
        assert!(!flight.is_idle());
    }

    #[test]
    fn an_answer_that_comes_twice_is_late_and_one_to_nothing_is_told_apart() {
        let mut flight = Flight::new(true);
        let (id, never) = (send(&mut flight, 1), flight.next_id());
        assert!(matches!(flight.answered(Some(never)), Found::Never));
        assert!(flight.give_up(id));
        assert!(!flight.give_up(id));
        assert!(matches!(flight.answered(Some(id)), Found::Late));
        assert!(matches!(flight.answered(Some(0)), Found::Never));
        assert!(matches!(flight.answered(None), Found::Never));
    }

    #[test]
    fn in_order_who_is_given_up_keeps_his_turn() {
        let mut flight = Flight::new(false);
        let ids = [0, 1, 2].map(|key| send(&mut flight, key));
        assert!(flight.give_up(ids[1]));
        assert_eq!(key(flight.answered(None)), Some(0));
        assert!(matches!(flight.answered(None), Found::Late));
        assert!(!flight.is_idle());
        assert_eq!(key(flight.answered(None)), Some(2));
        assert!(matches!(flight.answered(None), Found::Never));
    }

    #[test]
    fn those_above_an_id_come_in_their_order() {
        for has_ids in [true, false] {
            let mut flight = Flight::new(has_ids);
            let ids = [0, 1, 2, 3].map(|key| send(&mut flight, key));
            flight.give_up(ids[2]);
            let keys: Vec<_> = flight
                .take_above(ids[0])
                .iter()
                .map(|sent| sent.key)
                .collect();
            assert_eq!(keys, [1, 3]);
            assert!(!flight.is_idle());
        }
    }
}
