//! Messages on the wire: parsed once, with their descriptors, into what they mean.

use crate::error::Reason;
use crate::request::Request;
use guest_memory::{GuestAddress, UserAddress};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use virtqueue::RingAddresses;

/// Largest payload that is read. The longest legal one is a configuration space with its header.
pub(crate) const MAX_PAYLOAD: usize = 4096;
/// Most descriptors that a message may carry; the longest legal list is that of SET_MEM_TABLE.
pub(crate) const MAX_FDS: usize = 32;
/// Regions of SET_MEM_TABLE.
pub(crate) const TABLE_REGIONS: usize = 8;
/// Largest configuration space (VHOST_USER_MAX_CONFIG_SIZE).
pub(crate) const MAX_CONFIG: usize = 256;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// VHOST_USER_VRING_NOFD: no descriptor comes with the message.
const NOFD: u64 = 1 << 8;
/// VHOST_VRING_F_LOG: `log` is valid.
const VRING_LOG: u32 = 1;

/// The first 12 bytes of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) request: Request,
    flags: u32,
    pub(crate) size: u32,
}

impl Header {
    pub(crate) const LEN: usize = 12;

    /// Reads a front-end's header. An error leaves the stream without a border to go on from.
    pub(crate) fn parse(bytes: &[u8; Header::LEN]) -> Result<Header, Reason> {
        let header = Header { request: Request(u32_at(bytes, 0)), flags: u32_at(bytes, 4), size: u32_at(bytes, 8) };
        if header.flags & (VERSION_MASK | REPLY) != VERSION {
            return Err(Reason::value("flags", header.flags, "version 1 and no reply bit"));
        }
        if header.size as usize > MAX_PAYLOAD {
            return Err(Reason::value("size", header.size, format!("at most {MAX_PAYLOAD}")));
        }
        Ok(header)
    }

    pub(crate) fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// A message as it came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A message to the front-end, ready to be sent: a reply, or a request on the back-end channel.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fd: Option<OwnedFd>,
}

impl Outgoing {
    pub(crate) fn reply(request: Request, payload: &[u8]) -> Outgoing {
        Outgoing::new(request, VERSION | REPLY, payload)
    }

    pub(crate) fn reply_u64(request: Request, value: u64) -> Outgoing {
        Outgoing::reply(request, &value.to_ne_bytes())
    }

    /// A request of the back-end that wants no reply.
    pub(crate) fn request(number: u32) -> Outgoing {
        Outgoing::new(Request(number), VERSION, &[])
    }

    pub(crate) fn with_fd(self, fd: OwnedFd) -> Outgoing {
        Outgoing { fd: Some(fd), ..self }
    }

    fn new(request: Request, flags: u32, payload: &[u8]) -> Outgoing {
        let header = [request.0, flags, payload.len() as u32];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend_from_slice(payload);
        Outgoing { bytes, fd: None }
    }
}

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
pub(crate) const BACKEND_CONFIG_CHANGE: u32 = 2;

/// "Memory region description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionDescription {
    pub(crate) guest: GuestAddress,
    pub(crate) size: u64,
    pub(crate) user: UserAddress,
    pub(crate) mmap_offset: u64,
}

impl RegionDescription {
    const LEN: usize = 32;

    fn parse(bytes: &[u8]) -> RegionDescription {
        RegionDescription {
            guest: GuestAddress(u64_at(bytes, 0)),
            size: u64_at(bytes, 8),
            user: UserAddress(u64_at(bytes, 16)),
            mmap_offset: u64_at(bytes, 24),
        }
    }
}

/// "Inflight description".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InflightDescription {
    pub(crate) mmap_size: u64,
    pub(crate) mmap_offset: u64,
    pub(crate) queues: u16,
    pub(crate) queue_size: u16,
}

impl InflightDescription {
    fn parse(bytes: &[u8]) -> InflightDescription {
        InflightDescription {
            mmap_size: u64_at(bytes, 0),
            mmap_offset: u64_at(bytes, 8),
            queues: u16_at(bytes, 16),
            queue_size: u16_at(bytes, 18),
        }
    }

