//! The setting that bounds handshakes; what it does is tested where it is, and with each layer that has one.

use std::time::Duration;

use tower_net::Handshakes;

use crate::support::service::secs;

#[test]
fn a_number_without_a_time_or_either_of_them_zero_is_refused() {
    for (at_once, within, setting) in [
        (0, secs(1), "handshakes"),
        (1, secs(0), "handshake_deadline"),
        (1, Duration::MAX, "handshake_deadline"),
    ] {
        let error = Handshakes::new(at_once, within).unwrap_err();
        assert_eq!(error.setting(), setting);
    }
}

#[test]
fn what_is_set_can_be_read_and_is_moderate_by_default() {
    let handshakes = Handshakes::new(usize::MAX, secs(1)).unwrap();
    let default = Handshakes::default();

    assert_eq!(
        (handshakes.at_once(), handshakes.within()),
        (usize::MAX, secs(1))
    );
    assert_eq!((default.at_once(), default.within()), (256, secs(10)));
    assert_eq!((handshakes.pending(), default.pending()), (0, 0));
}
