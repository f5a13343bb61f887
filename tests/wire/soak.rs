//! Many connections, one after another.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use socket2::SockRef;

use crate::{
    child::Child,
    peer::{alone, frame},
    stack::Settings,
};

/// Of the server that must not grow.
pub(crate) fn settings() -> Settings {
    Settings::default()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_thousand_short_connections_leave_memory_and_descriptors_as_they_were() {
    let _machine = alone().await;
    let mut server = Child::serve("soak");
    let descriptors = server.number("descriptors");

    connect(server.addr, 20_000);
    while server.number("active") > 0 {}
    let early = server.number("memory");
    connect(server.addr, 180_000);
    while server.number("active") > 0 {}
    let late = server.number("memory");

    // Ten bytes kept for each would show.
    assert!(late < early + 1800, "from {early} to {late} KiB");
    assert_eq!(server.number("descriptors"), descriptors);
    let report = server.drained();
    assert_eq!(report["opened"], 200_000);
    assert!(report["closed.reset"] >= 20_000, "{report:?}");
    assert_eq!(report["idle"] + report["finished"] + report["cut"], 0);
}

fn connect(addr: SocketAddr, times: usize) {
    let clients = (0..CLIENTS).map(|client| {
        thread::spawn(move || {
            for turn in (client..times).step_by(CLIENTS) {
                exchange(addr, turn);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    for client in clients {
        client.join().unwrap();
    }
}

/// One connection. Nearly all end with a reset, which leaves no port behind in TIME_WAIT.
fn exchange(addr: SocketAddr, turn: usize) {
    let mut stream = TcpStream::connect(addr).unwrap();
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    let request = frame("hello");
    if turn % 10 == 0 {
        stream.write_all(&request[..6]).unwrap();
        return;
    }
    stream.write_all(&request).unwrap();
    let mut reply = [0; 9];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply.as_slice(), request);
    if turn % 20 == 1 {
        stream
            .shutdown(Shutdown::Write)
            .unwrap();
        assert_eq!(stream.read(&mut reply).unwrap(), 0);
    }
}

const CLIENTS: usize = 8;
