//! What is above the layers in the library.

pub(crate) mod client;

pub(crate) mod budget {
    //! As much of it as the calls of a client ask for.

    use std::time::Duration;

    pub(crate) use tower_net::budget::Phase;

    /// Where the time went, which no model asks.
    pub(crate) struct Spent;

    impl Spent {
        pub(crate) fn new(_: Phase, _: [Duration; 3], _: Option<Duration>) -> Self {
            Self
        }
    }
}
