//! Clients of TLS that we cannot agree with, or that do not accept what we are.

use std::{io, sync::Arc};

use tokio::io::AsyncReadExt;
use tokio_rustls::rustls::{
    self, AlertDescription, CipherSuite, ClientConfig, ServerConfig,
    crypto::{CryptoProvider, ring},
    version::{TLS12, TLS13},
};
use tower_net::{
    CloseReason,
    error::find,
    tls::{CertificateSet, Certificates, HandshakeFailure},
};

use crate::{
    support::{
        pki::{Authority, BOTH, connect, provider},
        readings::recorded,
    },
    tls::{asking_of, layer, open, town},
    tls_failures::Ended,
};

/// What becomes of a connection of these two, and what the client has of it.
async fn between(server: ServerConfig, client: ClientConfig) -> (Ended, io::Error) {
    let (layer, metrics) = recorded(|| layer(server));
    let (far, info, served) = open(&layer);
    let heard = async {
        let mut client = connect(client, "a.test", far).await?;
        // In TLS 1.3 a client is done before the server has seen its certificate.
        client.read_u8().await
    };
    let heard = heard.await.unwrap_err();
    (Ended::of(info, served, metrics).await, heard)
}

fn alert(error: &io::Error) -> Option<AlertDescription> {
    match find::<rustls::Error>(error) {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        _ => None,
    }
}

// === Clients that cannot agree

#[tokio::test(start_paused = true)]
async fn no_version_in_common_is_told_in_an_alert() {
    let (authority, server) = town();
    for (ours, theirs) in [(&TLS13, &TLS12), (&TLS12, &TLS13)] {
        let (ended, heard) =
            between(server.serving_of(&[ours]), authority.trusting_of(&[theirs])).await;

        ended.is(
            HandshakeFailure::NoCommonVersion,
            CloseReason::HandshakeFailed,
        );
        assert_eq!(alert(&heard), Some(AlertDescription::ProtocolVersion));
    }
}

#[tokio::test(start_paused = true)]
async fn no_cipher_in_common_is_told_in_an_alert() {
    let (authority, server) = town();
    let only = |suite| {
        let mut provider = ring::default_provider();
        provider
            .cipher_suites
            .retain(|known| known.suite() == suite);
        Arc::new(provider)
    };
    let ours: Arc<CryptoProvider> = only(CipherSuite::TLS13_AES_128_GCM_SHA256);
    let server = ServerConfig::builder_with_provider(ours)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(server.chain.clone(), server.key())
        .unwrap();
    let client = ClientConfig::builder_with_provider(only(CipherSuite::TLS13_AES_256_GCM_SHA384))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth();

    let (ended, heard) = between(server, client).await;

    ended.is(
        HandshakeFailure::NoCommonCipher,
        CloseReason::HandshakeFailed,
    );
    assert_eq!(alert(&heard), Some(AlertDescription::HandshakeFailure));
}

#[tokio::test(start_paused = true)]
async fn no_protocol_in_common_is_told_in_an_alert() {
    let (authority, server) = town();
    let mut server = server.serving();
    server.alpn_protocols = vec![b"h2".to_vec()];
    let mut client = authority.trusting();
    client.alpn_protocols = vec![b"line".to_vec()];

    let (ended, heard) = between(server, client).await;

    ended.is(HandshakeFailure::NoCommonAlpn, CloseReason::HandshakeFailed);
    assert_eq!(alert(&heard), Some(AlertDescription::NoApplicationProtocol));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_we_have_no_certificate_for_is_refused() {
    let (authority, server) = town();
    let set = CertificateSet::new()
        .name("example.org", server.certified())
        .unwrap();
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&BOTH)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Certificates::new(set)));

    let (ended, heard) = between(config, authority.trusting()).await;

    ended.is(HandshakeFailure::UnknownName, CloseReason::HandshakeFailed);
    assert_eq!(alert(&heard), Some(AlertDescription::AccessDenied));
}

// === Certificates that are not accepted

#[tokio::test(start_paused = true)]
async fn a_client_without_the_certificate_that_it_must_have_is_refused_and_hears_why() {
    let (authority, server) = town();
    for version in BOTH {
        let config = asking_of(&authority, &server, &[version]);

        let (ended, heard) = between(config, authority.trusting()).await;

        ended.is(
            HandshakeFailure::TheirCertificate,
            CloseReason::HandshakeFailed,
        );
        assert_eq!(alert(&heard), Some(AlertDescription::CertificateRequired));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_with_a_certificate_of_somebody_else_is_refused() {
    let (authority, server) = town();
    let stranger = Authority::new("somebody else").client("mallory");

    let config = asking_of(&authority, &server, &BOTH);
    let (ended, heard) = between(config, authority.trusting_as(&stranger)).await;

    ended.is(
        HandshakeFailure::TheirCertificate,
        CloseReason::HandshakeFailed,
    );
    assert_eq!(alert(&heard), Some(AlertDescription::UnknownCA));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_accept_our_certificate_says_so() {
    let (_, server) = town();
    for version in BOTH {
        let stranger = Authority::new("somebody else");

        let client = stranger.trusting_of(&[version]);
        let (ended, _) = between(server.serving(), client).await;

        ended.is(
            HandshakeFailure::OurCertificate,
            CloseReason::HandshakeFailed,
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_of_ours_is_what_the_client_says_it_is() {
    let (authority, _) = town();
    let old = authority.sign(&["a.test"], |params| {
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    });

    let (ended, _) = between(old.serving(), authority.trusting()).await;

    ended.is(
        HandshakeFailure::OurCertificate,
        CloseReason::HandshakeFailed,
    );
}
