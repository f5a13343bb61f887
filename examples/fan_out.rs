//! Three services asked at once on behalf of one request, within one budget: whoever is late costs no more than that,
//! and the answer says where the time went.
//!
//! ```sh
//! cargo run --example fan_out                     # all answer in time
//! cargo run --example fan_out -- --reviews 5000   # one takes 5 s, of the 500 ms that there are
//! ```

#![expect(clippy::print_stdout, reason = "a program's results belong there")]

use std::{env, net::SocketAddr, process::ExitCode, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tower::{ServiceBuilder, service_fn};
use tower_net::{
    Deadline, Server,
    budget::{self, FanOutCause},
    client::Client,
    connect::TcpConnector,
    error::BoxError,
    frame::{Request, RpcFailure, RpcLayer},
    listen::Tcp,
};

const BUDGET: Duration = Duration::from_millis(500);

/// What the shop keeps of its time to answer for the others.
const RESERVE: Duration = Duration::from_millis(50);

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fan_out: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), BoxError> {
    let mut backends = Vec::new();
    for (name, otherwise) in [("stock", 5), ("price", 10), ("reviews", 20)] {
        let takes = flag(&format!("--{name}"))?.unwrap_or(otherwise);
        let answer = service_fn(move |_: Request<Bytes>| async move {
            sleep(Duration::from_millis(takes)).await;
            Ok::<_, RpcFailure>(Bytes::from(format!("{name} after {takes} ms")))
        });
        backends.push((name, client(serve(answer).await?)));
    }

    // The shop asks all three at once. Its deadline came with the request.
    let shop = service_fn(move |_: Request<Bytes>| {
        let backends = backends.clone();
        Deadline::current()
            .less(RESERVE)
            .scope(async move {
                let (names, backends): (Vec<_>, Vec<Client>) = backends.into_iter().unzip();
                let calls = backends
                    .into_iter()
                    .map(|backend| backend.send(Bytes::new()));
                let results = budget::fan_out(calls).all().await;
                let lines = names
                    .iter()
                    .zip(results)
                    .map(|(name, result)| match result {
                        Ok(answer) => String::from_utf8_lossy(&answer).into_owned(),
                        Err(error) => match error.into_cause() {
                            FanOutCause::Failed(error) => match error.budget() {
                                Some(spent) => format!("{name}: {spent}"),
                                None => format!("{name}: {error}"),
                            },
                            late => format!("{name}: {late:?}"),
                        },
                    });
                let lines: Vec<_> = lines.collect();
                Ok::<_, RpcFailure>(Bytes::from(lines.join("\n")))
            })
    });
    let shop = client(serve(shop).await?);

    let begun = Instant::now();
    let page = budget::within(BUDGET, shop.send(Bytes::new())).await??;
    println!("{}", String::from_utf8_lossy(&page));
    println!("answered within the budget: {}", begun.elapsed() < BUDGET);
    Ok(())
}

/// Serves until the process ends, and says where.
async fn serve<S>(service: S) -> Result<SocketAddr, BoxError>
where
    S: tower::Service<Request<Bytes>, Response = Bytes, Error = RpcFailure>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let listener = Tcp::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let stack = ServiceBuilder::new()
        .layer(RpcLayer::new(64 * 1024))
        .service(service);
    #[expect(clippy::disallowed_methods, reason = "it ends with the process")]
    tokio::spawn(
        Server::new(listener)
            .serve(stack)
            .into_future(),
    );
    Ok(addr)
}

fn client(server: SocketAddr) -> Client {
    Client::new(TcpConnector::new(), server)
}

/// The milliseconds behind a flag, if it is there.
fn flag(name: &str) -> Result<Option<u64>, BoxError> {
    let mut args = env::args()
        .skip_while(|arg| arg != name)
        .skip(1);
    Ok(args
        .next()
        .map(|value| value.parse())
        .transpose()?)
}