    /// With the padding of the C structure, as QEMU sends and expects it.
    pub(crate) fn bytes(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[0..8].copy_from_slice(&self.mmap_size.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.mmap_offset.to_ne_bytes());
        bytes[16..18].copy_from_slice(&self.queues.to_ne_bytes());
        bytes[18..20].copy_from_slice(&self.queue_size.to_ne_bytes());
        bytes
    }
}

/// A request with its meaning. Ring indices are as they came; [`Message::ring`] names them.
#[derive(Debug)]
pub(crate) enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(RegionDescription, OwnedFd)>),
    SetLogBase {
        size: u64,
        offset: u64,
        fd: OwnedFd,
    },
    SetLogFd(OwnedFd),
    SetVringNum {
        index: u32,
        num: u32,
    },
    SetVringAddr {
        index: u32,
        addresses: RingAddresses,
    },
    SetVringBase {
        index: u32,
        base: u32,
    },
    GetVringBase {
        index: u32,
    },
    SetVringKick {
        index: u32,
        fd: Option<OwnedFd>,
    },
    SetVringCall {
        index: u32,
        fd: Option<OwnedFd>,
    },
    SetVringErr {
        index: u32,
        fd: Option<OwnedFd>,
    },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable {
        index: u32,
        enabled: bool,
    },
    SendRarp([u8; 6]),
    NetSetMtu(u64),
    SetBackendReqFd(OwnedFd),
    GetConfig {
        offset: u32,
        size: u32,
        flags: u32,
    },
    SetConfig {
        offset: u32,
        flags: u32,
        bytes: Vec<u8>,
    },
    GetInflightFd(InflightDescription),
    SetInflightFd(InflightDescription, OwnedFd),
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(RegionDescription, OwnedFd),
    RemMemReg(RegionDescription),
    SetStatus(u64),
    GetStatus,
    /// A request of a feature that is never offered, or an unknown one.
    Other,
}

/// How many payload bytes and descriptors a request has. `None`: any, for it will be refused.
fn arity(request: Request) -> Option<(RangeInclusive<usize>, RangeInclusive<usize>)> {
    Some(match request {
        Request::GET_FEATURES
        | Request::GET_PROTOCOL_FEATURES
        | Request::GET_QUEUE_NUM
        | Request::SET_OWNER
        | Request::RESET_OWNER
        | Request::RESET_DEVICE
        | Request::GET_MAX_MEM_SLOTS
        | Request::GET_STATUS => (0..=0, 0..=0),
        Request::SET_FEATURES
        | Request::SET_PROTOCOL_FEATURES
        | Request::SET_STATUS
        | Request::SEND_RARP
        | Request::NET_SET_MTU => (8..=8, 0..=0),
        Request::SET_LOG_FD | Request::SET_BACKEND_REQ_FD => (0..=8, 1..=1),
        // Whether a descriptor comes is said by the payload.
        Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR => (8..=8, 0..=1),
        Request::SET_VRING_NUM | Request::SET_VRING_BASE | Request::GET_VRING_BASE | Request::SET_VRING_ENABLE => {
            (8..=8, 0..=0)
        }
        Request::SET_VRING_ADDR => (40..=40, 0..=0),
        Request::SET_LOG_BASE => (16..=16, 1..=1),
        // User-mode Linux sends the whole array, whatever the number of regions.
        Request::SET_MEM_TABLE => (8..=8 + TABLE_REGIONS * RegionDescription::LEN, 0..=TABLE_REGIONS),
        Request::ADD_MEM_REG => (40..=40, 1..=1),
        // "The back-end MAY accept messages with one file descriptor" and closes it.
        Request::REM_MEM_REG => (40..=40, 0..=1),
        Request::GET_CONFIG | Request::SET_CONFIG => (12..=12 + MAX_CONFIG, 0..=0),
        // 20 bytes in the specification, 24 in the C structure of QEMU and DPDK.
        Request::GET_INFLIGHT_FD => (20..=24, 0..=0),
        Request::SET_INFLIGHT_FD => (20..=24, 1..=1),
        _ => return None,
    })
}

