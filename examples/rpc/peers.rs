//! The bad peers: each does one thing wrong, and knows how that should end.

use std::{io, net::SocketAddr, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_util::codec::{Decoder, Encoder};
use tower_net::{
    CloseReason,
    error::{BoxError, is_disconnect},
};

use crate::protocol::{Call, ClientCodec, MAX_FRAME, Refusal, Reply};

/// What a peer does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Connects and never sends a byte.
    Silent,
    /// Asks once and then says nothing more.
    Idle,
    /// Sends a frame a byte at a time.
    Drips,
    /// Asks for more and more, and reads nothing of it.
    NeverReads,
    /// Announces a frame over the limit.
    Oversize,
    /// Sends a frame that holds no call.
    Garbage,
}

/// How the end looks from the peer's side.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    Refused(Refusal),
    Reset,
}

impl Fault {
    /// All of them, and how many peers of each there are in a round.
    const ROUND: [(Self, usize); 6] = [
        (Self::Silent, 8),
        (Self::Idle, 8),
        (Self::Drips, 8),
        (Self::NeverReads, 4),
        (Self::Oversize, 8),
        (Self::Garbage, 8),
    ];

    /// What the server should call it.
    fn reason(self) -> CloseReason {
        match self {
            Self::Silent => CloseReason::FirstByte,
            Self::Idle => CloseReason::Idle,
            Self::Drips => CloseReason::Request,
            Self::NeverReads => CloseReason::WriteStall,
            Self::Oversize => CloseReason::Oversize,
            Self::Garbage => CloseReason::Protocol,
        }
    }

    /// What the peer should see.
    fn end(self) -> End {
        match self {
            Self::Silent | Self::Idle => End::Closed,
            Self::Drips => End::Refused(Refusal::Late),
            Self::NeverReads => End::Reset,
            Self::Oversize => End::Refused(Refusal::TooLarge),
            Self::Garbage => End::Refused(Refusal::Malformed),
        }
    }

    /// Does it, and sees how it ends.
    async fn commit(self, addr: SocketAddr) -> Result<End, BoxError> {
        let mut stream = connect(addr).await?;
        match self {
            Self::Silent => {}
            Self::Idle => drop(ask(&mut stream, get("idle")).await?),
            Self::Drips => return drip(stream).await,
            Self::NeverReads => return never_read(stream).await,
            Self::Oversize => {
                let announced = MAX_FRAME as u32 + 1;
                stream.write_u32(announced).await?;
            }
            Self::Garbage => {
                stream
                    .write_all(b"\0\0\0\x04\xff\xff\xff\xff")
                    .await?
            }
        }
        see_end(&mut stream).await
    }
}

/// What became of bad peers.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// For each that was ended as it should be: the reason, and after how long.
    pub(crate) ended: Vec<(CloseReason, Duration)>,
    /// Connections that behaved, to fill the house.
    pub(crate) polite: u64,
    pub(crate) complaints: Vec<String>,
}

impl Ledger {
    /// One peer of every kind and more, all at once.
    pub(crate) async fn round(&mut self, addr: SocketAddr) {
        let mut peers = JoinSet::new();
        for (fault, count) in Fault::ROUND {
            for _ in 0..count {
                peers.spawn(async move {
                    let begun = Instant::now();
                    let end = timeout(PATIENCE, fault.commit(addr)).await;
                    (fault, begun.elapsed(), end)
                });
            }
        }
        for (fault, took, end) in peers.join_all().await {
            match end {
                Ok(Ok(end)) if end == fault.end() => self.ended.push((fault.reason(), took)),
                Ok(Ok(end)) => self.complain(fault, format!("saw {end:?}")),
                Ok(Err(error)) => self.complain(fault, error),
                Err(_) => self.complain(fault, "was never ended"),
            }
        }
    }

