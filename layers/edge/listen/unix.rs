use std::{
    fs::{self, Permissions},
    io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net as std_net,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::net::Listener;

use crate::conn::Addr;

/// A Unix listener.
///
/// Its file has its mode before anybody can reach it, replaces one that nobody listens on any more, and is
/// removed on drop, unless somebody else has put another in its place by then.
#[derive(Debug)]
pub struct Unix {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a socket, and which one it is.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Unix {
    /// Listens at `path` with default options.
    ///
    /// # Errors
    ///
    /// As [`UnixOptions::bind`].
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::options().bind(path)
    }

    /// Options to set before listening.
    #[must_use]
    pub fn options() -> UnixOptions {
        UnixOptions::default()
    }

    /// The path listened at.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

impl Listener for Unix {
    type Io = UnixStream;
    type Addr = Addr;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(UnixStream, Addr)>> {
        let accepted = self.listener.poll_accept(cx);
        accepted.map_ok(|(stream, addr)| (stream, addr.into()))
    }

    fn local_addr(&self) -> io::Result<Addr> {
        Ok(Addr::Unix(Some(Arc::from(self.path()))))
    }
}

/// Options of a [`Unix`] listener.
#[derive(Debug, Clone)]
pub struct UnixOptions {
    backlog: u32,
    mode: u32,
}

impl Default for UnixOptions {
    fn default() -> Self {
        Self {
            backlog: BACKLOG,
            mode: MODE,
        }
    }
}

impl UnixOptions {
    /// So many connections wait in the kernel to be accepted; `net.core.somaxconn` caps it. Default: 4096.
    #[must_use]
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Who may connect: the file's permission bits, whatever the umask. Default: `0o600`, the owner alone.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Listens at `path`.
    ///
    /// The socket is made under another name beside it and moved into place once it has its mode and
    /// listens: there is no moment at which it can be reached with other permissions, or refuses.
    ///
    /// # Errors
    ///
    /// [`AddrInUse`](io::ErrorKind::AddrInUse) if somebody listens there, or if there is a file that is no
    /// socket; else what the kernel answered. Needs the right to write in the folder.
    pub fn bind(&self, path: impl AsRef<Path>) -> io::Result<Unix> {
        let path = path.as_ref();
        let stale = is_stale(path)?;
        let staging = staging_path(path);
        let bound = self
            .listen(&staging)
            .and_then(|listener| {
                let made = fs::symlink_metadata(&staging)?;
                if stale {
                    fs::rename(&staging, path)?;
                } else {
                    // A link never replaces: whoever was here first in the meantime stays.
                    fs::hard_link(&staging, path).map_err(|error| in_use_if_there(error, path))?;
                }
                Ok(Unix {
                    listener,
                    file: SocketFile {
                        path: path.to_owned(),
                        device: made.dev(),
                        inode: made.ino(),
                    },
                })
            });
        // Moved, linked or of no use. Nothing more can be done about a file that cannot be removed.
        let _left = fs::remove_file(&staging);
        bound
    }

    fn listen(&self, path: &Path) -> io::Result<UnixListener> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(self.mode))?;
        socket.listen(i32::try_from(self.backlog).unwrap_or(i32::MAX))?;
        UnixListener::from_std(std_net::UnixListener::from(std::os::fd::OwnedFd::from(
            socket,
        )))
    }
}

/// Whether the path holds a socket that nobody listens on; `false` if it is free.
fn is_stale(path: &Path) -> io::Result<bool> {
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        there => there?,
    };
    if !there.file_type().is_socket() {
        return Err(in_use("there is a file that is no socket at", path));
    }
    // Without waiting: a listener whose queue is full is alive, and must not hold us up.
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        _ => Err(in_use("somebody listens at", path)),
    }
}

fn in_use(problem: &str, path: &Path) -> io::Error {
    let problem = format!("{problem} {}", path.display());
    io::Error::new(io::ErrorKind::AddrInUse, problem)
}

fn in_use_if_there(error: io::Error, path: &Path) -> io::Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => in_use("somebody listens at", path),
        _ => error,
    }
}

/// A name beside `path` that is used once.
fn staging_path(path: &Path) -> PathBuf {
    static USED: AtomicU32 = AtomicU32::new(0);
    let (process, number) = (std::process::id(), USED.fetch_add(1, Relaxed));
    let mut name = path
        .file_name()
        .unwrap_or_default()
        .to_owned();
    name.push(format!(".{process}.{number}"));
    path.with_file_name(name)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (self.device, self.inode));
        if !ours {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "socket file left behind");
        }
    }
}

/// As for TCP.
const BACKLOG: u32 = 4096;

/// Whoever wants more than the owner to connect has to say so.
const MODE: u32 = 0o600;
