//! What the kernel says: memory, and sockets that no process owns any more.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Memory of this process that is its own and in use, in KiB.
pub(crate) fn own_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.unwrap().trim().strip_suffix("kB");
    kib.unwrap().trim().parse().unwrap()
}

/// How many descriptors this process may have.
pub(crate) fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile)
        .current
        .unwrap()
}

/// Lets this process have at most `limit` descriptors.
pub(crate) fn limit_descriptors(limit: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(limit),
        maximum,
    };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Lets this process have `more` descriptors than it has now. The kernel counts by the highest number.
pub(crate) fn leave_room_for(more: usize) {
    let last = (0..more).map(|_| File::open("/dev/null").unwrap());
    let last = last.collect::<Vec<_>>();
    let highest = last
        .iter()
        .map(AsRawFd::as_raw_fd)
        .max();
    limit_descriptors(highest.unwrap() as u64 + 1);
}

/// A TCP socket, which may have outlived the descriptor that it had.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) state: State,
    /// Bytes that the other end has not acknowledged.
    pub(crate) unsent: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    Established,
    TimeWait,
    Listening,
    Other(u8),
}

/// The IPv4 sockets at `port` of this machine, those of clients not included.
pub(crate) fn sockets_at(port: u16) -> Vec<Tcp> {
    let rows = rows().into_iter();
    rows.filter(|(local, ..)| *local == port)
        .map(|(.., socket)| socket)
        .collect()
}

/// Whether the end at `local` of a connection with `remote` is in TIME_WAIT. A port alone says nothing of a client: it
/// has the same one for connections to many.
pub(crate) fn waits(local: u16, remote: u16) -> bool {
    rows()
        .iter()
        .any(|row| (row.0, row.1) == (local, remote) && row.2.state == State::TimeWait)
}

/// The IPv4 sockets of this machine: their own port, that of the other end, and the rest.
fn rows() -> Vec<(u16, u16, Tcp)> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let port = |addr: &str| {
            let (_, port) = addr.split_once(':').unwrap();
            u16::from_str_radix(port, 16).unwrap()
        };
        let (unsent, _) = fields[4].split_once(':').unwrap();
        let state = match u8::from_str_radix(fields[3], 16).unwrap() {
            1 => State::Established,
            6 => State::TimeWait,
            10 => State::Listening,
            other => State::Other(other),
        };
        let unsent = u64::from_str_radix(unsent, 16).unwrap();
        (port(fields[1]), port(fields[2]), Tcp { state, unsent })
    });
    rows.collect()
}
