//! A target on sockets: a thread a connection. For loopback and tests; it makes no claim to speed.

use super::{Faults, Target, TargetConnection};
use clock::Cycles;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest sleep of a connection's thread: how soon it sees that it should stop.
const TURN: Duration = Duration::from_millis(20);

/// A listening target. Dropping it closes everything.
#[derive(Debug)]
pub struct Server {
    target: Arc<Target>,
    address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    stop: AtomicBool,
    faults: Mutex<Faults>,
    /// Moves when the faults change or all connections shall be cut.
    generation: AtomicU64,
}

impl Server {
    /// Listens on `address` (port 0 for any).
    pub fn start(address: &str, target: Arc<Target>, faults: Faults) -> io::Result<Server> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let state =
            Arc::new(State { stop: AtomicBool::new(false), faults: Mutex::new(faults), generation: AtomicU64::new(0) });
        let (for_thread, target_too) = (state.clone(), target.clone());
        let acceptor = std::thread::Builder::new()
            .name("iscsi-target".into())
            .spawn(move || accept(&listener, &target_too, &for_thread))?;
        Ok(Server { target, address, state, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it serves.
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Misbehaves in this way on connections made from now on.
    pub fn set_faults(&self, faults: Faults) {
        *self.state.faults.lock().expect("no holder panics") = faults;
    }

    /// Cuts every connection.
    pub fn cut_all(&self) {
        self.state.generation.fetch_add(1, Ordering::AcqRel);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &TcpListener, target: &Arc<Target>, state: &Arc<State>) {
    let mut workers: Vec<JoinHandle<()>> = Vec::new();
    let mut seed = Cycles::now().0;
    while !state.stop.load(Ordering::Acquire) {
        target.tick(Cycles::now());
        match listener.accept() {
            Ok((stream, _)) => {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let faults = state.faults.lock().expect("no holder panics").clone();
                let (connection, state) = (TargetConnection::new(target.clone(), faults, seed), state.clone());
                workers.retain(|w| !w.is_finished());
                workers.extend(
                    std::thread::Builder::new()
                        .name("iscsi-target".into())
                        .spawn(move || serve(stream, connection, &state)),
                );
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
    for worker in workers {
        let _ = worker.join();
    }
}

fn serve(mut stream: TcpStream, mut connection: TargetConnection, state: &State) {
    let generation = state.generation.load(Ordering::Acquire);
    let mut buffer = vec![0; 256 * 1024];
    let prepared = stream.set_nonblocking(false).and_then(|()| stream.set_nodelay(true));
    let mut alive = prepared.is_ok();
    while alive && !state.stop.load(Ordering::Acquire) && state.generation.load(Ordering::Acquire) == generation {
        let now = Cycles::now();
        let wait = connection.deadline().since(now).to_duration().clamp(Duration::from_micros(50), TURN);
        let _ = stream.set_read_timeout(Some(wait));
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => connection.receive(&buffer[..count], Cycles::now()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                connection.tick(Cycles::now());
            }
            Err(_) => break,
        }
        alive = send(&mut stream, &mut connection).is_ok() && !connection.is_closed();
    }
    let _ = stream.shutdown(Shutdown::Both);
    connection.disconnect();
}

fn send(stream: &mut TcpStream, connection: &mut TargetConnection) -> io::Result<()> {
    loop {
        let bytes = connection.take_output(1 << 20);
        if bytes.is_empty() {
            return Ok(());
        }
        stream.write_all(&bytes)?;
    }
}
