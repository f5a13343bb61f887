//! Lines over TLS: what a handshake settled reaches the handler, and new certificates are taken up while it runs.
//!
//! ```sh
//! cargo run --example tls --features tls -- --folder /tmp/certificates
//! ```
//!
//! makes a certificate for `localhost` there, unless there is one, and echoes lines. In another shell:
//!
//! ```sh
//! openssl s_client -quiet -connect 127.0.0.1:7443 -servername localhost -CAfile /tmp/certificates/cert.pem
//! ```
//!
//! Say `whoami` to hear how the connection is encrypted. Replace `cert.pem` and `key.pem` and send SIGHUP (`pkill -HUP`):
//! connections stay, new ones get the new certificate; a pair that does not fit is refused, and the old one stays.
//! SIGTERM and ctrl-c drain. `--listen ADDR` listens elsewhere; without `--folder` it makes one that is gone in the end.
#![allow(clippy::print_stdout, reason = "a program for people to look at")]

use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process,
};

use bytes::Bytes;
use tokio::signal::unix::{SignalKind, signal};
use tower::ServiceBuilder;
use tower_net::{
    Server,
    deadline::DeadlineLayer,
    error::BoxError,
    frame::{Delimited, FrameLayer, Request},
    limit::ConnectionLimitLayer,
    tls::{PemFiles, Reload, TlsAcceptLayer, rustls},
    trace::TraceLayer,
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (listen, folder) = flags(env::args().skip(1))?;
    let (folder, is_ours) = match folder {
        Some(folder) => (folder, false),
        None => (
            env::temp_dir().join(format!("tower-net-tls-{}", process::id())),
            true,
        ),
    };
    make_certificate(&folder)?;
    let files = PemFiles::new(folder.join("cert.pem"), folder.join("key.pem"))
        .provider(rustls::crypto::ring::default_provider())
        .alpn(["line"]);
    let reload = files.load()?;

    let stack = ServiceBuilder::new()
        .layer(ConnectionLimitLayer::new(1_000)?)
        .layer(TraceLayer::new())
        .layer(TlsAcceptLayer::new(reload.config())) // 256 handshakes at once, within 10 s each
        .layer(DeadlineLayer::default())
        .layer(FrameLayer::new(Delimited::lines(1024)))
        .service_fn(async |line: Request<Bytes>| Ok::<_, BoxError>(answer(line)));

    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let reloading = reload_on_hangup(reload)?;
    let server = Server::bind(&*listen).await?;
    println!("listening tcp {}", server.local_addr()?);
    let serving = server
        .serve(stack)
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
    let report = tokio::select! {
        report = serving.into_future() => report?,
        never = reloading => match never {},
    };
    println!("{report}");
    if is_ours {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// The same line, or who we are to each other.
fn answer(line: Request<Bytes>) -> Bytes {
    let tls = line.conn().tls();
    match tls.filter(|_| line.message() == "whoami") {
        Some(tls) => {
            let name = tls.server_name().unwrap_or("no name");
            let again = if tls.is_resumed() { ", again" } else { "" };
            let known = format!("{}, {}, {name}{again}", tls.version(), tls.cipher_suite());
            known.into()
        }
        None => line.into_message(),
    }
}

/// Reads the files again whenever SIGHUP comes.
fn reload_on_hangup(reload: Reload) -> io::Result<impl Future<Output = std::convert::Infallible>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            if hangup.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
            match reload.reload() {
                Ok(()) => println!("reloaded"),
                Err(error) => println!("kept the old certificate: {error}"),
            }
        }
    })
}

/// A certificate for `localhost` that nobody vouches for but itself, unless there is one.
fn make_certificate(folder: &Path) -> Result<(), BoxError> {
    let (chain, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    if chain.exists() {
        return Ok(());
    }
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    fs::create_dir_all(folder)?;
    // A key is for nobody else to read, nor is one put where somebody else has made a file.
    let mut key = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(key)?;
    key.write_all(
        made.signing_key
            .serialize_pem()
            .as_bytes(),
    )?;
    fs::write(chain, made.cert.pem())?;
    Ok(())
}

fn flags(mut args: impl Iterator<Item = String>) -> Result<(String, Option<PathBuf>), BoxError> {
    let (mut listen, mut folder) = ("127.0.0.1:7443".to_owned(), None);
    while let Some(flag) = args.next() {
        let value = args
            .next()
            .ok_or_else(|| format!("{flag} needs a value"))?;
        match &*flag {
            "--listen" => listen = value,
            "--folder" => folder = Some(value.into()),
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    Ok((listen, folder))
}
