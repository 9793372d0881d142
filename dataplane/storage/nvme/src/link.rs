//! A queue pair on its byte stream: bytes are moved here and nowhere else.

use crate::io::{ByteStream, Pieces};
use crate::pdu::ProtocolError;
use crate::queue_pair::{Payload, QueuePair};
use std::io::ErrorKind;
use std::sync::Arc;

/// Reads from one connection at a turn at most: others want their turn too.
const MAX_READS: usize = 8;

/// Why a link is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The system reports that the connection failed.
    #[error("connection: {0}")]
    Io(ErrorKind),
    /// The peer closed the connection.
    #[error("the target closed the connection")]
    Closed,
    /// The peer broke the protocol.
    #[error("{0}")]
    Protocol(#[from] ProtocolError),
}

/// A queue pair and its connection.
#[derive(Debug)]
pub struct Link<P> {
    /// The protocol.
    pub queue: QueuePair<P>,
    stream: Arc<dyn ByteStream>,
    pieces: Pieces,
    /// The last look found all that was there.
    dry: bool,
}

impl<P: Payload> Link<P> {
    /// Puts `queue` on `stream`.
    pub fn new(queue: QueuePair<P>, stream: Arc<dyn ByteStream>) -> Link<P> {
        Link { queue, stream, pieces: Pieces::new(), dry: false }
    }

    /// The connection.
    pub fn stream(&self) -> &Arc<dyn ByteStream> {
        &self.stream
    }

    /// Whether the last look found all that was there; says so once. Then what is sent can go out before the next look, which
    /// would hardly find more.
    #[inline]
    pub fn take_dry(&mut self) -> bool {
        std::mem::take(&mut self.dry)
    }

    /// Sends what waits: one system call where the network takes it all. Returns the bytes sent.
    #[inline]
    pub fn transmit(&mut self) -> Result<usize, LinkError> {
        let mut total = 0;
        while self.queue.wants_to_send() {
            let gather = self.queue.gather(&mut self.pieces);
            let len = gather.len();
            match self.stream.send(&gather) {
                Ok(sent) => {
                    self.queue.sent(sent);
                    total += sent;
                    if sent < len {
                        break;
                    }
                }
                Err(error) if is_transient(error.kind()) => break,
                Err(error) => return Err(LinkError::Io(error.kind())),
            }
        }
        Ok(total)
    }

    /// Receives what is there. Returns the bytes received. On an error the peer is sent a terminate request where that helps,
    /// and the connection is cut.
    #[inline]
    pub fn receive(&mut self) -> Result<usize, LinkError> {
        let mut total = 0;
        self.dry = true;
        for _ in 0..MAX_READS {
            let mut scatter = self.queue.scatter(&mut self.pieces);
            let room = scatter.len();
            let received = match self.stream.receive(&mut scatter) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(received) => received,
                Err(error) if is_transient(error.kind()) => return Ok(total),
                Err(error) => return Err(LinkError::Io(error.kind())),
            };
            total += received;
            if let Err(error) = self.queue.received(received) {
                self.queue.fail(&error);
                let gather = self.queue.gather(&mut self.pieces);
                let _ = self.stream.send(&gather);
                self.stream.reset();
                return Err(error.into());
            }
            // Less than asked for means that the socket is empty.
            if received < room {
                return Ok(total);
            }
        }
        self.dry = false;
        Ok(total)
    }
}

fn is_transient(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
