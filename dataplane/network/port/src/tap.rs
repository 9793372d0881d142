//! A kernel tap: the host's network stack, or a namespace's, as a port.
//!
//! Packets cross with `virtio_net_hdr` in front (IFF_VNET_HDR), so checksums and segmentation are left to the last receiver: a TCP
//! stream over a tap and a guest is never cut into segments in software. The descriptors do not block, and wake the worker that
//! has them: a worker adds a queue to its wake set when it picks the queue up, and removes it when it puts the queue down.

#![allow(unsafe_code)] // ioctls, and scattered reads and writes of packet buffers

use crate::{Assignment, Deal, Port, PortError, PortInfo, PortKind, PortShard, PortStats, QueueReport, Queues};
use engine::{WakeSet, WorkerHandle};
use invalid::Invalid;
use packet::{Burst, DATA_ROOM, L4Checksum, Packet, Pool};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use virtio_spec::net::{HEADER_LEN, Header};

/// Most queues of a tap: the kernel's MAX_TAP_QUEUES.
pub const MAX_TAP_QUEUES: u16 = 256;
/// Smallest MTU: the kernel's ETH_MIN_MTU.
const MIN_MTU: u16 = 68;
/// Largest MTU: 64 KiB with an Ethernet header, as the kernel's tun.c has it.
const MAX_MTU: u16 = 65535 - 14;
/// Buffers that the largest packet takes.
const SEGMENTS: usize = (65535 + 22_usize).div_ceil(DATA_ROOM as usize);

// linux/if_tun.h.
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO6: libc::c_ulong = 0x04;
const TUN_F_USO4: libc::c_ulong = 0x20;
const TUN_F_USO6: libc::c_ulong = 0x40;

/// The parameters of a tap.
#[derive(Clone)]
pub struct TapParams {
    /// Name of the interface, 1 to 15 bytes.
    pub name: String,
    /// Number of queues, 1 to [`MAX_TAP_QUEUES`].
    pub queues: u16,
    /// MTU of the interface.
    pub mtu: u16,
    /// Pool that packets from the kernel are read into.
    pub pool: Pool,
}

/// A tap. The interface is there, and up, for as long as the port or one of its shards is.
pub struct TapPort {
    queues: Arc<Assignment<File>>,
    mac: [u8; 6],
    mtu: u16,
    pool: Pool,
    stats: Mutex<Vec<Arc<PortStats>>>,
}

impl TapPort {
    /// Creates the interface. Needs CAP_NET_ADMIN.
    pub fn open(params: TapParams) -> Result<TapPort, PortError> {
        if params.queues == 0 || params.queues > MAX_TAP_QUEUES {
            return Err(Invalid::new("queues", params.queues, format_args!("1 to {MAX_TAP_QUEUES}")).into());
        }
        if params.name.is_empty() || params.name.len() >= libc::IFNAMSIZ || params.name.contains(['/', '%', '\0']) {
            let expected = format!("an interface name of 1 to {} bytes", libc::IFNAMSIZ - 1);
            return Err(Invalid::new("ifname", params.name, expected).into());
        }
        if !(MIN_MTU..=MAX_MTU).contains(&params.mtu) {
            return Err(Invalid::new("mtu", params.mtu, format_args!("{MIN_MTU} to {MAX_MTU}")).into());
        }
        let os = |what: &str| {
            let what = match what {
                "TUNSETIFF" => format!("tap {}: TUNSETIFF; needs CAP_NET_ADMIN, and a name not in use", params.name),
                what => format!("tap {}: {what}", params.name),
            };
            move |source| PortError::Os { what, source }
        };
        let open = |_| open_queue(&params.name, params.queues > 1, &os);
        let queues = (0..params.queues).map(open).collect::<Result<Vec<File>, _>>()?;
        let queues = Assignment::new(queues, Deal::InTurn);
        let mac = set_up(&params.name, params.mtu, &os)?;
        Ok(TapPort { queues, mac, mtu: params.mtu, pool: params.pool, stats: Mutex::default() })
    }
}

