use std::net::IpAddr;

use crate::{
    base::io::prelude::Step,
    middleware::proxy_protocol::{
        error::HeaderError,
        header::{Addresses, End, Header, Version},
        v1, v2,
    },
};

/// Which headers are accepted, wherever the specification or its users leave a choice. Whatever is malformed never
/// is.
///
/// The defaults are the strict ones: an address that two hops read differently is a way around access rules.
///
/// Besides what [`ProxyProtocolLayer`](super::ProxyProtocolLayer) does with them, they parse what is there as a whole
/// ([`parse`](Self::parse)), and what comes in pieces ([`step`](Self::step)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderRules {
    only: Option<Version>,
    pub(super) max_v2_payload: usize,
    pub(super) ipv4_in_tcp6: bool,
    pub(super) unicast: bool,
    pub(super) no_duplicate_tlvs: bool,
}

impl HeaderRules {
    /// Refuses headers of the other version. Default: both are accepted.
    #[must_use]
    pub fn only(mut self, version: Version) -> Self {
        self.only = Some(version);
        self
    }

    /// The most bytes that a header of version 2 may announce: addresses, TLVs, and what is skipped. A proxy that
    /// sends client certificates may need more. Default: 4096, far more than the 536 bytes that the specification
    /// asks senders to keep to.
    #[must_use]
    pub fn max_v2_payload(mut self, bytes: usize) -> Self {
        self.max_v2_payload = bytes;
        self
    }

    /// Accepts IPv4 addresses in a `TCP6` line, as some senders write them, and takes them for IPv4-mapped ones.
    /// Default: off.
    #[must_use]
    pub fn accept_ipv4_in_tcp6(mut self, on: bool) -> Self {
        self.ipv4_in_tcp6 = on;
        self
    }

    /// Refuses addresses that no client and no proxy can have: multicast, broadcast, unspecified. Default: off.
    #[must_use]
    pub fn require_unicast(mut self, on: bool) -> Self {
        self.unicast = on;
        self
    }

    /// Refuses two TLVs of one type, padding aside. Default: off, the first one counts. (Two checksums are refused
    /// in any case.)
    #[must_use]
    pub fn reject_duplicate_tlvs(mut self, on: bool) -> Self {
        self.no_duplicate_tlvs = on;
        self
    }

    /// Reads the header that `bytes` begin with; returns it, and the bytes behind it. There must be all of it, as in
    /// a datagram.
    ///
    /// # Errors
    ///
    /// See [`HeaderError`]. No bytes at all are no header.
    pub fn parse<'a>(&self, bytes: &'a [u8]) -> Result<(Header, &'a [u8]), HeaderError> {
        match self.step(bytes)? {
            Step::Done(header, length) => Ok((header, &bytes[length..])),
            Step::More(_) if bytes.is_empty() => Err(HeaderError::NotProxy),
            Step::More(_) => Err(HeaderError::Truncated {
                length: bytes.len(),
            }),
        }
    }

    /// Looks at the first bytes of a stream, for [`prelude::read`](crate::io::prelude::read): how many more belong to
    /// the header for certain, or the header and its length.
    ///
    /// The verdict is the same however the bytes are split, and a wrong byte is refused as soon as it is certain to
    /// be wrong. Nothing is kept in between.
    ///
    /// # Errors
    ///
    /// See [`HeaderError`].
    pub fn step(&self, seen: &[u8]) -> Result<Step<Header>, HeaderError> {
        if seen.starts_with(v1::SIGNATURE) {
            return v1::step(seen, self);
        }
        if seen.starts_with(v2::SIGNATURE) {
            self.allow(Version::V2)?;
            return v2::step(seen, self);
        }
        for (signature, least) in [(v1::SIGNATURE, v1::LEAST), (v2::SIGNATURE, v2::FIXED)] {
            if signature.starts_with(seen) {
                return Ok(Step::More(least - seen.len()));
            }
        }
        Err(HeaderError::NotProxy)
    }

    /// The most bytes that a header may have.
    #[must_use]
    pub fn longest(&self) -> usize {
        v1::MAX_LINE.max(v2::FIXED.saturating_add(self.max_v2_payload))
    }

    /// Holds addresses against these rules.
    pub(super) fn judge(&self, addresses: &Addresses) -> Result<(), HeaderError> {
        if !self.unicast {
            return Ok(());
        }
        for end in [End::Source, End::Destination] {
            let ip = addresses
                .of(end)
                .and_then(|addr| addr.ip());
            if ip.is_some_and(|ip| !is_unicast(ip)) {
                let problem = "is no unicast address";
                return Err(HeaderError::BadAddress { end, problem });
            }
        }
        Ok(())
    }

    pub(super) fn allow(&self, version: Version) -> Result<(), HeaderError> {
        match self.only {
            Some(only) if only != version => Err(HeaderError::VersionRefused(version)),
            _ => Ok(()),
        }
    }
}

impl Default for HeaderRules {
    fn default() -> Self {
        Self {
            only: None,
            max_v2_payload: 4096,
            ipv4_in_tcp6: false,
            unicast: false,
            no_duplicate_tlvs: false,
        }
    }
}

fn is_unicast(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_multicast() && !ip.is_unspecified() && !is_broadcast
}
