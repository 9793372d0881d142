//! Bytes between a protocol and its connection: gather and scatter lists, the connection itself, and the descriptors that wake a
//! sleeper. The one module of the crate that needs `unsafe`.

#![allow(unsafe_code)] // readv, writev and poll take raw pointers, some of them into guest memory

use memory::{IoBuffers, Iovec};
use parking_lot::Mutex;
use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Pieces that one readv or writev moves at most.
pub const MAX_PIECES: usize = 256;

/// Storage for the pieces of one call, kept so that a tick allocates nothing. Empty between calls.
#[derive(Debug)]
pub struct Pieces(Vec<Iovec>);

// SAFETY: pieces are only read through `Gather` and `Scatter`, which borrow the memory they point to; between calls the list
// holds no pointer that is ever used.
unsafe impl Send for Pieces {}

impl Pieces {
    /// An empty list with room for [`MAX_PIECES`].
    pub fn new() -> Pieces {
        Pieces(Vec::with_capacity(MAX_PIECES))
    }
}

impl Default for Pieces {
    fn default() -> Pieces {
        Pieces::new()
    }
}

/// Appends `len` bytes of `buffers` from `offset`, as far as the list has room. Returns the bytes appended.
#[inline]
fn append(pieces: &mut Vec<Iovec>, buffers: &IoBuffers, offset: u64, len: usize) -> usize {
    let (mut skip, mut done) = (offset as usize, 0);
    for piece in buffers.iovecs() {
        if done == len || pieces.len() == MAX_PIECES {
            break;
        }
        if skip >= piece.iov_len {
            skip -= piece.iov_len;
            continue;
        }
        let run = (piece.iov_len - skip).min(len - done);
        pieces.push(Iovec { iov_base: piece.iov_base.wrapping_byte_add(skip), iov_len: run });
        skip = 0;
        done += run;
    }
    done
}

fn total(pieces: &[Iovec]) -> usize {
    pieces.iter().map(|piece| piece.iov_len).sum()
}

/// Memory to send from, in order. Everything it lists stays borrowed as long as it lives.
#[derive(Debug)]
pub struct Gather<'a> {
    pieces: &'a mut Vec<Iovec>,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    /// An empty list in `storage`.
    #[inline]
    pub fn new(storage: &'a mut Pieces) -> Gather<'a> {
        storage.0.clear();
        Gather { pieces: &mut storage.0, memory: PhantomData }
    }

    /// Whether no further piece fits.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.pieces.len() >= MAX_PIECES
    }

    /// Adds `bytes`. Returns how many were taken: all or none.
    #[inline]
    pub fn push(&mut self, bytes: &'a [u8]) -> usize {
        if self.is_full() {
            return 0;
        }
        self.pieces.push(Iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
        bytes.len()
    }

    /// Adds `len` bytes of `buffers` from `offset`. Returns how many were taken.
    #[inline]
    pub fn push_buffers(&mut self, buffers: &'a IoBuffers, offset: u64, len: usize) -> usize {
        append(self.pieces, buffers, offset, len)
    }

    /// Bytes listed.
    pub fn len(&self) -> usize {
        total(self.pieces)
    }

    /// Whether nothing is listed.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Copies the listed bytes to the end of `bytes`, up to `limit`. For connections that are not sockets.
    pub fn copy_to(&self, bytes: &mut Vec<u8>, limit: usize) -> usize {
        let start = bytes.len();
        for piece in self.pieces.iter() {
            let run = piece.iov_len.min(limit - (bytes.len() - start));
            // SAFETY: the piece lies in memory borrowed for 'a or in buffers borrowed for 'a, which keep theirs mapped; a guest
            // that changes its memory meanwhile changes only what is sent.
            bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(piece.iov_base.cast(), run) });
        }
        bytes.len() - start
    }
}

/// Memory to receive into, in order. Everything it lists stays borrowed as long as it lives.
#[derive(Debug)]
pub struct Scatter<'a> {
    pieces: &'a mut Vec<Iovec>,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Scatter<'a> {
    /// An empty list in `storage`.
    #[inline]
    pub fn new(storage: &'a mut Pieces) -> Scatter<'a> {
        storage.0.clear();
        Scatter { pieces: &mut storage.0, memory: PhantomData }
    }

    /// Adds `bytes`, if a piece fits.
    #[inline]
    pub fn push(&mut self, bytes: &'a mut [u8]) {
        if self.pieces.len() < MAX_PIECES {
            self.pieces.push(Iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() });
        }
    }

    /// Adds `len` bytes of `buffers` from `offset`, leaving room for one more piece. Returns how many were taken.
    #[inline]
    pub fn push_buffers(&mut self, buffers: &'a IoBuffers, offset: u64, len: usize) -> usize {
        let taken = append(self.pieces, buffers, offset, len);
        if self.pieces.len() == MAX_PIECES {
            let last = self.pieces.pop().map_or(0, |piece| piece.iov_len);
            return taken - last;
        }
        taken
    }

    /// Bytes that fit.
    pub fn len(&self) -> usize {
        total(self.pieces)
    }

    /// Whether nothing fits.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Fills the list from `bytes`; returns how many fitted. For connections that are not sockets.
    pub fn copy_from(&mut self, mut bytes: &[u8]) -> usize {
        let available = bytes.len();
        for piece in self.pieces.iter() {
            let run = piece.iov_len.min(bytes.len());
            // SAFETY: as for `Gather::copy_to`, and the memory is borrowed mutably or belongs to a request under way.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), piece.iov_base.cast(), run) };
            bytes = &bytes[run..];
        }
        available - bytes.len()
    }
}