/// One queue of the interface, which the first one creates.
fn open_queue<E: FnOnce(io::Error) -> PortError>(
    name: &str,
    multi: bool,
    os: &impl Fn(&str) -> E,
) -> Result<File, PortError> {
    // SAFETY: opens a descriptor that we own, or fails with -1.
    let fd = unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(os("/dev/net/tun")(io::Error::last_os_error()));
    }
    // SAFETY: the call above returned the descriptor to us, and nothing else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    let mut request = interface(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | if multi { libc::IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request lives across the call.
    check(unsafe { libc::ioctl(fd, libc::TUNSETIFF, &raw mut request) }).map_err(os("TUNSETIFF"))?;
    let header_len = HEADER_LEN as libc::c_int;
    // SAFETY: the integer lives across the call.
    check(unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const header_len) }).map_err(os("TUNSETVNETHDRSZ"))?;
    let offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    // SAFETY: the argument is an integer.
    let set = |offloads: libc::c_ulong| check(unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, offloads) });
    // Kernels before 6.2 do not know UDP segmentation.
    set(offloads | TUN_F_USO4 | TUN_F_USO6).or_else(|_| set(offloads)).map_err(os("TUNSETOFFLOAD"))?;
    Ok(file)
}

/// Sets the interface's MTU and brings it up. Returns its address.
fn set_up<E: FnOnce(io::Error) -> PortError>(
    name: &str,
    mtu: u16,
    os: &impl Fn(&str) -> E,
) -> Result<[u8; 6], PortError> {
    // SAFETY: opens a descriptor that we own, or fails with -1.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(os("socket")(io::Error::last_os_error()));
    }
    // SAFETY: the call above returned the descriptor to us, and nothing else owns it.
    let socket = unsafe { File::from_raw_fd(fd) };
    let call = |what: &'static str, code: libc::c_ulong, request: &mut libc::ifreq| {
        // SAFETY: the request lives across the call.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), code, &raw mut *request) }).map_err(os(what))
    };
    let mut request = interface(name);
    request.ifr_ifru.ifru_mtu = mtu.into();
    call("SIOCSIFMTU", libc::SIOCSIFMTU, &mut request)?;
    call("SIOCGIFFLAGS", libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the call has filled the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    call("SIOCSIFFLAGS", libc::SIOCSIFFLAGS, &mut request)?;
    call("SIOCGIFHWADDR", libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: the call has filled the address.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    Ok(std::array::from_fn(|at| address[at] as u8))
}

/// A request for an interface; `name` fits, with its NUL.
fn interface(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq of zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Port for TapPort {
    fn open_shard(&self, worker: &WorkerHandle) -> Result<Box<dyn PortShard>, PortError> {
        let stats = Arc::<PortStats>::default();
        self.stats.lock().push(stats.clone());
        let (pool, spare) = (self.pool.clone(), Vec::with_capacity(SEGMENTS));
        let (queues, wake_set) = (self.queues.open(worker), worker.wake_set());
        let mut shard = Shard { queues, wake_set, deaf: false, first: 0, pool, spare, starved: false, stats };
        shard.quiesce();
        Ok(Box::new(shard))
    }

    fn info(&self) -> PortInfo {
        let queues = self.queues.count();
        PortInfo {
            kind: PortKind::Tap,
            mac: self.mac,
            mtu: self.mtu,
            link_up: true,
            rx_queues: queues,
            tx_queues: queues,
        }
    }

    fn stats(&self) -> Vec<Arc<PortStats>> {
        self.stats.lock().clone()
    }

    fn move_rx_queue(&self, queue: u16, worker: &WorkerHandle) -> Result<(), PortError> {
        self.queues.assign(queue, worker.id())
    }

    fn rx_queues(&self) -> Vec<QueueReport> {
        self.queues.report()
    }
}

struct Shard {
    queues: Queues<File>,
    wake_set: WakeSet,
    /// A queue could not be put into the wake set, so the worker must not sleep.
    deaf: bool,
    /// The queue that receives first in the next turn.
    first: usize,
    pool: Pool,
    /// Whole buffers to read into.
    spare: Vec<Packet>,
    /// The last turn ended for want of buffers.
    starved: bool,
    stats: Arc<PortStats>,
}

impl PortShard for Shard {
    fn rx(&mut self, burst: &mut Burst) -> usize {
        let (before, mut bytes) = (burst.len(), 0);
        self.starved = false;
        let count = self.queues.held.len();
        for turn in 0..count {
            let (at, held) = ((self.first.wrapping_add(turn)) % count, burst.len());
            let fd = self.queues.held[at].queue.as_raw_fd();
            while !burst.is_full() {
                match self.read(fd) {
                    Ok(packet) => {
                        bytes += packet.len() as u64;
                        burst.push(packet);
                    }
                    // The kernel does not lie: it has an offload that we do not know.
                    Err(Unread::Invalid) => PortStats::add(&self.stats.rx_invalid, 1),
                    Err(Unread::NoBuffer) => {
                        PortStats::add(&self.stats.rx_no_buffer, 1);
                        self.starved = true;
                        break;
                    }
                    Err(Unread::Empty) => break,
                }
            }
            if burst.len() > held {
                self.queues.count(at, burst.len() - held);
            }
        }
        self.first = self.first.wrapping_add(1);
        let received = burst.len() - before;
        PortStats::add(&self.stats.rx_packets, received as u64);
        PortStats::add(&self.stats.rx_bytes, bytes);
        received
    }

    fn tx(&mut self, burst: &mut Burst) {
        let Some(fd) = self.queues.held.first().map(|held| held.queue.as_raw_fd()) else {
            PortStats::add(&self.stats.tx_down, burst.len() as u64);
            burst.clear();
            return;
        };
        for mut packet in burst.drain(..) {
            // The kernel's header has no word for it.
            if packet.offload().checksum == Some(L4Checksum::Sctp) {
                packet.complete_checksum();
            }
            let counter = match write(fd, &packet) {
                Ok(()) => {
                    PortStats::add(&self.stats.tx_bytes, packet.len() as u64);
                    &self.stats.tx_packets
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => &self.stats.tx_full,
                // The interface is down.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => &self.stats.tx_down,
                Err(_) => &self.stats.tx_invalid,
            };
            PortStats::add(counter, 1);
        }
    }

    fn can_tx(&self) -> bool {
        !self.queues.held.is_empty()
    }

    fn arm(&mut self) -> bool {
        // The descriptors wake the worker for what comes from now on; what was left for want of buffers has come already.
        self.starved || self.deaf || self.queues.is_waiting()
    }

    fn quiesce(&mut self) {
        let (wake_set, deaf) = (&self.wake_set, &mut self.deaf);
        let leaves = |queue: &File| {
            let _ = wake_set.remove(queue.as_raw_fd()); // fails only for a queue that was never added: `deaf`
        };
        let comes = |queue: &File| *deaf |= wake_set.add(queue.as_raw_fd()).is_err();
        self.queues.settle_with(leaves, comes);
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        for held in &self.queues.held {
            let _ = self.wake_set.remove(held.queue.as_raw_fd()); // fails only for a queue that was never added: `deaf`
        }
    }
}

impl Shard {
    /// Reads one packet.
    fn read(&mut self, fd: RawFd) -> Result<Packet, Unread> {
        while self.spare.len() < SEGMENTS {
            let mut packet = self.pool.take_one().ok_or(Unread::NoBuffer)?;
            packet.append(DATA_ROOM.into()).ok_or(Unread::NoBuffer)?;
            self.spare.push(packet);
        }
        let mut header = [0; HEADER_LEN];
        let mut places = [libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: HEADER_LEN }; SEGMENTS + 1];
        for (place, packet) in places[1..].iter_mut().zip(self.spare.iter_mut().rev()) {
            let data = packet.data_mut();
            *place = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
        }
        // SAFETY: header and buffers are ours alone and live across the call.
        let read = unsafe { libc::readv(fd, places.as_ptr(), places.len() as libc::c_int) };
        let read = usize::try_from(read).map_err(|_| Unread::Empty)?;
        let len = read.checked_sub(HEADER_LEN).ok_or(Unread::Invalid)?;
        let mut packet = self.assemble(len).ok_or(Unread::Invalid)?;
        packet.set_vnet_header(&Header::parse(&header)).map_err(|_| Unread::Invalid)?;
        Ok(packet)
    }

    /// The first `len` bytes of the spare buffers, as a packet.
    fn assemble(&mut self, len: usize) -> Option<Packet> {
        let mut packet = self.spare.pop()?;
        let mut left = len.saturating_sub(packet.len());
        packet.truncate(len);
        while left > 0 {
            let mut segment = self.spare.pop()?;
            segment.truncate(left);
            left -= segment.len();
            if !packet.chain(segment) {
                return None;
            }
        }
        Some(packet)
    }
}

/// Why no packet was read.
enum Unread {
    Empty,
    NoBuffer,
    Invalid,
}

fn write(fd: RawFd, packet: &Packet) -> io::Result<()> {
    let header = packet.vnet_header().to_bytes();
    let place = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut places = [place(&header); SEGMENTS + 1];
    if packet.segment_count() > SEGMENTS {
        return Err(ErrorKind::InvalidInput.into());
    }
    for (to, segment) in places[1..].iter_mut().zip(packet.segments()) {
        *to = place(segment);
    }
    // SAFETY: header and segments are borrowed across the call, which only reads them.
    let written = unsafe { libc::writev(fd, places.as_ptr(), packet.segment_count() as libc::c_int + 1) };
    if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
