//! Frames over a stream socket, with their descriptors.

use crate::error::SessionError;
use crate::message::{Frame, Header, MAX_FDS, Outgoing};
use crate::status::Peer;
use crate::wait::{Stopped, Waiter};
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A connected front-end. Never blocks but in [`Connection::send`], which a stop ends.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// The frame that is being received: header and payload so far.
    bytes: Vec<u8>,
    header: Option<Header>,
    /// Its descriptors so far. They come with any of its bytes.
    fds: Vec<OwnedFd>,
}

/// What came out of a look at the socket.
#[derive(Debug)]
pub(crate) enum Received {
    Frame(Frame),
    /// Not a whole frame yet.
    Nothing,
    /// The front-end closed the connection between two frames.
    Closed,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Connection {
        Connection { socket, bytes: Vec::new(), header: None, fds: Vec::new() }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn peer(&self) -> Option<Peer> {
        let cred = socket_peercred(&self.socket).ok()?;
        Some(Peer { pid: cred.pid.as_raw_pid(), uid: cred.uid.as_raw(), gid: cred.gid.as_raw() })
    }

    /// Takes what is there. Never reads behind the frame, so descriptors always belong to the frame that they come with.
    pub(crate) fn receive(&mut self) -> Result<Received, SessionError> {
        loop {
            let want = match self.header {
                None => Header::LEN,
                Some(header) => Header::LEN + header.size as usize,
            };
            if self.bytes.len() < want {
                match self.fill(want)? {
                    Fill::Some => continue,
                    Fill::WouldBlock => return Ok(Received::Nothing),
                    Fill::End if self.bytes.is_empty() => return Ok(Received::Closed),
                    Fill::End => return Err(SessionError::Truncated),
                }
            }
            if let Some(header) = self.header.take() {
                let payload = self.bytes.split_off(Header::LEN);
                self.bytes.clear();
                return Ok(Received::Frame(Frame { header, payload, fds: std::mem::take(&mut self.fds) }));
            }
            let bytes = self.bytes.first_chunk().expect("a header's bytes");
            self.header = Some(Header::parse(bytes).map_err(SessionError::Framing)?);
        }
    }

    /// Reads until `want` bytes are there, at most.
    fn fill(&mut self, want: usize) -> Result<Fill, SessionError> {
        let have = self.bytes.len();
        self.bytes.resize(want, 0);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(&mut self.bytes[have..])];
        let result = recvmsg(&self.socket, &mut bytes, &mut control, RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC);
        self.bytes.truncate(have + result.as_ref().map_or(0, |message| message.bytes));
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        match result {
            // The kernel closed what did not fit; what did is closed with the connection.
            Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => Err(SessionError::TooManyDescriptors),
            Ok(_) if self.fds.len() > MAX_FDS => Err(SessionError::TooManyDescriptors),
            Ok(message) if message.bytes == 0 => Ok(Fill::End),
            Ok(_) => Ok(Fill::Some),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Fill::WouldBlock),
            // The front-end died with bytes unread.
            Err(Errno::CONNRESET) => Ok(Fill::End),
            Err(error) => Err(SessionError::Os { what: "recvmsg", source: error.into() }),
        }
    }

    /// Sends the whole message, waiting for a front-end that does not read until it does, leaves, or the session is stopped.
    pub(crate) fn send(&self, message: Outgoing, waiter: &Waiter) -> Result<Result<(), SessionError>, Stopped> {
        let Outgoing { bytes, fd } = message;
        let (mut rest, mut fd) = (bytes.as_slice(), fd.as_ref());
        while !rest.is_empty() {
            match send_some(self.fd(), rest, fd) {
                Ok(sent) => (rest, fd) = (&rest[sent..], None),
                Err(Errno::AGAIN) => waiter.writable(&self.socket)?,
                Err(Errno::INTR) => {}
                Err(error) => return Ok(Err(SessionError::Os { what: "sendmsg", source: error.into() })),
            }
        }
        Ok(Ok(()))
    }
}

enum Fill {
    Some,
    WouldBlock,
    End,
}

/// Sends what fits without blocking. The descriptor goes with the first byte.
pub(crate) fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<&OwnedFd>) -> Result<usize, Errno> {
    let fds: Vec<BorrowedFd<'_>> = fd.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}
