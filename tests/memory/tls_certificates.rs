//! Certificates by name, swapped and reloaded, and what becomes of sessions meanwhile.

use std::sync::Arc;

use tokio::time::sleep;
use tokio_rustls::rustls::{
    ClientConfig, ServerConfig, crypto::ring, server::ResolvesServerCert, sign::CertifiedKey,
};
use tokio_test::{assert_pending, task};
use tower_net::{
    error::find,
    tls::{
        CertificateSet, Certificates, ConfigFault, HandshakeError, HandshakeFailure,
        TlsAcceptLayer, TlsConfig, TlsConfigError,
    },
};

use crate::{
    support::{
        pki::{Authority, BOTH, Pair, connect, connect_with, provider},
        service::millis,
    },
    tls::{exchange, layer, open, town},
};

/// The certificate that a client of this name gets, or how its handshake failed.
pub(crate) async fn shown_to(
    layer: &TlsAcceptLayer,
    client: ClientConfig,
    name: &str,
) -> Result<Vec<u8>, HandshakeFailure> {
    let (far, _, served) = open(layer);
    match connect(client, name, far).await {
        Ok(mut client) => {
            exchange(&mut client, "hello").await;
            let chain = client.get_ref().1.peer_certificates();
            Ok(chain.unwrap()[0].to_vec())
        }
        Err(_) => {
            let error = served.await.unwrap().unwrap_err();
            let error = find::<HandshakeError>(&*error);
            Err(error.unwrap().failure())
        }
    }
}

/// Whether a connection of this client resumes what one before has begun.
pub(crate) async fn resumes(layer: &TlsAcceptLayer, client: &Arc<ClientConfig>) -> bool {
    let (far, info, _served) = open(layer);
    let mut client = connect_with(client, "a.test", far)
        .await
        .unwrap();
    exchange(&mut client, "hello").await;
    info.tls().unwrap().is_resumed()
}

fn serving(certificates: &Certificates) -> ServerConfig {
    let resolver: Arc<dyn ResolvesServerCert> = Arc::new(certificates.clone());
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&BOTH)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(resolver)
}

/// A key that belongs to another certificate.
fn mismatched(one: &Pair, other: &Pair) -> CertifiedKey {
    let key = ring::default_provider()
        .key_provider
        .load_private_key(other.key())
        .unwrap();
    CertifiedKey::new(one.chain.clone(), key)
}

// === By name

