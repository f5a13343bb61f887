//! Counts instructions, which are the same on any machine, rather than time, which is not.
//!
//! Each scene is run twice in a process of its own under valgrind, for a few rounds and for many; the
//! difference is what the rounds themselves cost.

#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::{
    env, io,
    pin::Pin,
    process::Command,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_net::io::Io;

/// A name, and what to run so many times.
pub(crate) type Scene = (&'static str, fn(u64));

/// Runs one scene if asked to by the process that counts; else counts all, and prints a table in which every
/// row is compared with the first.
pub(crate) fn main(title: &str, unit: &str, scenes: &[Scene]) {
    let arguments: Vec<String> = env::args().collect();
    if let [_, _, name, rounds] = &arguments[..] {
        let rounds = rounds
            .parse()
            .expect("a number of rounds");
        let scene = scenes
            .iter()
            .find(|(known, _)| known == name);
        scene.expect("a known scene").1(rounds);
        return;
    }
    println!("{title}: instructions {unit}");
    let mut first = None;
    for (name, _) in scenes {
        let (few, many) = (200, 2200);
        let (Some(base), Some(whole)) = (count(name, few), count(name, many)) else {
            println!("  valgrind is not installed, nothing to count with");
            return;
        };
        let cost = (whole - base) / (many - few);
        let added = cost as i64 - *first.get_or_insert(cost) as i64;
        println!("  {name:<44} {cost:>8}  {added:>+8}");
    }
}

fn count(scene: &str, rounds: u64) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().ok()?)
        .args(["--scene", scene, &rounds.to_string()])
        .output()
        .ok()?;
    let report = String::from_utf8_lossy(&output.stderr);
    let collected = report
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    collected?.1.trim().parse().ok()
}

/// A peer in memory: sends the same burst again and again, and takes whatever is sent to it.
#[derive(Debug)]
pub(crate) struct Bursts {
    burst: Bytes,
    rest: Bytes,
    left: u64,
    waits: bool,
    next: fn(&mut Bytes),
}

impl Bursts {
    /// Sends `burst` so many times, with a pause after each, and ends.
    pub(crate) fn new(burst: impl Into<Bytes>, times: u64) -> Self {
        Self {
            burst: burst.into(),
            rest: Bytes::new(),
            left: times,
            waits: false,
            next: |_| {},
        }
    }

    /// The same, where `next` makes each burst of the one before it.
    #[allow(dead_code, reason = "each bench uses its own part of it")]
    pub(crate) fn changing(self, next: fn(&mut Bytes)) -> Self {
        Self { next, ..self }
    }
}

impl Io for Bursts {}

impl AsyncRead for Bursts {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() && std::mem::take(&mut self.waits) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.rest.is_empty() && self.left > 0 {
            self.left -= 1;
            self.waits = true;
            self.rest = self.burst.clone();
            let next = self.next;
            next(&mut self.burst);
        }
        let length = buf.remaining().min(self.rest.len());
        buf.put_slice(&self.rest.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bursts {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
