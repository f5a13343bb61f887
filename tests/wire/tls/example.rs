//! The `tls` example, from outside.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, sync::Arc};

use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::Client;
use crate::support::{
    pki::{Authority, Folder, connect_with, provider},
    process::{Listening, Process},
};

#[tokio::test(flavor = "multi_thread")]
async fn it_makes_a_certificate_takes_up_a_new_one_on_a_hangup_and_keeps_that_from_a_bad_one() {
    let folder = Folder::new();
    let flags = format!("--listen 127.0.0.1:0 --folder {}", folder.path().display());
    let mut server = Process::start("tls", &flags);
    let Listening::Tcp(addr) = server.listening() else {
        panic!("not on TCP");
    };
    let key = fs::metadata(folder.path().join("key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    let own = CertificateDer::from_pem_file(folder.path().join("cert.pem")).unwrap();

    let mut first = connect(addr, &trusting(&own)).await;
    assert_eq!(first.shown(), own.as_ref());
    assert_eq!(first.call("hello").await.unwrap(), "hello");
    assert_eq!(
        first.call("whoami").await.unwrap(),
        "TLSv1.3, TLS13_AES_256_GCM_SHA384, localhost"
    );

    let authority = Authority::new("town hall");
    let renewed = authority.server(&["localhost"]);
    fs::write(folder.path().join("cert.pem"), &renewed.chain_pem).unwrap();
    fs::write(folder.path().join("key.pem"), &renewed.key_pem).unwrap();
    server.hang_up();
    assert_eq!(server.line().as_deref(), Some("reloaded"));
    let trusting = Arc::new(authority.trusting());
    let second = connect(addr, &trusting).await;
    assert_eq!(second.shown(), renewed.chain[0].as_ref());
    assert_eq!(first.call("still").await.unwrap(), "still");

    let other = authority.server(&["localhost"]);
    fs::write(folder.path().join("cert.pem"), &other.chain_pem).unwrap();
    server.hang_up();
    let kept = server.line().unwrap();
    assert!(
        kept.starts_with("kept the old certificate: private key is not that"),
        "{kept}"
    );
    let third = connect(addr, &trusting).await;
    assert_eq!(third.shown(), renewed.chain[0].as_ref());

    server.terminate();
    let report = server.line().unwrap();
    assert!(report.contains('3'), "{report}");
    // The rest of the report.
    while server.line().is_some() {}
    let (code, errors) = server.end();
    assert_eq!(code, 0, "{errors}");
}

async fn connect(addr: SocketAddr, config: &Arc<ClientConfig>) -> Client {
    let tcp = tokio::net::TcpStream::connect(addr)
        .await
        .unwrap();
    let tls = connect_with(config, "localhost", tcp)
        .await
        .unwrap();
    Client {
        io: tokio::io::BufReader::new(tls),
    }
}

/// A client that trusts this certificate and no other.
fn trusting(own: &CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(own.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}
