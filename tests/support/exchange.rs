//! A connector in memory, which does what a test says and counts what it has opened.

use std::{
    collections::HashMap,
    future::{Future, pending},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    time::sleep,
};
use tower_net::{Conn, Deadline, io::GuardedIo};
use tower_service::Service;

/// Connects to numbers.
#[derive(Debug, Clone, Default)]
pub struct Exchange {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    answers: HashMap<u16, Answer>,
    dials: usize,
    places: usize,
    most: usize,
    open: HashMap<u16, usize>,
    far: Vec<Option<DuplexStream>>,
    deadlines: Vec<Deadline>,
}

/// What becomes of a dial.
#[derive(Debug, Clone, Copy, Default)]
pub enum Answer {
    #[default]
    Connect,
    After(Duration),
    Refuse,
    RefuseAfter(Duration),
    Hang,
    Panic,
    /// Connects, and ends the connection at once.
    Close,
    /// Connects, and says something.
    Greet,
}

/// The near end of a connection; counts itself.
pub type Line = GuardedIo<DuplexStream, Open>;

/// A connection that is open or being opened.
#[derive(Debug)]
pub struct Open {
    state: Arc<Mutex<State>>,
    to: u16,
    is_open: bool,
}

impl Exchange {
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// What becomes of dials to this number from now on.
    pub fn answer(&self, to: u16, answer: Answer) {
        self.state().answers.insert(to, answer);
    }

    /// Dials so far.
    pub fn dials(&self) -> usize {
        self.state().dials
    }

    /// Connections open now, to any number.
    pub fn open(&self) -> usize {
        self.state().open.values().sum()
    }

    /// The most there were at once, of those being opened and those open.
    pub fn most(&self) -> usize {
        self.state().most
    }

    /// The far end of the connection that was opened so many others before.
    pub fn far(&self, place: usize) -> DuplexStream {
        self.state().far[place].take().unwrap()
    }

    /// What the dials so far have found as their deadline.
    pub fn deadlines(&self) -> Vec<Deadline> {
        self.state().deadlines.clone()
    }
}

impl Service<u16> for Exchange {
    type Response = Conn<Line>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Conn<Line>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: u16) -> Self::Future {
        let mut state = self.state();
        state.dials += 1;
        state.places += 1;
        state.most = state.most.max(state.places);
        state
            .deadlines
            .push(Deadline::current());
        let answer = state
            .answers
            .get(&to)
            .copied()
            .unwrap_or_default();
        drop(state);
        let mut open = Open {
            state: Arc::clone(&self.state),
            to,
            is_open: false,
        };
        Box::pin(async move {
            match answer {
                Answer::Connect | Answer::Close | Answer::Greet => {}
                Answer::After(time) => sleep(time).await,
                Answer::Refuse => return Err(io::ErrorKind::ConnectionRefused.into()),
                Answer::RefuseAfter(time) => {
                    sleep(time).await;
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                Answer::Hang => pending().await,
                Answer::Panic => panic!("told to panic"),
            }
            let (near, mut far) = duplex(64);
            if let Answer::Greet = answer {
                far.write_all(b"220").await?;
            }
            let far = (!matches!(answer, Answer::Close)).then_some(far);
            let mut state = open.state.lock().unwrap();
            state.far.push(far);
            *state.open.entry(to).or_default() += 1;
            drop(state);
            open.is_open = true;
            Ok(Conn::new(GuardedIo::new(near, open), ()))
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap();
        state.places -= 1;
        if self.is_open {
            *state.open.get_mut(&self.to).unwrap() -= 1;
        }
    }
}
