//! A client that does one thing at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use anyhow::{Result, ensure};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, HandshakeKind, SignatureScheme,
    StreamOwned,
};

/// What each connection begins with.
#[derive(Debug)]
pub(super) struct Client {
    config: Arc<ClientConfig>,
}

pub(super) type Open = StreamOwned<ClientConnection, TcpStream>;

impl Client {
    pub(super) fn new(resumes: bool) -> Self {
        let provider = Arc::new(ring::default_provider());
        let anybody = Arc::new(Anybody(Arc::clone(&provider)));
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("known")
            .dangerous()
            .with_custom_certificate_verifier(anybody)
            .with_no_client_auth();
        if !resumes {
            config.resumption = Resumption::disabled();
        }
        Self {
            config: Arc::new(config),
        }
    }

    /// A connection that has had one exchange.
    pub(super) fn open(&self, address: SocketAddr) -> Result<Open> {
        let tcp = TcpStream::connect(address)?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let session = ClientConnection::new(Arc::clone(&self.config), name)?;
        let mut open = StreamOwned::new(session, tcp);
        // An empty line is a byte, and a frame as well.
        open.write_all(b"\n")?;
        let mut byte = [0];
        open.read_exact(&mut byte)?;
        ensure!(byte == *b"\n", "the wrong byte came back");
        Ok(open)
    }

    /// The same, and an end in order.
    pub(super) fn exchange(&self, address: SocketAddr) -> Result<Option<HandshakeKind>> {
        let mut open = self.open(address)?;
        open.conn.send_close_notify();
        open.flush()?;
        // Until the server has closed, so that nothing of it is left to the next.
        let mut rest = [0; 16];
        while open.sock.read(&mut rest)? > 0 {}
        Ok(open.conn.handshake_kind())
    }

    pub(super) fn exchange_times(&self, address: SocketAddr, times: u32) -> Result<()> {
        for _ in 0..times {
            self.exchange(address)?;
        }
        Ok(())
    }
}

/// Checks that the server has the key to its certificate, and nothing else.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0
            .signature_verification_algorithms
            .supported_schemes()
    }
}
