//! No protocol: the bytes of NVMe/TCP through the same sockets, and nothing made of them. What an initiator takes beyond this is
//! its own; the rest is the system's.

use anyhow::Result;
use block::{BlockChannel, BlockRequest, Completions, Status};
use clock::Cycles;
use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

/// Bytes of a command, and those that an answer has beside its data.
const COMMAND_LEN: usize = 72;
const HEADER_LEN: u64 = 24;

pub(super) struct BareChannel {
    stream: TcpStream,
    commands: Vec<u8>,
    outstanding: VecDeque<BlockRequest>,
    buffer: Box<[u8]>,
    /// Bytes of the answer that is under way.
    received: u64,
}

impl BareChannel {
    pub(super) fn connect(address: SocketAddr) -> Result<BareChannel> {
        let stream = TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let buffer = vec![0; 144 << 10].into_boxed_slice();
        Ok(BareChannel { stream, commands: Vec::new(), outstanding: VecDeque::new(), buffer, received: 0 })
    }
}

impl BlockChannel for BareChannel {
    fn submit(&mut self, request: BlockRequest, _done: &mut Completions) {
        let mut command = [0; COMMAND_LEN];
        command[..8].copy_from_slice(&(HEADER_LEN + request.len).to_le_bytes());
        self.commands.extend(command);
        self.outstanding.push_back(request);
    }

    fn poll(&mut self, _now: Cycles, done: &mut Completions) -> usize {
        if !self.commands.is_empty() {
            self.stream.write_all(&self.commands).expect("room for the commands of one batch");
            self.commands.clear();
            return 1;
        }
        let mut events = 0;
        while let Ok(count) = self.stream.read(&mut self.buffer) {
            self.received += count as u64;
            while let Some(request) = self.outstanding.pop_front_if(|r| self.received >= HEADER_LEN + r.len) {
                self.received -= HEADER_LEN + request.len;
                request.complete(done, Status::Ok);
                events += 1;
            }
            if count < self.buffer.len() {
                break;
            }
        }
        events
    }

    fn outstanding(&self) -> usize {
        self.outstanding.len()
    }
}

/// The other end: for each command as many bytes as it asks for.
#[derive(Default)]
pub(super) struct BareTarget(Vec<u8>);

impl BareTarget {
    pub(super) fn exchange(&mut self, received: &[u8], output: &mut Vec<u8>) {
        self.0.extend_from_slice(received);
        let mut commands = self.0.chunks_exact(COMMAND_LEN);
        for command in &mut commands {
            let (len, _) = command.split_first_chunk().expect("a command is longer");
            output.resize(output.len() + u64::from_le_bytes(*len) as usize, 0);
        }
        self.0 = commands.remainder().to_vec();
    }
}
