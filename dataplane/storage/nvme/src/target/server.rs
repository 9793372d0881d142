//! The target behind sockets: one thread, all connections.

use super::{Connection, Target};
use crate::io::{EventFd, Interest, sleep_on};
use clock::Cycles;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes read from a connection at once.
const READ_LEN: usize = 256 << 10;
/// Sleep at most: namespace changes and aborts come from other threads and connections.
const MAX_SLEEP: Duration = Duration::from_millis(20);

/// A target that listens. Dropping it closes all connections and ends its thread.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Stop {
    wanted: AtomicBool,
    wake: EventFd,
}

impl Server {
    /// Serves `target` at `address`; port 0 takes a free one.
    pub fn start(target: Arc<Target>, address: impl ToSocketAddrs) -> io::Result<Server> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        target.state().address = (address.ip().to_string(), address.port().to_string());
        let stop = Arc::new(Stop { wanted: AtomicBool::new(false), wake: EventFd::new()? });
        let thread = std::thread::Builder::new().name("nvme-target".into()).spawn({
            let stop = stop.clone();
            move || serve(&target, &listener, &stop)
        })?;
        Ok(Server { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.wanted.store(true, Ordering::Release);
        self.stop.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Client {
    stream: TcpStream,
    connection: Connection,
}

fn serve(target: &Arc<Target>, listener: &TcpListener, stop: &Stop) {
    let mut clients: Vec<Client> = Vec::new();
    let mut buffer = vec![0; READ_LEN];
    while !stop.wanted.load(Ordering::Acquire) {
        while let Ok((stream, _)) = listener.accept() {
            let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            if ready.is_ok() {
                clients.push(Client { stream, connection: Connection::new(target.clone()) });
            }
        }
        let now = Cycles::now();
        target.tick(now);
        let mut busy = false;
        clients.retain_mut(|client| match client.turn(&mut buffer, now) {
            Ok(moved) => {
                busy |= moved;
                true
            }
            Err(_) => {
                client.connection.lost(now);
                false
            }
        });
        if !busy {
            sleep(target, listener, stop, &clients);
        }
    }
    clients.iter_mut().for_each(|client| client.connection.lost(Cycles::now()));
}

fn sleep(target: &Target, listener: &TcpListener, stop: &Stop, clients: &[Client]) {
    let mut interests = vec![
        Interest { fd: listener.as_raw_fd(), writable: false },
        Interest { fd: stop.wake.as_raw_fd(), writable: false },
    ];
    interests.extend(
        clients
            .iter()
            .map(|client| Interest { fd: client.stream.as_raw_fd(), writable: !client.connection.output().is_empty() }),
    );
    let deadline = clients.iter().map(|client| client.connection.deadline()).fold(target.deadline(), Ord::min);
    let left = deadline.since(Cycles::now()).to_duration();
    sleep_on(&interests, left.min(MAX_SLEEP));
}

impl Client {
    /// Reads, works and writes once. Whether bytes moved; an error ends the connection.
    fn turn(&mut self, buffer: &mut [u8], now: Cycles) -> io::Result<bool> {
        let received = match self.stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if received > 0 {
            self.connection.input(&buffer[..received], now);
        }
        self.connection.poll(now);
        let mut sent = 0;
        while !self.connection.output().is_empty() {
            match self.stream.write(self.connection.output()) {
                Ok(count) => {
                    self.connection.consume(count);
                    sent += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.connection.is_closed() && self.connection.output().is_empty() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        Ok(received + sent > 0)
    }
}