#[tokio::test(start_paused = true)]
async fn a_certificate_is_chosen_by_name_exact_before_wildcard_before_default() {
    let authority = Authority::new("town hall");
    let everyone = authority.server(&["a.test", "b.test", "x.y.example.org", "example.org"]);
    let exact = authority.server(&["www.example.org"]);
    let wildcard = authority.server(&["*.example.org"]);
    let set = CertificateSet::new()
        .default_to(everyone.certified())
        .unwrap()
        .name("WWW.Example.org", exact.certified())
        .unwrap()
        .name("*.example.ORG", wildcard.certified())
        .unwrap();
    let layer = layer(serving(&Certificates::new(set)));

    for (name, expected) in [
        ("www.example.org", &exact),
        ("wWw.ExAmPlE.oRg", &exact),
        ("mail.example.org", &wildcard),
        ("MAIL.example.org", &wildcard),
        // A wildcard is one label, and not none.
        ("x.y.example.org", &everyone),
        ("example.org", &everyone),
        ("b.test", &everyone),
    ] {
        let shown = shown_to(&layer, authority.trusting(), name).await;

        assert_eq!(shown.as_deref(), Ok(expected.chain[0].as_ref()), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_without_a_name_gets_the_default() {
    let (authority, server) = town();
    let address = authority.server(&["127.0.0.1"]);
    let set = CertificateSet::new()
        .default_to(address.certified())
        .unwrap()
        .name("a.test", server.certified())
        .unwrap();
    let layer = layer(serving(&Certificates::new(set)));

    // An address is not sent as a name (RFC 6066, section 3).
    let shown = shown_to(&layer, authority.trusting(), "127.0.0.1").await;

    assert_eq!(shown.as_deref(), Ok(address.chain[0].as_ref()));
}

#[tokio::test(start_paused = true)]
async fn without_a_default_whoever_asks_for_another_name_or_none_is_refused() {
    let (authority, server) = town();
    let set = CertificateSet::new()
        .name("a.test", server.certified())
        .unwrap();
    let layer = layer(serving(&Certificates::new(set)));

    for name in ["example.org", "127.0.0.1", "b.a.test"] {
        let shown = shown_to(&layer, authority.trusting(), name).await;

        assert_eq!(shown, Err(HandshakeFailure::UnknownName), "{name}");
    }
    assert!(
        shown_to(&layer, authority.trusting(), "a.test")
            .await
            .is_ok()
    );
}

#[test]
fn a_certificate_that_cannot_serve_is_refused_with_what_is_wrong() {
    let (authority, server) = town();
    let year = |from, until| {
        authority.sign(&["a.test"], |params| {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
        })
    };
    let set = CertificateSet::new;
    let fault = |result: Result<CertificateSet, TlsConfigError>| result.unwrap_err().fault();
    let other = authority.server(&["a.test"]);

    assert_eq!(
        fault(set().default_to(mismatched(&server, &other))),
        ConfigFault::KeyMismatch
    );
    assert_eq!(
        fault(set().name("a.test", mismatched(&server, &other))),
        ConfigFault::KeyMismatch
    );
    assert_eq!(
        fault(set().default_to(year(2001, 2002).certified())),
        ConfigFault::Expired
    );
    assert_eq!(
        fault(set().default_to(year(2101, 2102).certified())),
        ConfigFault::NotYetValid
    );
    for name in ["b.test", "*.a.test", "*.test"] {
        assert_eq!(
            fault(set().name(name, server.certified())),
            ConfigFault::WrongName,
            "{name}"
        );
    }
    for name in ["", "*.", "*", "a b", "*.*.test", "a.*.test"] {
        assert_eq!(
            fault(set().name(name, server.certified())),
            ConfigFault::BadName,
            "{name}"
        );
    }
}

// === Swapped

#[tokio::test(start_paused = true)]
async fn a_swap_is_for_new_handshakes_and_drops_nobody() {
    let (authority, server) = town();
    let renewed = authority.server(&["a.test"]);
    let config = TlsConfig::new(server.serving());
    let layer = TlsAcceptLayer::new(config.clone());
    let (far, _, _served) = open(&layer);
    let mut before = connect(authority.trusting(), "a.test", far)
        .await
        .unwrap();
    exchange(&mut before, "hello").await;

    config.swap(renewed.serving());
    let shown = shown_to(&layer, authority.trusting(), "a.test").await;

    assert_eq!(shown.as_deref(), Ok(renewed.chain[0].as_ref()));
    assert_eq!(exchange(&mut before, "still").await, "still");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_under_way_goes_on_with_what_it_began_with() {
    let (authority, server) = town();
    let renewed = authority.server(&["a.test"]);
    let config = TlsConfig::new(server.serving());
    let layer = TlsAcceptLayer::new(config.clone());
    let (far, _, _served) = open(&layer);
    let mut connecting = task::spawn(connect(authority.trusting(), "a.test", far));
    assert_pending!(connecting.poll());
    // The hello is there, and answered by now.
    sleep(millis(1)).await;
    assert!(connecting.is_woken());

    config.swap(renewed.serving());
    let mut client = connecting.await.unwrap();

    exchange(&mut client, "hello").await;
    let chain = client.get_ref().1.peer_certificates();
    assert_eq!(chain.unwrap(), server.chain);
    let next = shown_to(&layer, authority.trusting(), "a.test").await;
    assert_eq!(next.as_deref(), Ok(renewed.chain[0].as_ref()));
}

#[tokio::test(start_paused = true)]
async fn sessions_outlive_a_swap_that_keeps_them_and_no_other() {
    let (authority, server) = town();
    for version in BOTH {
        let config = TlsConfig::new(server.serving());
        let layer = TlsAcceptLayer::new(config.clone());
        let client = Arc::new(authority.trusting_of(&[version]));
        assert!(!resumes(&layer, &client).await);

        config.swap_keeping_sessions(server.serving());
        assert!(resumes(&layer, &client).await);

        config.swap(server.serving());
        assert!(!resumes(&layer, &client).await);
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_outlive_a_swap_of_the_certificates() {
    let (authority, server) = town();
    let set = |pair: &Pair| {
        CertificateSet::new()
            .default_to(pair.certified())
            .unwrap()
    };
    let certificates = Certificates::new(set(&server));
    let layer = layer(serving(&certificates));
    let client = Arc::new(authority.trusting());
    assert!(!resumes(&layer, &client).await);

    let renewed = authority.server(&["a.test"]);
    certificates.swap(set(&renewed));

    assert!(resumes(&layer, &client).await);
    let shown = shown_to(&layer, authority.trusting(), "a.test").await;
    assert_eq!(shown.as_deref(), Ok(renewed.chain[0].as_ref()));
}