impl Message {
    /// Checks size, descriptors and fixed fields. On an error every descriptor is closed.
    pub(crate) fn parse(frame: Frame) -> Result<Message, Reason> {
        let Frame { header: Header { request, .. }, payload, mut fds } = frame;
        let Some((len, descriptors)) = arity(request) else { return Ok(Message::Other) };
        if !len.contains(&payload.len()) {
            return Err(Reason::Payload { got: payload.len(), expected: len });
        }
        if !descriptors.contains(&fds.len()) {
            return Err(Reason::Descriptors { got: fds.len(), expected: descriptors });
        }
        if request == Request::SET_MEM_TABLE {
            return parse_table(&payload, fds);
        }
        let fd = fds.pop();
        parse_one(request, payload, fd)
    }
}

/// `payload` and `fd` have passed [`arity`].
fn parse_one(request: Request, payload: Vec<u8>, fd: Option<OwnedFd>) -> Result<Message, Reason> {
    let p = payload.as_slice();
    let word = |i: usize| u32_at(p, 4 * i);
    let taken = |fd: Option<OwnedFd>| fd.ok_or(Reason::Descriptors { got: 0, expected: 1..=1 });
    Ok(match request {
        Request::GET_FEATURES => Message::GetFeatures,
        Request::SET_FEATURES => Message::SetFeatures(u64_at(p, 0)),
        Request::SET_OWNER => Message::SetOwner,
        Request::RESET_OWNER => Message::ResetOwner,
        Request::SET_LOG_BASE => Message::SetLogBase { size: u64_at(p, 0), offset: u64_at(p, 8), fd: taken(fd)? },
        Request::SET_LOG_FD => Message::SetLogFd(taken(fd)?),
        Request::SET_VRING_NUM => Message::SetVringNum { index: word(0), num: word(1) },
        Request::SET_VRING_ADDR => Message::SetVringAddr { index: word(0), addresses: parse_addresses(p)? },
        Request::SET_VRING_BASE => Message::SetVringBase { index: word(0), base: word(1) },
        Request::GET_VRING_BASE => Message::GetVringBase { index: word(0) },
        Request::SET_VRING_KICK => ring_fd(p, fd).map(|(index, fd)| Message::SetVringKick { index, fd })?,
        Request::SET_VRING_CALL => ring_fd(p, fd).map(|(index, fd)| Message::SetVringCall { index, fd })?,
        Request::SET_VRING_ERR => ring_fd(p, fd).map(|(index, fd)| Message::SetVringErr { index, fd })?,
        Request::GET_PROTOCOL_FEATURES => Message::GetProtocolFeatures,
        Request::SET_PROTOCOL_FEATURES => Message::SetProtocolFeatures(u64_at(p, 0)),
        Request::GET_QUEUE_NUM => Message::GetQueueNum,
        Request::SET_VRING_ENABLE => match word(1) {
            enabled @ 0..=1 => Message::SetVringEnable { index: word(0), enabled: enabled == 1 },
            other => return Err(Reason::value("num", other, "0 or 1")),
        },
        Request::SEND_RARP => Message::SendRarp([p[0], p[1], p[2], p[3], p[4], p[5]]),
        Request::NET_SET_MTU => Message::NetSetMtu(u64_at(p, 0)),
        Request::SET_BACKEND_REQ_FD => Message::SetBackendReqFd(taken(fd)?),
        Request::GET_CONFIG => parse_get_config(p)?,
        Request::SET_CONFIG => parse_set_config(p)?,
        Request::GET_INFLIGHT_FD => Message::GetInflightFd(InflightDescription::parse(p)),
        Request::SET_INFLIGHT_FD => Message::SetInflightFd(InflightDescription::parse(p), taken(fd)?),
        Request::RESET_DEVICE => Message::ResetDevice,
        Request::GET_MAX_MEM_SLOTS => Message::GetMaxMemSlots,
        Request::ADD_MEM_REG => Message::AddMemReg(RegionDescription::parse(&p[8..]), taken(fd)?),
        Request::REM_MEM_REG => Message::RemMemReg(RegionDescription::parse(&p[8..])),
        Request::SET_STATUS => Message::SetStatus(u64_at(p, 0)),
        Request::GET_STATUS => Message::GetStatus,
        _ => Message::Other,
    })
}

