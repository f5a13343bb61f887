//! Unix listeners, and what they leave in the file system.

use std::{
    env, fs,
    io::ErrorKind,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        net as std_net,
    },
    path::PathBuf,
    process,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};
use tokio_util::net::Listener;
use tower_net::{
    Addr, Server,
    listen::{Any, Unix},
};

use crate::{
    listen::accept,
    peer::{frame, soon},
    stack::Settings,
};

#[tokio::test]
async fn a_unix_socket_never_shows_itself_with_another_mode_or_refuses() {
    let folder = Folder::new("mode");
    let path = folder.join("socket");
    let (seen, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let watcher = {
        let (path, seen, stop) = (path.clone(), Arc::clone(&seen), Arc::clone(&stop));
        thread::spawn(move || {
            while !stop.load(Relaxed) {
                if let Ok(there) = fs::symlink_metadata(&path) {
                    assert_eq!(there.permissions().mode() & 0o777, 0o620);
                    seen.fetch_add(1, Relaxed);
                }
            }
        })
    };

    while seen.load(Relaxed) < 200 && !watcher.is_finished() {
        let listener = Unix::options()
            .mode(0o620)
            .bind(&path)
            .unwrap();
        drop(std_net::UnixStream::connect(&path).unwrap());
        drop(listener);
    }

    stop.store(true, Relaxed);
    watcher.join().unwrap();
    let default = Unix::bind(&path).unwrap();
    let there = fs::symlink_metadata(&path).unwrap();
    assert_eq!(there.permissions().mode() & 0o777, 0o600);
    drop(default);
    assert_eq!(folder.content(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_stale_unix_socket_is_replaced() {
    let folder = Folder::new("stale");
    let path = folder.join("socket");
    drop(std_net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left behind by a process that was killed");

    let mut listener = Unix::bind(&path).unwrap();

    let _client = UnixStream::connect(&path)
        .await
        .unwrap();
    soon(accept(&mut listener))
        .await
        .unwrap();
    assert_eq!(folder.content(), std::slice::from_ref(&path));
}

#[tokio::test]
async fn a_live_unix_socket_is_left_to_its_owner() {
    let folder = Folder::new("live");
    let path = folder.join("socket");
    let owner = std_net::UnixListener::bind(&path).unwrap();

    let refused = Unix::bind(&path).unwrap_err();

    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
    assert_eq!(folder.content(), std::slice::from_ref(&path));
    let _client = std_net::UnixStream::connect(&path).unwrap();
    owner.accept().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_unix_socket_whose_owner_accepts_nothing_is_found_out_at_once() {
    let folder = Folder::new("stuck");
    let path = folder.join("socket");
    let address = SockAddr::unix(&path).unwrap();
    let owner = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    owner.bind(&address).unwrap();
    owner.listen(0).unwrap();
    let mut queued = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
        match client.connect(&address) {
            Ok(()) => queued.push(client),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                break;
            }
        }
    }

    // In a thread of its own, since what is tested for is that it never comes back.
    let (done, outcome) = tokio::sync::oneshot::channel();
    thread::spawn(move || done.send(Unix::bind(&path).map(drop)));

    let refused = soon(outcome)
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
}

#[tokio::test]
async fn what_is_no_socket_is_never_replaced() {
    let folder = Folder::new("file");
    let (file, link) = (folder.join("file"), folder.join("link"));
    fs::write(&file, "precious").unwrap();
    symlink(folder.join("nowhere"), &link).unwrap();

    for path in [&file, &link] {
        let refused = Unix::bind(path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AddrInUse);
    }

    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert_eq!(folder.content(), [file, link]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_bind_one_path_at_once_one_is_heard_and_the_others_know() {
    let folder = Folder::new("race");
    for round in 0..50 {
        let path = folder.join(&format!("socket-{round}"));
        let start = Arc::new(Barrier::new(4));
        let runtime = tokio::runtime::Handle::current();
        let binding: Vec<_> = (0..4)
            .map(|_| {
                let (path, start, runtime) = (path.clone(), Arc::clone(&start), runtime.clone());
                thread::spawn(move || {
                    let _runtime = runtime.enter();
                    start.wait();
                    Unix::bind(path)
                })
            })
            .collect();
        let bound: Vec<_> = binding
            .into_iter()
            .filter_map(|one| one.join().unwrap().ok())
            .collect();

        assert_eq!(bound.len(), 1, "in round {round}");
        let mut listener = bound.into_iter().next().unwrap();
        let _client = soon(UnixStream::connect(&path))
            .await
            .unwrap();
        soon(accept(&mut listener))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn the_file_of_a_unix_socket_goes_with_its_listener_and_never_anybody_elses() {
    let folder = Folder::new("unlink");
    let path = folder.join("socket");
    let ours = Unix::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let theirs = std_net::UnixListener::bind(&path).unwrap();
    let inode = fs::symlink_metadata(&path)
        .unwrap()
        .ino();

    drop(ours);

    assert_eq!(
        fs::symlink_metadata(&path)
            .unwrap()
            .ino(),
        inode
    );
    let _client = std_net::UnixStream::connect(&path).unwrap();
    theirs.accept().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_server_serves_and_its_file_is_gone_after_the_drain() {
    let folder = Folder::new("serve");
    let path = folder.join("socket");
    let stack = Settings::default().stack();
    let serve = Server::new(Unix::bind(&path).unwrap()).serve(stack.service);
    let handle = serve.handle();
    let serving = tokio::spawn(serve.into_future());

    let mut client = soon(UnixStream::connect(&path))
        .await
        .unwrap();
    client
        .write_all(&frame("hello"))
        .await
        .unwrap();
    let mut reply = [0; 9];
    soon(client.read_exact(&mut reply))
        .await
        .unwrap();
    handle.shutdown();
    let report = soon(serving).await.unwrap().unwrap();

    assert_eq!(reply.as_slice(), frame("hello"));
    assert_eq!(report.opened(), 1);
    assert_eq!(folder.content(), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn any_is_what_its_address_says() {
    let folder = Folder::new("any");
    let path = folder.join("socket");
    let mut unix = Any::bind(&format!("unix:{}", path.display()))
        .await
        .unwrap();
    let mut tcp = Any::bind("127.0.0.1:0").await.unwrap();

    assert_eq!(
        unix.local_addr().unwrap(),
        Addr::Unix(Some(Arc::from(path.as_path())))
    );
    let Addr::Tcp(addr) = tcp.local_addr().unwrap() else {
        panic!("no TCP address");
    };
    let mut unix_client = UnixStream::connect(&path)
        .await
        .unwrap();
    let mut tcp_client = TcpStream::connect(addr).await.unwrap();
    let (mut over_unix, _) = soon(accept(&mut unix)).await.unwrap();
    let (mut over_tcp, peer) = soon(accept(&mut tcp)).await.unwrap();
    assert_eq!(peer, Addr::Tcp(tcp_client.local_addr().unwrap()));

    over_unix
        .write_all(b"unix")
        .await
        .unwrap();
    over_tcp
        .write_all(b"tcp!")
        .await
        .unwrap();
    drop((over_unix, over_tcp));
    let (mut from_unix, mut from_tcp) = (String::new(), String::new());
    soon(unix_client.read_to_string(&mut from_unix))
        .await
        .unwrap();
    soon(tcp_client.read_to_string(&mut from_tcp))
        .await
        .unwrap();
    assert_eq!((&*from_unix, &*from_tcp), ("unix", "tcp!"));
    assert!(
        Any::bind("neither one nor the other")
            .await
            .is_err()
    );
}

/// A folder of one test, removed after it.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("tower-net-{}-{name}", process::id()));
        fs::create_dir(&path).unwrap();
        Self { path }
    }

    fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn content(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.path).unwrap();
        let mut content: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .collect();
        content.sort();
        content
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Whatever is left says why by itself.
        let _removed = fs::remove_dir_all(&self.path);
    }
}
