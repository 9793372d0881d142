//! An initiator alone: it and our target take turns on one thread over loopback, so that nothing waits and nothing spins, and
//! time is taken around the initiator's part only.

use super::Reads;
use super::bare::{BareChannel, BareTarget};
use crate::instructions::measured;
use crate::measure::{Measurement, Pinned, Plan, RealTime, take_turns};
use crate::report::{Bars, Report, Table};
use crate::request::{BLOCK, Kind};
use anyhow::{Result, ensure};
use block::{Bdev, BlockChannel};
use clock::Cycles;
use nvme::target::ServerConnection as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const NQN: &str = "nqn.2024-01.io.sluice:bench";
const IQN: &str = "iqn.2024-01.io.sluice:bench";
const INITIATOR: &str = "iqn.2024-01.io.sluice:host";
const DISK_LEN: usize = 64 << 20;

/// Bytes and depth.
const SHAPES: [(usize, usize); 4] = [(4096, 1), (4096, 32), (4096, 128), (131_072, 8)];

/// Requests whose instructions are counted: rounds of so many.
const COUNTED_ROUNDS: usize = 500;
const COUNTED_DEPTH: usize = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Nvme,
    Iscsi,
    Bare,
}

/// One connection's target side, without its socket.
enum Connection {
    Nvme(nvme::target::Connection),
    Iscsi(Box<iscsi::target::TargetConnection>),
    Bare(BareTarget),
}

impl Connection {
    /// Takes what the initiator sent and appends the answer.
    fn exchange(&mut self, received: &[u8], output: &mut Vec<u8>) {
        let now = Cycles::now();
        match self {
            Connection::Nvme(connection) => {
                connection.receive(received, now);
                connection.poll(now);
                let len = connection.output().len();
                output.extend_from_slice(connection.output());
                connection.consume(len);
            }
            Connection::Iscsi(connection) => {
                connection.receive(received, now);
                let len = connection.output().len();
                output.extend_from_slice(connection.output());
                connection.consume(len);
            }
            Connection::Bare(target) => target.exchange(received, output),
        }
    }
}

/// Makes the target side of a new connection.
type Accept = Box<dyn FnMut() -> Connection + Send>;

/// The target's side, to be turned by whoever has the thread.
struct Peer {
    accept: Accept,
    listener: TcpListener,
    clients: Vec<Client>,
    buffer: Vec<u8>,
}

struct Client {
    stream: TcpStream,
    connection: Connection,
    output: Vec<u8>,
}

impl Peer {
    fn new(protocol: Protocol) -> Result<Peer> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let accept = match protocol {
            Protocol::Nvme => nvme_target(),
            Protocol::Iscsi => iscsi_target(),
            Protocol::Bare => Box::new(|| Connection::Bare(BareTarget::default())),
        };
        Ok(Peer { accept, listener, clients: Vec::new(), buffer: vec![0; 1 << 20] })
    }

    fn turn(&mut self) -> Result<()> {
        while let Ok((stream, _)) = self.listener.accept() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            self.clients.push(Client { stream, connection: (self.accept)(), output: Vec::new() });
        }
        // Who hung up is gone.
        self.clients.retain_mut(|client| client.turn(&mut self.buffer).is_ok());
        Ok(())
    }

    /// Turns on another thread as long as `work` takes.
    fn turn_while<T>(&mut self, work: impl FnOnce() -> T) -> Result<T> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let turning = scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    self.turn()?;
                    std::thread::yield_now();
                }
                Ok(())
            });
            let result = work();
            stop.store(true, Ordering::Release);
            turning.join().expect("no panic").map(|()| result)
        })
    }
}

