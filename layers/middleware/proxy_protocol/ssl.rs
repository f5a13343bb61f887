use crate::middleware::proxy_protocol::tlv::{NO_ASCII, Tlv, TlvIter, text, walk};

/// What the proxy knows of the client's TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ssl<'a> {
    client: u8,
    verify: u32,
    tlvs: &'a [u8],
}

impl<'a> Ssl<'a> {
    pub(super) fn new(value: &'a [u8]) -> Option<Self> {
        let (&[client, ref verify @ ..], tlvs) = value.split_first_chunk::<SSL_FIXED>()?;
        Some(Self {
            client,
            verify: u32::from_be_bytes(*verify),
            tlvs,
        })
    }

    /// Whether a value is one: with one level of TLVs, and no deeper, since TLS within TLS is never sent.
    pub(super) fn check(value: &'a [u8]) -> Result<(), &'static str> {
        let Some(ssl) = Self::new(value) else {
            return Err("is shorter than its 5 fixed bytes");
        };
        for found in walk(ssl.tlvs) {
            let tlv = found.map_err(|_| "has a TLV in it that is cut short")?;
            match tlv.kind() {
                Tlv::SSL => return Err("has another of its kind in it"),
                Tlv::SSL_VERSION
                | Tlv::SSL_CIPHER
                | Tlv::SSL_SIG_ALG
                | Tlv::SSL_KEY_ALG
                | Tlv::SSL_GROUP
                | Tlv::SSL_SIG_SCHEME
                    if !tlv.value().is_ascii() =>
                {
                    return Err(NO_ASCII);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The bits of the field `client`.
    #[must_use]
    pub fn client(&self) -> u8 {
        self.client
    }

    /// Whether the client came over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.client & CLIENT_SSL != 0
    }

    /// Whether the client showed a certificate on this connection.
    #[must_use]
    pub fn has_certificate(&self) -> bool {
        self.client & CLIENT_CERT_CONN != 0
    }

    /// Whether the client showed a certificate at some time in this TLS session, which may have been resumed.
    #[must_use]
    pub fn has_session_certificate(&self) -> bool {
        self.client & CLIENT_CERT_SESS != 0
    }

    /// The field `verify`: zero if a certificate was shown and verified. Some proxies send zero without a
    /// certificate as well: ask [`is_verified`](Self::is_verified).
    #[must_use]
    pub fn verify(&self) -> u32 {
        self.verify
    }

    /// Whether the client showed a certificate, and the proxy verified it.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.client & (CLIENT_CERT_CONN | CLIENT_CERT_SESS) != 0 && self.verify == 0
    }

    /// The TLVs within, in their order.
    #[must_use]
    pub fn iter(&self) -> TlvIter<'a> {
        TlvIter { rest: self.tlvs }
    }

    /// The value of the first TLV of this type within.
    #[must_use]
    pub fn get(&self, kind: u8) -> Option<&'a [u8]> {
        self.iter()
            .find(|tlv| tlv.kind() == kind)
            .map(|tlv| tlv.value())
    }

    /// The version, such as `TLSv1.3`.
    #[must_use]
    pub fn version(&self) -> Option<&'a str> {
        text(self.get(Tlv::SSL_VERSION))
    }

    /// The common name in the client's certificate. It should be UTF-8, but proxies pass on whatever the
    /// certificate has, so it is bytes here.
    #[must_use]
    pub fn common_name(&self) -> Option<&'a [u8]> {
        self.get(Tlv::SSL_CN)
    }

    /// The cipher, such as `TLS_AES_256_GCM_SHA384`.
    #[must_use]
    pub fn cipher(&self) -> Option<&'a str> {
        text(self.get(Tlv::SSL_CIPHER))
    }

    /// What the proxy's certificate is signed with, such as `RSA-SHA256`.
    #[must_use]
    pub fn signature_algorithm(&self) -> Option<&'a str> {
        text(self.get(Tlv::SSL_SIG_ALG))
    }

    /// The kind of key of the proxy's certificate, such as `RSA2048`.
    #[must_use]
    pub fn key_algorithm(&self) -> Option<&'a str> {
        text(self.get(Tlv::SSL_KEY_ALG))
    }

    /// The group of the key exchange, such as `X25519`.
    #[must_use]
    pub fn group(&self) -> Option<&'a str> {
        text(self.get(Tlv::SSL_GROUP))
    }

    /// The signature scheme of the handshake, such as `rsa_pss_rsae_sha256`.
    #[must_use]
    pub fn signature_scheme(&self) -> Option<&'a str> {
        text(self.get(Tlv::SSL_SIG_SCHEME))
    }

    /// The client's certificate, in DER.
    #[must_use]
    pub fn client_certificate(&self) -> Option<&'a [u8]> {
        self.get(Tlv::SSL_CLIENT_CERT)
    }
}

/// Of an SSL TLV: `client` and `verify`.
const SSL_FIXED: usize = 5;

const CLIENT_SSL: u8 = 0x01;
const CLIENT_CERT_CONN: u8 = 0x02;
const CLIENT_CERT_SESS: u8 = 0x04;