/// "The size and ordering of the fds matches the number and ordering of memory regions."
fn parse_table(payload: &[u8], fds: Vec<OwnedFd>) -> Result<Message, Reason> {
    let regions = u32_at(payload, 0) as usize;
    if regions > TABLE_REGIONS {
        return Err(Reason::value("num regions", regions as u32, format!("at most {TABLE_REGIONS}")));
    }
    if fds.len() != regions {
        return Err(Reason::Descriptors { got: fds.len(), expected: regions..=regions });
    }
    let len = 8 + regions * RegionDescription::LEN;
    if payload.len() < len {
        return Err(Reason::Payload { got: payload.len(), expected: len..=len });
    }
    let descriptions = payload[8..len].chunks_exact(RegionDescription::LEN).map(RegionDescription::parse);
    Ok(Message::SetMemTable(descriptions.zip(fds).collect()))
}

/// "A vring address description"; the C structure has no `size`.
fn parse_addresses(p: &[u8]) -> Result<RingAddresses, Reason> {
    let flags = u32_at(p, 4);
    if flags & !VRING_LOG != 0 {
        return Err(Reason::value("flags", flags, "0 or 1 (VHOST_VRING_F_LOG)"));
    }
    Ok(RingAddresses {
        descriptor: UserAddress(u64_at(p, 8)),
        device: UserAddress(u64_at(p, 16)),
        driver: UserAddress(u64_at(p, 24)),
        used_log: (flags & VRING_LOG != 0).then(|| GuestAddress(u64_at(p, 32))),
    })
}

/// "Bits (0-7) of the payload contain the vring index. Bit 8 is the invalid FD flag."
fn ring_fd(p: &[u8], fd: Option<OwnedFd>) -> Result<(u32, Option<OwnedFd>), Reason> {
    let value = u64_at(p, 0);
    if value & !(NOFD | 0xff) != 0 {
        return Err(Reason::value("payload", value, "index in bits 0-7, NOFD in bit 8"));
    }
    let expected = usize::from(value & NOFD == 0);
    let got = usize::from(fd.is_some());
    if got != expected {
        return Err(Reason::Descriptors { got, expected: expected..=expected });
    }
    Ok(((value & 0xff) as u32, fd))
}

fn parse_get_config(p: &[u8]) -> Result<Message, Reason> {
    let (offset, size, flags) = (u32_at(p, 0), u32_at(p, 4), u32_at(p, 8));
    // What follows the header is room for the reply; not every front-end sends it.
    if size as usize > MAX_CONFIG {
        return Err(Reason::value("size", size, format!("at most {MAX_CONFIG}")));
    }
    Ok(Message::GetConfig { offset, size, flags })
}

fn parse_set_config(p: &[u8]) -> Result<Message, Reason> {
    let (offset, size, flags) = (u32_at(p, 0), u32_at(p, 4), u32_at(p, 8));
    if size as usize != p.len() - 12 {
        return Err(Reason::value("size", size, format!("the {} bytes that follow", p.len() - 12)));
    }
    Ok(Message::SetConfig { offset, flags, bytes: p[12..].to_vec() })
}

/// "All numbers are in the machine native byte order." Offsets are inside by [`arity`].
fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_ne_bytes(array_at(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(array_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(array_at(bytes, offset))
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("a slice of N bytes")
}