impl Client {
    fn turn(&mut self, buffer: &mut [u8]) -> std::io::Result<()> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.connection.exchange(&buffer[..count], &mut self.output),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let mut sent = 0;
        while sent < self.output.len() {
            match self.stream.write(&self.output[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.output.drain(..sent);
        Ok(())
    }
}

fn nvme_target() -> Accept {
    use nvme::target::{Access, MemoryStore, Namespace, Target, TargetConfig};
    let target = Target::new(TargetConfig::new(NQN), 1);
    let (store, uuid) = (Arc::new(MemoryStore::new(DISK_LEN)), uuid::Uuid::from_u128(1));
    target.set_namespace(1, Namespace { store, block_size: 512, access: Access::ReadWrite, uuid });
    Box::new(move || Connection::Nvme(nvme::target::Connection::new(target.clone())))
}

fn iscsi_target() -> Accept {
    use iscsi::target::{Faults, MemoryStore, Target, TargetConfig, TargetConnection, Unit};
    let target = Arc::new(Target::new(TargetConfig::new(IQN)));
    let unit = Unit::new(Arc::new(MemoryStore::new(DISK_LEN)), 512, false, 1);
    target.insert_unit(iscsi::Lun::from_number(0), Arc::new(unit));
    let connect = move || TargetConnection::new(target.clone(), Faults::default(), 1);
    Box::new(move || Connection::Iscsi(Box::new(connect())))
}

/// A disk, and what keeps it attached.
enum Disk {
    Nvme(Box<nvme::NvmeController>),
    Iscsi(Arc<iscsi::IscsiDisk>),
    Bare(SocketAddr),
}

impl Disk {
    fn attach(protocol: Protocol, address: SocketAddr, digests: bool) -> Result<Disk> {
        match protocol {
            Protocol::Nvme => {
                let mut params = nvme::AttachParams::new("bench", address, NQN);
                (params.hdgst, params.ddgst) = (digests, digests);
                Ok(Disk::Nvme(Box::new(nvme::NvmeController::attach(&params, nvme::no_events())?)))
            }
            Protocol::Iscsi => {
                let (portal, lun) = (address.to_string(), iscsi::Lun::from_number(0));
                let mut params = iscsi::IscsiParams::new("bench", INITIATOR, &portal, IQN, lun);
                let policy = if digests { iscsi::DigestPolicy::Require } else { iscsi::DigestPolicy::None };
                (params.header_digest, params.data_digest) = (policy, policy);
                Ok(Disk::Iscsi(iscsi::IscsiDisk::attach(&params, Arc::new(|_| ()))?))
            }
            Protocol::Bare => Ok(Disk::Bare(address)),
        }
    }

    fn open_channel(&self) -> Result<Box<dyn BlockChannel>> {
        Ok(match self {
            Disk::Nvme(controller) => controller.namespaces()[0].1.open_channel()?,
            Disk::Iscsi(disk) => disk.open_channel()?,
            Disk::Bare(address) => Box::new(BareChannel::connect(*address)?),
        })
    }
}

/// An initiator and its peer.
struct Rig {
    peer: Peer,
    channel: Box<dyn BlockChannel>,
    disk: Disk,
}

impl Rig {
    fn new(protocol: Protocol, digests: bool) -> Result<Rig> {
        let mut peer = Peer::new(protocol)?;
        let address = peer.listener.local_addr()?;
        let (disk, channel) = peer.turn_while(|| {
            let disk = Disk::attach(protocol, address, digests)?;
            let channel = disk.open_channel()?;
            anyhow::Ok((disk, channel))
        })??;
        Ok(Rig { peer, channel, disk })
    }

    /// Nanoseconds of the initiator an I/O, over about `count` of them.
    fn window(&mut self, reads: &mut Reads, count: usize) -> Result<f64> {
        let (mut ended, mut used) = (0, 0);
        while ended < count {
            let start = Cycles::now();
            reads.submit(self.channel.as_mut());
            ended += reads.poll(self.channel.as_mut())?.1;
            used += Cycles::now().since(start).0;
            self.peer.turn()?;
            let start = Cycles::now();
            ended += reads.poll(self.channel.as_mut())?.1;
            used += Cycles::now().since(start).0;
            self.peer.turn()?;
        }
        while !reads.are_idle() {
            reads.poll(self.channel.as_mut())?;
            self.peer.turn()?;
        }
        Ok(Cycles(used).as_nanos() as f64 / ended as f64)
    }

    /// Has all that are idle submitted and served. `initiator` runs the initiator's part. Returns how many ended.
    fn round(
        &mut self,
        reads: &mut Reads,
        initiator: fn(&mut dyn FnMut() -> Result<usize>) -> Result<usize>,
    ) -> Result<usize> {
        let channel = self.channel.as_mut();
        let mut ended = initiator(&mut || {
            reads.submit(channel);
            Ok(reads.poll(channel)?.1)
        })?;
        let start = Instant::now();
        while !reads.are_idle() {
            ensure!(start.elapsed() < CONNECT_TIMEOUT, "requests did not end in {CONNECT_TIMEOUT:?}");
            self.peer.turn()?;
            ended += initiator(&mut || Ok(reads.poll(channel)?.1))?;
        }
        Ok(ended)
    }

    /// A log-out wants an answer.
    fn close(self) -> Result<()> {
        let Rig { mut peer, channel, disk } = self;
        peer.turn_while(|| {
            drop(channel);
            drop(disk);
        })
    }
}

/// For callgrind: requests of 4 KiB, a few at a time.
pub(crate) fn instructions(protocol: Protocol, kind: Kind, digests: bool) -> Result<u64> {
    let mut rig = Rig::new(protocol, digests)?;
    let mut requests = Reads::new(BLOCK, COUNTED_DEPTH, DISK_LEN as u64)?;
    requests.kind = kind;
    // The first waits for the connection.
    rig.round(&mut requests, |work| work())?;
    let mut ended = 0;
    for _ in 0..COUNTED_ROUNDS {
        ended += rig.round(&mut requests, |work| measured(work))?;
    }
    rig.close()?;
    Ok(ended as u64)
}

pub(super) fn run(plan: &Plan, report: &mut Report) -> Result<()> {
    let mut table = Table::new(["protocol", "read", "depth", "ns an I/O", "best", "with digests", "digests add"]);
    let mut bars = Bars::new("initiators", "Initiators alone: CPU time an I/O", "ns");
    // Connected before this thread has a core and a priority of its own: their control threads would have the same.
    let mut rigs = Vec::new();
    for protocol in [Protocol::Nvme, Protocol::Iscsi] {
        rigs.extend([Rig::new(protocol, false)?, Rig::new(protocol, true)?]);
    }
    rigs.push(Rig::new(Protocol::Bare, false)?);
    let permitted = {
        let _pinned = Pinned::to(plan.backend_cpu)?;
        let real_time = RealTime::enter();
        for (len, depth) in SHAPES {
            let mut reads = Reads::new(len, depth, DISK_LEN as u64)?;
            let count = plan.items / 10 / len.div_ceil(8192).min(16);
            let windows = take_turns(plan.windows, &mut rigs, |rig| rig.window(&mut reads, count))?;
            let figures: Vec<_> = windows.into_iter().map(Measurement::new).collect();
            for (pair, protocol) in figures.chunks(2).zip(["NVMe/TCP", "iSCSI", "none"]) {
                let (plain, digests) = (&pair[0], pair.get(1));
                let case = format!("{protocol} {} KiB, {depth}", len / 1024);
                bars.push(&case, "no digests", plain.clone());
                if let Some(digests) = digests {
                    bars.push(&case, "header and data digest", digests.clone());
                }
                let added = |digests: &Measurement| (digests.median() / plain.median() - 1.0) * 100.0;
                table.push(vec![
                    protocol.to_owned(),
                    format!("{} KiB", len / 1024),
                    depth.to_string(),
                    plain.show(0),
                    format!("{:.0}", plain.min()),
                    digests.map_or_else(String::new, |digests| digests.show(0)),
                    digests.map_or_else(String::new, |digests| format!("{:.0} %", added(digests))),
                ]);
            }
        }
        real_time.permitted()
    };
    rigs.into_iter().try_for_each(Rig::close)?;
    report.section("Initiators alone");
    report.text(&format!(
        "Time of the initiator a random read over loopback, system calls included. Initiator and our own target take turns on one \
         thread{}; only the initiator's part is timed. Protocol \"none\" moves the bytes of NVMe/TCP and looks at none: the system's \
         share. Windows in turn, median of {} (range). The aims are 400 ns for 4 KiB at depth \
         32 over NVMe/TCP, and that digests add at most 25 %.",
        if permitted { " under `chrt -f 1`" } else { ", no real-time priority permitted" },
        plan.windows,
    ));
    report.table(table);
    report.bars(bars)
}
