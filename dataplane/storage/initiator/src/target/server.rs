//! A target behind sockets: one thread, all connections.

use clock::Cycles;
use std::fmt::Debug;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use transport::io::{EventFd, Interest, sleep_on};

/// Bytes read from a connection at once.
const READ_LEN: usize = 256 << 10;
/// Sleep at most: changes of the target and aborts come from other threads and connections.
const MAX_SLEEP: Duration = Duration::from_millis(20);

/// A target as all its connections see it.
pub trait TargetService: Send + Sync + Sized + 'static {
    /// One connection of the target.
    type Connection: ServerConnection;
    /// The target's side of a new connection.
    fn accept(self: &Arc<Self>) -> Self::Connection;
    /// Does what is due apart from connections: late writes, timeouts.
    fn tick(&self, now: Cycles);
    /// When [`tick`](TargetService::tick) has something to do.
    fn deadline(&self) -> Cycles;
    /// Learns where it is served, for discovery.
    fn served_at(&self, _address: SocketAddr) {}
}

/// The target's side of one connection, sans-IO: bytes and the time in, bytes out.
pub trait ServerConnection: Send + Debug + 'static {
    /// Takes bytes from the network.
    fn receive(&mut self, bytes: &[u8], now: Cycles);
    /// Executes and answers what is due. Called after [`receive`](ServerConnection::receive) and at the deadline.
    fn poll(&mut self, now: Cycles);
    /// When [`poll`](ServerConnection::poll) has something to do although nothing came.
    fn deadline(&self) -> Cycles;
    /// Bytes for the network.
    fn output(&mut self) -> &[u8];
    /// `count` bytes of the output went out.
    fn consume(&mut self, count: usize);
    /// Whether the target wants the connection closed, once its output is gone.
    fn is_closed(&self) -> bool;
    /// The network lost the connection: what was not executed is not, unless faults say otherwise.
    fn disconnect(&mut self, now: Cycles);
}

/// A target that listens. Dropping it closes all connections and ends its thread.
#[derive(Debug)]
pub struct Server<T: TargetService> {
    target: Arc<T>,
    address: SocketAddr,
    orders: Arc<Orders>,
    thread: Option<JoinHandle<()>>,
}

/// Orders of a server's owner to its thread.
#[derive(Debug)]
struct Orders {
    stop: AtomicBool,
    cut_all: AtomicBool,
    wake: EventFd,
}

impl<T: TargetService> Server<T> {
    /// Serves `target` at `address`; port 0 takes a free one.
    pub fn start(target: Arc<T>, address: impl ToSocketAddrs) -> io::Result<Server<T>> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        target.served_at(address);
        let wake = EventFd::new()?;
        let orders = Arc::new(Orders { stop: AtomicBool::new(false), cut_all: AtomicBool::new(false), wake });
        let thread = std::thread::Builder::new().name("target".into()).spawn({
            let (target, orders) = (target.clone(), orders.clone());
            move || serve(&target, &listener, &orders)
        })?;
        Ok(Server { target, address, orders, thread: Some(thread) })
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The target that is served.
    pub fn target(&self) -> &Arc<T> {
        &self.target
    }

    /// Cuts every connection.
    pub fn cut_all(&self) {
        self.orders.cut_all.store(true, Ordering::Release);
        self.orders.wake.signal();
    }
}

impl<T: TargetService> Drop for Server<T> {
    fn drop(&mut self) {
        self.orders.stop.store(true, Ordering::Release);
        self.orders.wake.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a thread that panicked has said so
        }
    }
}

#[derive(Debug)]
struct Client<C> {
    stream: TcpStream,
    connection: C,
}

fn serve<T: TargetService>(target: &Arc<T>, listener: &TcpListener, orders: &Orders) {
    let mut clients: Vec<Client<T::Connection>> = Vec::new();
    let mut buffer = vec![0; READ_LEN];
    while !orders.stop.load(Ordering::Acquire) {
        while let Ok((stream, _)) = listener.accept() {
            let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            if ready.is_ok() {
                clients.push(Client { stream, connection: target.accept() });
            }
        }
        orders.wake.clear();
        let now = Cycles::now();
        if orders.cut_all.swap(false, Ordering::AcqRel) {
            clients.drain(..).for_each(|mut client| client.connection.disconnect(now));
        }
        target.tick(now);
        let mut busy = false;
        clients.retain_mut(|client| match client.turn(&mut buffer, now) {
            Ok(moved) => {
                busy |= moved;
                true
            }
            Err(_) => {
                client.connection.disconnect(now);
                false
            }
        });
        if !busy {
            sleep(target, listener, orders, &mut clients);
        }
    }
    clients.iter_mut().for_each(|client| client.connection.disconnect(Cycles::now()));
}

fn sleep<T: TargetService>(
    target: &Arc<T>,
    listener: &TcpListener,
    orders: &Orders,
    clients: &mut [Client<T::Connection>],
) {
    let mut interests = vec![
        Interest { fd: listener.as_raw_fd(), writable: false },
        Interest { fd: orders.wake.as_raw_fd(), writable: false },
    ];
    let mut deadline = target.deadline();
    for Client { stream, connection } in clients {
        interests.push(Interest { fd: stream.as_raw_fd(), writable: !connection.output().is_empty() });
        deadline = deadline.min(connection.deadline());
    }
    let left = deadline.since(Cycles::now()).to_duration();
    sleep_on(&interests, left.min(MAX_SLEEP));
}

impl<C: ServerConnection> Client<C> {
    /// Reads, works and writes once. Whether bytes moved; an error ends the connection.
    fn turn(&mut self, buffer: &mut [u8], now: Cycles) -> io::Result<bool> {
        let received = match self.stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if received > 0 {
            self.connection.receive(&buffer[..received], now);
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