/// One connection to a target: a TCP socket, or a simulated one under virtual time. Shared between the owner of its queue pair
/// and the supervisor, which may cut it at any time.
pub trait ByteStream: Send + Sync + Debug {
    /// Sends; `WouldBlock` when nothing can be sent now (also while the connection is being made).
    fn send(&self, bytes: &Gather<'_>) -> io::Result<usize>;
    /// Receives; 0 at the end of the stream, `WouldBlock` when nothing is there.
    fn receive(&self, bytes: &mut Scatter<'_>) -> io::Result<usize>;
    /// Cuts the connection with a reset: bytes not yet on the network are dropped, not delivered late.
    fn reset(&self);
    /// The descriptor to sleep on.
    fn fd(&self) -> Option<RawFd> {
        None
    }
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A nonblocking TCP connection.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// Starts a connection to `target`, from `source` where given, without waiting for it.
    pub fn connect(target: SocketAddr, source: Option<SocketAddr>) -> io::Result<Socket> {
        let family = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: no pointer is passed; the descriptor returned is ours alone.
        let fd = unsafe {
            let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            OwnedFd::from_raw_fd(checked(libc::socket(family, kind, 0))?)
        };
        let socket = Socket(fd);
        socket.set_nodelay()?;
        if let Some(source) = source {
            let (address, len) = raw_address(source);
            // SAFETY: `address` is a whole sockaddr of `len` bytes.
            checked(unsafe { libc::bind(socket.0.as_raw_fd(), (&raw const address).cast(), len) })?;
        }
        let (address, len) = raw_address(target);
        // SAFETY: `address` is a whole sockaddr of `len` bytes.
        match checked(unsafe { libc::connect(socket.0.as_raw_fd(), (&raw const address).cast(), len) }) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(socket),
        }
    }

    /// Takes over an accepted connection.
    pub fn accepted(stream: std::net::TcpStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        let socket = Socket(stream.into());
        socket.set_nodelay()?;
        Ok(socket)
    }

    fn set_nodelay(&self) -> io::Result<()> {
        let on: libc::c_int = 1;
        let len = size_of_val(&on) as libc::socklen_t;
        // SAFETY: the option's value is an int that lives through the call.
        checked(unsafe {
            libc::setsockopt(self.0.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const on).cast(), len)
        })?;
        Ok(())
    }
}

fn raw_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeros is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage is large and aligned enough for every sockaddr.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: `cast` and `write`: a sockaddr_storage is large and aligned enough for every sockaddr, and `storage` is ours.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}

impl ByteStream for Socket {
    fn send(&self, bytes: &Gather<'_>) -> io::Result<usize> {
        // SAFETY: all zeros is a valid msghdr: no name, no control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = bytes.pieces.as_ptr().cast_mut();
        message.msg_iovlen = bytes.pieces.len() as _;
        // SAFETY: the pieces are borrowed for the life of `bytes`; MSG_NOSIGNAL keeps a dead peer from raising SIGPIPE.
        let sent = unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }

    fn receive(&self, bytes: &mut Scatter<'_>) -> io::Result<usize> {
        let fd = self.0.as_raw_fd();
        // SAFETY: the pieces are borrowed mutably for the life of `bytes`, or belong to requests under way.
        let received = unsafe {
            match bytes.pieces.as_slice() {
                // The usual case, and the way into the kernel is shorter.
                [one] => libc::recv(fd, one.iov_base, one.iov_len, 0),
                pieces => libc::readv(fd, pieces.as_ptr(), pieces.len() as libc::c_int),
            }
        };
        if received < 0 { Err(io::Error::last_os_error()) } else { Ok(received as usize) }
    }

    fn reset(&self) {
        // SAFETY: all zeros is a valid sockaddr; family AF_UNSPEC makes connect(2) dissolve the connection: Linux drops the
        // send queue and answers the peer with RST.
        unsafe {
            let mut address: libc::sockaddr = std::mem::zeroed();
            address.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
            libc::connect(self.0.as_raw_fd(), &raw const address, size_of::<libc::sockaddr>() as libc::socklen_t);
        }
    }

    fn fd(&self) -> Option<RawFd> {
        Some(self.0.as_raw_fd())
    }
}

