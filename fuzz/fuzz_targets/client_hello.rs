//! The first bytes of a connection: read to one end, whatever they are and however they come.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_net::{
    detect::{Answer, ClientHello, Protocol},
    io::prelude::Step,
};

const LIMIT: usize = 1 << 12;

fuzz_target!(|wire: &[u8]| {
    let wire = &wire[..wire.len().min(1 << 13)];
    let mut certain = None;
    for end in 0..=wire.len() {
        let answer = match ClientHello::read(&wire[..end], LIMIT) {
            Ok(Step::More(more)) => {
                assert!(more > 0);
                None
            }
            Ok(Step::Done(hello, used)) => {
                assert_eq!(used, 0);
                let kept = hello.server_name().map_or(0, str::len);
                let kept = hello.alpn().fold(kept, |sum, name| sum + name.len());
                assert!(kept <= end, "more is kept than came");
                Some(Ok(hello))
            }
            Ok(step) => panic!("{step:?}"),
            Err(error) => Some(Err(error)),
        };
        // What is certain stays so, whatever comes after it.
        assert!(certain.is_none() || certain == answer);
        certain = answer;
    }
    for protocol in [Protocol::tls(), Protocol::http1(), Protocol::http2()] {
        let mut answer = Answer::More(1);
        for end in 1..=wire.len() {
            let now = protocol.look(&wire[..end]);
            assert!(matches!(answer, Answer::More(1..)) || answer == now);
            answer = now;
        }
    }
    // What is a hello to one is TLS to the other.
    if matches!(certain, Some(Ok(_))) && wire.len() > 5 {
        assert_eq!(Protocol::tls().look(wire), Answer::Yes);
    }
});
