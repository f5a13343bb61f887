//! Certificates of our own making, and both sides of TLS with them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
        sign::CertifiedKey,
        version::{TLS12, TLS13},
    },
};

pub const BOTH: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate, with the key to it.
pub struct Pair {
    pub chain: Vec<CertificateDer<'static>>,
    pub chain_pem: String,
    pub key_pem: String,
    key: Vec<u8>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// For servers of these names.
    pub fn server(&self, names: &[&str]) -> Pair {
        self.sign(names, |_| {})
    }

    /// For a client of this name.
    pub fn client(&self, name: &str) -> Pair {
        self.sign(&[], |params| {
            params
                .distinguished_name
                .push(DnType::CommonName, name);
            params
                .distinguished_name
                .push(DnType::OrganizationName, "Example, Ltd");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    pub fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let names: Vec<_> = names
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair {
            chain: vec![certificate.der().clone()],
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            key: key.serialize_der(),
        }
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }

    /// A client of any version that trusts this authority.
    pub fn trusting(&self) -> ClientConfig {
        self.trusting_of(&BOTH)
    }

    pub fn trusting_of(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth()
    }

    /// The same with a certificate of its own.
    pub fn trusting_as(&self, pair: &Pair) -> ClientConfig {
        ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&BOTH)
            .unwrap()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(pair.chain.clone(), pair.key())
            .unwrap()
    }
}

impl Pair {
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    pub fn certified(&self) -> CertifiedKey {
        CertifiedKey::from_der(self.chain.clone(), self.key(), &provider()).unwrap()
    }

    /// A server of any version that asks for no certificates.
    pub fn serving(&self) -> ServerConfig {
        self.serving_of(&BOTH)
    }

    pub fn serving_of(&self, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key())
            .unwrap()
    }

    /// Its two files.
    pub fn write(&self, folder: &Folder, name: &str) -> (PathBuf, PathBuf) {
        (
            folder.write(&format!("{name}.pem"), &self.chain_pem),
            folder.write(&format!("{name}.key"), &self.key_pem),
        )
    }
}

/// The handshake of a client, to the name it asks for.
pub async fn connect<I>(config: ClientConfig, name: &str, io: I) -> std::io::Result<TlsStream<I>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    connect_with(&Arc::new(config), name, io).await
}

/// The same with what remembers sessions from the one before.
pub async fn connect_with<I>(
    config: &Arc<ClientConfig>,
    name: &str,
    io: I,
) -> std::io::Result<TlsStream<I>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::clone(config))
        .connect(name, io)
        .await
}

/// A folder that goes with its test.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let name = format!("tower-net-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}