/// A connection in memory, for tests: what arrives is pushed, what was sent is taken.
#[derive(Debug, Default)]
pub struct MemoryStream {
    sent: Mutex<Vec<u8>>,
    arrived: Mutex<Vec<u8>>,
}

impl MemoryStream {
    /// Lets `bytes` arrive.
    pub fn push(&self, bytes: &[u8]) {
        self.arrived.lock().extend_from_slice(bytes);
    }

    /// Takes the bytes that were sent since the last call.
    pub fn take_sent(&self) -> Vec<u8> {
        std::mem::take(&mut self.sent.lock())
    }
}

impl ByteStream for MemoryStream {
    fn send(&self, bytes: &Gather<'_>) -> io::Result<usize> {
        Ok(bytes.copy_to(&mut self.sent.lock(), usize::MAX))
    }

    fn receive(&self, bytes: &mut Scatter<'_>) -> io::Result<usize> {
        let mut arrived = self.arrived.lock();
        let count = bytes.copy_from(&arrived);
        arrived.drain(..count);
        if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    fn reset(&self) {}
}

/// A counter that wakes the sleeper on its descriptor.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A counter at zero.
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: no pointer is passed; the descriptor returned is ours alone.
        Ok(EventFd(unsafe { OwnedFd::from_raw_fd(checked(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))?) }))
    }

    /// Wakes.
    pub fn signal(&self) {
        let one = 1u64;
        // SAFETY: eight bytes are read from `one`. A full counter is a wake-up already.
        unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Goes back to sleep.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes are written to `count`.
        unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A set of descriptors behind one, which is readable when one of them is.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// An empty set.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: no pointer is passed; the descriptor returned is ours alone.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(checked(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) }))
    }

    /// Adds `fd`: wakes when it is readable. It leaves the set when it is closed.
    pub fn add(&self, fd: RawFd) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: `event` lives through the call.
        checked(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) })?;
        Ok(())
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A descriptor to sleep on, and whether room to send wakes as well.
#[derive(Clone, Copy, Debug)]
pub struct Interest {
    /// The descriptor.
    pub fd: RawFd,
    /// Wake when there is room to send.
    pub writable: bool,
}

/// Sleeps until one of `interests` wakes or `timeout` passes.
pub fn sleep_on(interests: &[Interest], timeout: Duration) {
    let mut set: Vec<libc::pollfd> = interests
        .iter()
        .map(|i| libc::pollfd {
            fd: i.fd,
            events: libc::POLLIN | if i.writable { libc::POLLOUT } else { 0 },
            revents: 0,
        })
        .collect();
    // Rounded up: a deadline that is a fraction of a millisecond away must not become a busy loop.
    let millis = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128) as libc::c_int;
    // SAFETY: `set` is an array of `set.len()` entries that lives through the call. Errors (EINTR) mean waking early.
    unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, millis) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::Memory;
    use std::net::TcpListener;
    use std::sync::Arc;

    #[test]
    fn pieces_follow_an_offset_through_the_list() {
        let memory = Arc::new(Memory::allocate(4096, None).unwrap());
        let mut buffers = IoBuffers::new(memory.clone(), 2);
        memory.append_buffers(0, 10, &mut buffers);
        memory.append_buffers(100, 10, &mut buffers);
        buffers.write(0, b"0123456789abcdefghij").unwrap();
        let (mut storage, mut bytes) = (Pieces::new(), Vec::new());
        let mut gather = Gather::new(&mut storage);
        assert_eq!(gather.push_buffers(&buffers, 7, 8), 8);
        assert_eq!(gather.push(b"!"), 1);
        assert_eq!((gather.copy_to(&mut bytes, 100), bytes.as_slice()), (9, b"789abcde!".as_slice()));
    }

    #[test]
    fn a_scatter_list_keeps_room_for_the_next_header() {
        let memory = Arc::new(Memory::allocate(1 << 16, None).unwrap());
        let mut buffers = IoBuffers::new(memory.clone(), 400);
        (0..400).for_each(|i| memory.append_buffers(i * 16, 8, &mut buffers));
        let (mut storage, mut tail) = (Pieces::new(), [0u8; 4]);
        let mut scatter = Scatter::new(&mut storage);
        assert_eq!(scatter.push_buffers(&buffers, 0, 3200), 8 * (MAX_PIECES - 1));
        scatter.push(&mut tail);
        assert_eq!(scatter.len(), 8 * (MAX_PIECES - 1) + 4);
    }

    #[test]
    fn reset_drops_what_was_not_sent_and_the_peer_sees_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = Socket::connect(listener.local_addr().unwrap(), None).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let mut storage = Pieces::new();
        let mut gather = Gather::new(&mut storage);
        gather.push(b"hello");
        assert_eq!(socket.send(&gather).unwrap(), 5);
        socket.reset();
        assert!(socket.send(&gather).is_err());
        let mut bytes = Vec::new();
        let error = io::Read::read_to_end(&mut peer, &mut bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
