//! A configuration from PEM files, and what a reload makes of good and bad ones.

use std::{fs, sync::Arc};

use tokio_rustls::rustls::crypto::ring;
use tower_net::{
    error::find,
    tls::{
        CertificateSet, Certificates, ConfigFault, HandshakeError, HandshakeFailure, PemFiles,
        Reload, TlsAcceptLayer, TlsConfigError,
    },
};

use crate::{
    support::{
        pki::{Authority, BOTH, Folder, connect, connect_with, provider},
        readings::recorded,
    },
    tls::{exchange, layer, open, town},
    tls_certificates::{resumes, shown_to},
};

fn load(files: PemFiles) -> Result<Reload, TlsConfigError> {
    files.provider(provider()).load()
}

#[tokio::test(start_paused = true)]
async fn files_are_loaded_reloaded_and_sessions_outlive_it() {
    let (authority, server) = town();
    let folder = Folder::new();
    let (chain, key) = server.write(&folder, "a");
    for files in [
        PemFiles::new(&chain, &key),
        PemFiles::new(&chain, &key).tickets(ring::Ticketer::new),
    ] {
        server.write(&folder, "a");
        let (reload, metrics) = recorded(|| load(files).unwrap());
        let layer = TlsAcceptLayer::new(reload.config());
        for version in BOTH {
            let client = Arc::new(authority.trusting_of(&[version]));
            assert!(!resumes(&layer, &client).await);

            let renewed = authority.server(&["a.test"]);
            renewed.write(&folder, "a");
            reload.reload().unwrap();

            assert!(resumes(&layer, &client).await);
            let shown = shown_to(&layer, authority.trusting(), "a.test").await;
            assert_eq!(shown.as_deref(), Ok(renewed.chain[0].as_ref()));
        }
        let done = metrics.of("tower_net_tls_reloads_total", &[("outcome", "ok")]);
        assert_eq!(done, 2.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_pair_is_refused_counted_and_the_last_good_one_kept() {
    let (authority, server) = town();
    let folder = Folder::new();
    let (chain, key) = server.write(&folder, "a");
    let (reload, metrics) = recorded(|| load(PemFiles::new(&chain, &key)).unwrap());
    let layer = TlsAcceptLayer::new(reload.config());
    let other = authority.server(&["a.test"]);
    let expired = authority.sign(&["a.test"], |params| {
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    });
    let half = &other.chain_pem[..other.chain_pem.len() / 2];
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

    for (chain_pem, key_pem, fault) in [
        // One half of a new pair is there, and the other not yet.
        (
            &*other.chain_pem,
            &*server.key_pem,
            ConfigFault::KeyMismatch,
        ),
        (&server.chain_pem, &other.key_pem, ConfigFault::KeyMismatch),
        (&expired.chain_pem, &expired.key_pem, ConfigFault::Expired),
        ("", &server.key_pem, ConfigFault::NoCertificate),
        (&server.chain_pem, "", ConfigFault::NoKey),
        (half, &server.key_pem, ConfigFault::Unreadable),
        (broken, &server.key_pem, ConfigFault::BadCertificate),
        (&server.chain_pem, bad_key, ConfigFault::BadKey),
    ] {
        fs::write(&chain, chain_pem).unwrap();
        fs::write(&key, key_pem).unwrap();

        let error = reload.reload().unwrap_err();

        assert_eq!(error.fault(), fault, "{error:?}");
        assert!(
            error
                .file()
                .unwrap()
                .starts_with(folder.path())
        );
        let refused = [("outcome", fault.label())];
        assert!(metrics.of("tower_net_tls_reloads_total", &refused) >= 1.0);
        let shown = shown_to(&layer, authority.trusting(), "a.test").await;
        assert_eq!(shown.as_deref(), Ok(server.chain[0].as_ref()));
    }
    assert_eq!(metrics.of("tower_net_tls_reloads_total", &[]), 8.0);
}

#[tokio::test(start_paused = true)]
async fn one_bad_pair_of_several_keeps_all_of_them_as_they_were() {
    let (authority, server) = town();
    let other = authority.server(&["example.org"]);
    let folder = Folder::new();
    let (chain, key) = server.write(&folder, "a");
    let (other_chain, other_key) = other.write(&folder, "b");
    let files = PemFiles::by_name()
        .name("a.test", &chain, &key)
        .name("example.org", &other_chain, &other_key);
    let reload = load(files).unwrap();
    let layer = TlsAcceptLayer::new(reload.config());

    authority
        .server(&["a.test"])
        .write(&folder, "a");
    fs::remove_file(&other_key).unwrap();
    let error = reload.reload().unwrap_err();

    assert_eq!(error.fault(), ConfigFault::Unreadable);
    assert_eq!(error.file(), Some(&*other_key));
    for (name, pair) in [("a.test", &server), ("example.org", &other)] {
        let shown = shown_to(&layer, authority.trusting(), name).await;
        assert_eq!(shown.as_deref(), Ok(pair.chain[0].as_ref()));
    }
}

#[tokio::test(start_paused = true)]
async fn client_certificates_are_required_or_only_asked_for() {
    let (authority, server) = town();
    let alice = authority.client("alice");
    let stranger = Authority::new("somebody else").client("mallory");
    let folder = Folder::new();
    let (chain, key) = server.write(&folder, "a");
    let authorities = folder.write("ca.pem", &authority.pem());
    let files = || PemFiles::new(&chain, &key);
    let required = load(files().require_client_certificates(&authorities)).unwrap();
    let requested = load(files().request_client_certificates(&authorities)).unwrap();

    for (reload, client, is_let_in) in [
        (&required, authority.trusting_as(&alice), true),
        (&required, authority.trusting(), false),
        (&required, authority.trusting_as(&stranger), false),
        (&requested, authority.trusting_as(&alice), true),
        (&requested, authority.trusting(), true),
        (&requested, authority.trusting_as(&stranger), false),
    ] {
        let layer = TlsAcceptLayer::new(reload.config());
        let (far, _, served) = open(&layer);
        // A client of TLS 1.3 learns of it only when it reads.
        let connected = connect(client, "a.test", far).await;
        let exchanged = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut client = connected?;
            client.write_all(b"x").await?;
            client.flush().await?;
            client.read_u8().await
        };

        assert_eq!(exchanged.await.is_ok(), is_let_in);
        if !is_let_in {
            let error = served.await.unwrap().unwrap_err();
            let error = find::<HandshakeError>(&*error).unwrap();
            assert_eq!(error.failure(), HandshakeFailure::TheirCertificate);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn sessions_do_not_outlive_the_authority_that_they_began_under() {
    let (authority, server) = town();
    let alice = authority.client("alice");
    let folder = Folder::new();
    let (chain, key) = server.write(&folder, "a");
    let authorities = folder.write("ca.pem", &authority.pem());
    for files in [
        PemFiles::new(&chain, &key),
        PemFiles::new(&chain, &key).tickets(ring::Ticketer::new),
    ] {
        fs::write(&authorities, authority.pem()).unwrap();
        let reload = load(files.require_client_certificates(&authorities)).unwrap();
        let layer = TlsAcceptLayer::new(reload.config());
        let client = Arc::new(authority.trusting_as(&alice));
        resumes(&layer, &client).await;
        assert!(resumes(&layer, &client).await);

        let successor = Authority::new("new town hall");
        fs::write(&authorities, successor.pem()).unwrap();
        reload.reload().unwrap();

        let (far, _, served) = open(&layer);
        let _refused = connect_with(&client, "a.test", far).await;
        let error = served.await.unwrap().unwrap_err();
        let error = find::<HandshakeError>(&*error).unwrap();
        assert_eq!(error.failure(), HandshakeFailure::TheirCertificate);
    }
}

#[tokio::test(start_paused = true)]
async fn protocols_are_agreed_on_and_sessions_can_be_turned_off() {
    let (authority, server) = town();
    let folder = Folder::new();
    let (chain, key) = server.write(&folder, "a");
    let files = PemFiles::new(&chain, &key)
        .alpn(["h2", "line"])
        .sessions(0);
    let reload = load(files).unwrap();
    let layer = TlsAcceptLayer::new(reload.config());
    let mut client = authority.trusting();
    client.alpn_protocols = vec![b"line".to_vec(), b"h2".to_vec()];
    let client = Arc::new(client);

    for _ in 0..2 {
        let (far, info, _served) = open(&layer);
        let mut client = connect_with(&client, "a.test", far)
            .await
            .unwrap();
        exchange(&mut client, "hello").await;

        let tls = info.tls().unwrap();
        // What we like best counts.
        assert_eq!(tls.alpn(), Some(&b"h2"[..]));
        assert!(!tls.is_resumed());
    }
}

#[test]
fn a_protocol_that_no_client_can_name_is_refused() {
    let (_, server) = town();
    let folder = Folder::new();
    let (chain, key) = server.write(&folder, "a");
    let too_long = "x".repeat(256);
    for name in ["", &too_long] {
        let files = PemFiles::new(&chain, &key).alpn(["h2", name]);

        let error = load(files).unwrap_err();

        assert_eq!(error.fault(), ConfigFault::BadProtocol);
    }
}

#[test]
fn what_cannot_be_loaded_says_which_file_is_to_blame() {
    let (authority, server) = town();
    let folder = Folder::new();
    let (chain, key) = server.write(&folder, "a");
    let missing = folder.path().join("missing.pem");
    let empty = folder.write("empty.pem", "");

    let error = load(PemFiles::new(&missing, &key)).unwrap_err();
    assert_eq!(
        (error.fault(), error.file()),
        (ConfigFault::Unreadable, Some(&*missing))
    );
    assert!(
        error
            .to_string()
            .contains("missing.pem"),
        "{error}"
    );

    let files = PemFiles::new(&chain, &key).require_client_certificates(&empty);
    let error = load(files).unwrap_err();
    assert_eq!(
        (error.fault(), error.file()),
        (ConfigFault::NoCertificate, Some(&*empty))
    );

    let files = PemFiles::by_name().name("b.test", &chain, &key);
    let error = load(files).unwrap_err();
    assert_eq!(error.fault(), ConfigFault::WrongName);
    assert!(error.to_string().contains("`b.test`"), "{error}");

    // Nobody has installed one in this process.
    let error = PemFiles::new(&chain, &key)
        .load()
        .unwrap_err();
    assert_eq!(error.fault(), ConfigFault::NoProvider);
    drop(authority);
}

/// What a debug line must not have in it.
#[test]
fn nothing_shows_a_key() {
    let (_, server) = town();
    let folder = Folder::new();
    let (chain, key) = server.write(&folder, "a");
    let reload = load(PemFiles::new(&chain, &key)).unwrap();
    let set = CertificateSet::new()
        .default_to(server.certified())
        .unwrap();

    let shown = format!(
        "{reload:?} {:?} {set:?} {:?} {:?}",
        reload.config(),
        Certificates::new(set.clone()),
        layer(server.serving()),
    );

    assert!(shown.len() < 1500, "{shown}");
    assert!(!shown.contains("PrivateKey"), "{shown}");
}
