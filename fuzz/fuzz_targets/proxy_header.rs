//! Any bytes, as a PROXY header: never a panic, never a byte too many, the same verdict however they are split, and
//! what was accepted is encoded as it came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_net::{
    io::prelude::Step,
    proxy_protocol::{Addresses, Header, HeaderError, HeaderRules, Version},
};

fuzz_target!(|bytes: &[u8]| {
    for rules in [
        HeaderRules::default(),
        HeaderRules::default()
            .max_v2_payload(65_535)
            .accept_ipv4_in_tcp6(true)
            .require_unicast(true)
            .reject_duplicate_tlvs(true),
    ] {
        let whole = verdict(&rules, bytes);
        let piecewise = (0..=bytes.len()).find_map(|end| verdict(&rules, &bytes[..end]));
        assert_eq!(whole, piecewise);

        if let Some(Ok((header, length))) = whole {
            assert!(length <= bytes.len());
            look_at(&header);
            written_again(&rules, &header);
        }
    }
});

/// `None` while there is not enough.
fn verdict(rules: &HeaderRules, seen: &[u8]) -> Option<Result<(Header, usize), HeaderError>> {
    match rules.step(seen) {
        Ok(Step::Done(header, length)) => Some(Ok((header, length))),
        Ok(Step::More(more)) => {
            assert!(more > 0 && seen.len() + more <= rules.longest());
            None
        }
        Ok(_) => unreachable!("no other step"),
        Err(error) => {
            // Every error has words.
            assert!(!error.to_string().is_empty());
            Some(Err(error))
        }
    }
}

fn look_at(header: &Header) {
    let tlvs = header.tlvs();
    let _seen = (
        tlvs.alpn(),
        tlvs.authority(),
        tlvs.unique_id(),
        tlvs.netns(),
    );
    let _seen = (
        tlvs.aws_vpc_endpoint_id(),
        tlvs.gcp_psc_connection_id(),
        tlvs.azure_private_endpoint_link_id(),
    );
    if let Some(ssl) = tlvs.ssl() {
        let _seen = (
            ssl.version(),
            ssl.common_name(),
            ssl.cipher(),
            ssl.is_verified(),
        );
        assert!(
            ssl.iter()
                .all(|tlv| ssl.get(tlv.kind()).is_some())
        );
    }
    let _seen = (header.source(), header.destination(), format!("{header:?}"));
}

/// What a header says survives being written and read, but for the padding of names and what is skipped.
fn written_again(rules: &HeaderRules, header: &Header) {
    let wire = header
        .encode()
        .expect("what was read can be written");
    let (read, rest) = rules
        .parse(&wire)
        .expect("what was written can be read");
    assert!(rest.is_empty());
    assert_eq!(read.version(), header.version());
    assert_eq!(read.addresses(), header.addresses());
    let is_padded = matches!(header.addresses(), Addresses::Unix { .. });
    if header.version() == Version::V2 && !is_padded {
        assert_eq!(read.tlvs(), header.tlvs());
    }
}
