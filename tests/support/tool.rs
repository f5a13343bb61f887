//! Programs of others: started with a configuration of the test's own, and ended with it.

use std::{
    env, fs,
    io::{self, Read},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::support::process::PATIENCE;

/// A program that listens; killed on drop.
#[derive(Debug)]
pub struct Tool {
    child: Child,
    /// Where clients connect.
    pub addr: SocketAddr,
}

impl Tool {
    /// Starts what `command` makes for a free port, and waits until it listens there.
    pub fn listening(mut command: impl FnMut(SocketAddr) -> Command) -> Self {
        // Another process may have taken the port in between.
        for _ in 0..10 {
            let addr = free_addr();
            let mut command = command(addr);
            let mut child = spawn(command.stderr(Stdio::piped()));
            let mut waited = Duration::ZERO;
            while waited < PATIENCE {
                if TcpStream::connect(addr).is_ok() {
                    return Self { child, addr };
                }
                if child.try_wait().unwrap().is_some() {
                    break;
                }
                thread::sleep(STEP);
                waited += STEP;
            }
            let _ended = child.kill();
            let mut said = String::new();
            let mut stderr = child.stderr.take().unwrap();
            stderr
                .read_to_string(&mut said)
                .unwrap();
            let status = child.wait().unwrap();
            assert!(
                said.contains("ddress already in use"),
                "{command:?} ended with {status} before it listened: {said}"
            );
        }
        panic!("no port stays free")
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Runs a program to its end, with something to read: what it prints.
pub fn output(command: &mut Command) -> String {
    let child = spawn(
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?} ended with {}: {errors}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap()
}

fn spawn(command: &mut Command) -> Child {
    let spawned = command.stdin(Stdio::null()).spawn();
    match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let program = command.get_program().to_string_lossy();
            panic!("`{program}` is not installed, and this test speaks with a real one")
        }
        Err(error) => panic!("{command:?}: {error}"),
    }
}

fn free_addr() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// A folder of the test's own, gone with it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Relaxed);
        let name = format!("tower-net-tool-{}-{next}", process::id());
        let path = env::temp_dir().join(name);
        // Of an earlier process of the same number.
        let _gone = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file with this in it.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.path);
    }
}

/// Between two looks at whether a program listens.
const STEP: Duration = Duration::from_millis(10);
