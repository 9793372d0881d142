//! A TCP relay in front of a target, which loses the network path on demand.

use anyhow::Result;
use parking_lot::{Condvar, Mutex};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

/// A network path to a target, which can be lost while the target goes on: what was sent and has not arrived arrives late, when
/// the path is back.
pub struct Relay {
    address: SocketAddr,
    link: Arc<Link>,
}

#[derive(Default)]
struct Link {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Up,
    Lost,
    Closed,
}

impl Relay {
    /// A path to `target`.
    pub fn to(target: SocketAddr) -> Result<Relay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let relay = Relay { address: listener.local_addr()?, link: Arc::default() };
        let link = relay.link.clone();
        std::thread::spawn(move || serve(&listener, target, &link));
        Ok(relay)
    }

    /// The address of the relay, to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections fall silent in both directions; new ones are closed at once.
    pub fn lose(&self) {
        self.link.set(State::Lost);
    }

    /// The path leads to the target again; connections from before go on.
    pub fn restore(&self) {
        self.link.set(State::Up);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.link.set(State::Closed);
        // Wakes the thread that accepts.
        let _already_gone = TcpStream::connect(self.address);
    }
}

impl Link {
    fn set(&self, state: State) {
        *self.state.lock() = state;
        self.changed.notify_all();
    }

    fn state(&self) -> State {
        *self.state.lock()
    }

    fn wait_while_lost(&self) {
        self.changed.wait_while(&mut self.state.lock(), |state| *state == State::Lost);
    }
}

fn serve(listener: &TcpListener, target: SocketAddr, link: &Arc<Link>) {
    for client in listener.incoming().flatten() {
        match link.state() {
            State::Up => {
                // The target may be gone: the client sees its connection end.
                let _refused = TcpStream::connect(target).and_then(|server| join(&client, &server, link));
            }
            State::Lost => {}
            State::Closed => return,
        }
    }
}

fn join(client: &TcpStream, server: &TcpStream, link: &Arc<Link>) -> std::io::Result<()> {
    for (from, to) in [(client, server), (server, client)] {
        from.set_nodelay(true)?;
        let (from, to, link) = (from.try_clone()?, to.try_clone()?, link.clone());
        std::thread::spawn(move || carry(from, to, &link));
    }
    Ok(())
}

/// Carries bytes one way until either end closes; the end of a connection is lost with the path too.
fn carry(mut from: TcpStream, mut to: TcpStream, link: &Link) {
    let mut bytes = vec![0; 256 << 10];
    loop {
        let len = from.read(&mut bytes).unwrap_or(0);
        link.wait_while_lost();
        if len == 0 || link.state() == State::Closed || to.write_all(&bytes[..len]).is_err() {
            break;
        }
    }
    for end in [from, to] {
        let _already_closed = end.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_lost_path_is_silent_and_what_was_sent_arrives_when_it_is_back() {
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::to(target.local_addr().unwrap()).unwrap();
        let mut client = TcpStream::connect(relay.address()).unwrap();
        let (mut server, _) = target.accept().unwrap();
        let mut byte = [0];
        client.write_all(b"1").unwrap();
        server.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"1");

        relay.lose();
        client.write_all(b"2").unwrap();
        server.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(server.read(&mut byte).is_err(), "nothing comes through");
        let mut refused = TcpStream::connect(relay.address()).unwrap();
        assert_eq!(refused.read(&mut byte).unwrap_or(0), 0, "no new connection");
        drop(client);

        relay.restore();
        server.set_read_timeout(None).unwrap();
        server.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"2");
        assert_eq!(server.read(&mut byte).unwrap(), 0, "and the end after it");
    }
}
