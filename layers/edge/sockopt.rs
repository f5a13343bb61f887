//! Socket options that no safe crate offers: TCP_FASTOPEN, TCP_DEFER_ACCEPT, IP_BIND_ADDRESS_NO_PORT.
#![expect(
    unsafe_code,
    reason = "setsockopt is the only way to these options, and takes a pointer"
)]

use std::{
    ffi::c_int,
    io, mem,
    os::fd::{AsFd, AsRawFd},
};

/// Lets a client send data with its SYN; `queue` bounds how many of those wait for their handshake.
pub(super) fn set_fast_open(socket: &impl AsFd, queue: u32) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, queue)
}

/// Holds a connection back until its first byte is here, for about so many seconds.
pub(super) fn set_defer_accept(socket: &impl AsFd, seconds: u32) -> io::Result<()> {
    set(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, seconds)
}

/// Leaves the choice of the port to the connect, which knows the other end: so that one local address has its
/// ephemeral ports for each of them, and not once for all. For IPv6 as well.
pub(super) fn set_bind_address_no_port(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

fn set(socket: &impl AsFd, level: c_int, option: c_int, value: u32) -> io::Result<()> {
    let value = c_int::try_from(value).unwrap_or(c_int::MAX);
    // SAFETY: `socket` is borrowed and so open for the whole call; the pointer is to a live `c_int` on our
    // stack, and the length is its size. The kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            mem::size_of::<c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