    /// Comes with more and more connections, each of them polite, until the house is full and some more were
    /// sent away; then all leave.
    pub(crate) async fn crowd(&mut self, addr: SocketAddr, max_connections: usize) {
        let (mut inside, mut refused) = (Vec::new(), 0);
        for _ in 0..max_connections + SURPLUS {
            let begun = Instant::now();
            match timeout(PATIENCE, enter(addr)).await {
                Ok(Ok(stream)) => inside.push(stream),
                Ok(Err(error)) if is_disconnect(&error) => {
                    self.ended
                        .push((CloseReason::Limit, begun.elapsed()));
                    refused += 1;
                }
                Ok(Err(error)) => self
                    .complaints
                    .push(format!("crowd: {error}")),
                Err(_) => self
                    .complaints
                    .push("crowd: no answer".to_owned()),
            }
            if refused == SURPLUS {
                break;
            }
        }
        self.polite += inside.len() as u64;
        if refused < SURPLUS {
            self.complaints
                .push("crowd: never refused".to_owned());
        }
    }

    fn complain(&mut self, fault: Fault, what: impl ToString) {
        self.complaints
            .push(format!("{fault:?}: {}", what.to_string()));
    }
}

async fn connect(addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // The less a peer's own kernel holds, the sooner one that does not read is noticed.
    socket.set_recv_buffer_size(16 * 1024)?;
    let stream = socket.connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens a connection that is good for at least one call.
async fn enter(addr: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = connect(addr).await?;
    ask(&mut stream, get("crowd")).await?;
    Ok(stream)
}

fn get(key: &str) -> Call {
    let key = key.to_owned();
    Call::Get { key }
}

fn frame_of(call: Call) -> io::Result<BytesMut> {
    let mut frame = BytesMut::new();
    ClientCodec::new()
        .encode(call, &mut frame)
        .map_err(io::Error::other)?;
    Ok(frame)
}

/// One call and its reply, by hand.
async fn ask(stream: &mut TcpStream, call: Call) -> io::Result<Reply> {
    stream
        .write_all(&frame_of(call)?)
        .await?;
    let (mut codec, mut input) = (ClientCodec::new(), BytesMut::new());
    loop {
        if let Some(reply) = codec
            .decode(&mut input)
            .map_err(io::Error::other)?
        {
            return Ok(reply);
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn see_end(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<End, BoxError> {
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest).await {
        return if is_disconnect(&error) {
            Ok(End::Reset)
        } else {
            Err(error.into())
        };
    }
    let mut rest = BytesMut::from(&rest[..]);
    match ClientCodec::new().decode_eof(&mut rest)? {
        Some(Reply::Refused(refusal)) => Ok(End::Refused(refusal)),
        Some(other) => Err(format!("unexpected {other}").into()),
        None => Ok(End::Closed),
    }
}

async fn drip(mut stream: TcpStream) -> Result<End, BoxError> {
    let frame = frame_of(get(&"slow ".repeat(100)))?;
    let (mut from, mut to) = stream.split();
    let dripping = async {
        for byte in frame {
            if to.write_u8(byte).await.is_err() {
                break;
            }
            sleep(DRIP).await;
        }
        Err("the whole frame was taken".into())
    };
    tokio::select! {
        end = see_end(&mut from) => end,
        whole = dripping => whole,
    }
}

async fn never_read(mut stream: TcpStream) -> Result<End, BoxError> {
    let key = "large".to_owned();
    let value = "x".repeat(MAX_FRAME / 8);
    ask(&mut stream, Call::Put { key, value }).await?;
    let call = frame_of(get("large"))?;
    loop {
        match stream.write_all(&call).await {
            Ok(()) => {}
            Err(error) if is_disconnect(&error) => return Ok(End::Reset),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Far beyond every deadline of the demo.
const PATIENCE: Duration = Duration::from_secs(15);

/// Between the bytes of a frame that drips: often enough to never be idle.
const DRIP: Duration = Duration::from_millis(100);

/// Connections that a crowd brings too many.
const SURPLUS: usize = 16;
