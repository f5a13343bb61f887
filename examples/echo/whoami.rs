//! What is known of a connection, as one line of JSON.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use tower_net::ConnInfo;

#[derive(Serialize)]
struct Whoami {
    /// The client, as announced by a proxy that is trusted.
    peer: String,
    /// The address on the socket.
    wire_peer: String,
    sni: Option<String>,
    alpn: Option<String>,
    tls_version: Option<&'static str>,
    tls_cipher: Option<&'static str>,
    tls_resumed: Option<bool>,
    client_subject: Option<String>,
    /// By their type, as in `0x02`, the first of each; the values as text where they are, else in hexadecimal.
    proxy_tlvs: BTreeMap<String, String>,
}

pub(crate) fn json(conn: &ConnInfo) -> serde_json::Result<Bytes> {
    let tls = conn.tls();
    let tlvs = conn
        .proxy()
        .into_iter()
        .flat_map(|header| header.tlvs().iter());
    let mut proxy_tlvs = BTreeMap::new();
    for tlv in tlvs {
        proxy_tlvs
            .entry(format!("0x{:02x}", tlv.kind()))
            .or_insert_with(|| text(tlv.value()));
    }
    let whoami = Whoami {
        peer: conn.peer().to_string(),
        wire_peer: conn.wire_peer().to_string(),
        sni: tls
            .and_then(|tls| tls.server_name())
            .map(str::to_owned),
        alpn: tls.and_then(|tls| tls.alpn()).map(text),
        tls_version: tls.map(|tls| tls.version().label()),
        tls_cipher: tls.map(|tls| tls.cipher_suite()),
        tls_resumed: tls.map(|tls| tls.is_resumed()),
        client_subject: tls.and_then(|tls| tls.client_subject()),
        proxy_tlvs,
    };
    serde_json::to_vec(&whoami).map(Bytes::from)
}

/// Text as it is; what is none in hexadecimal.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    }
}
