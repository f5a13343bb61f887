//! Two socket options that no safe crate offers: TCP_FASTOPEN and TCP_DEFER_ACCEPT.
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
    set_tcp(socket, libc::TCP_FASTOPEN, queue)
}

/// Holds a connection back until its first byte is here, for about so many seconds.
pub(super) fn set_defer_accept(socket: &impl AsFd, seconds: u32) -> io::Result<()> {
    set_tcp(socket, libc::TCP_DEFER_ACCEPT, seconds)
}

fn set_tcp(socket: &impl AsFd, option: c_int, value: u32) -> io::Result<()> {
    let value = c_int::try_from(value).unwrap_or(c_int::MAX);
    // SAFETY: `socket` is borrowed and so open for the whole call; the pointer is to a live `c_int` on our
    // stack, and the length is its size. The kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
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
