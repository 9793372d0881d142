//! From a descriptor chain to a block request (virtio 1.3, 5.2.6).

use crate::DeviceFault;
use block::{Geometry, Op, Request};
use guest_memory::{GuestAddress, GuestMemory};
use std::sync::Arc;
use virtio_spec::blk::{self, HEADER_LEN, Header, RANGE_LEN, Range, SECTOR_SIZE, request, status};
use virtqueue::{Descriptor, DescriptorChain};

/// What a chain asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// The request is filled in: for the backend.
    Submit,
    /// The id string, which needs no backend. The buffers of the request are where it goes.
    GetId,
    /// Nothing to be done but to answer this.
    Answer(u8),
}

/// A parsed chain: what to do, where the answer goes, how many bytes are written if it succeeds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) parsed: Parsed,
    pub(crate) status_at: GuestAddress,
    pub(crate) written: u32,
}

/// Reads header and payload of `chain`, which lies in `memory`, into `out`, whose buffers are empty and of the same memory. A
/// fault means that the chain cannot even be answered.
#[inline(always)]
pub(crate) fn parse(
    chain: &DescriptorChain,
    memory: &Arc<GuestMemory>,
    geometry: &Geometry,
    out: &mut Request,
) -> Result<Outcome, DeviceFault> {
    let status_at = status_address(chain.writable()).ok_or(DeviceFault::Chain("a status byte"))?;
    let header = read_header(memory, chain.readable())?;
    let answer = |code| Ok(Outcome { parsed: Parsed::Answer(code), status_at, written: 1 });
    match header.kind {
        request::IN => {
            push_writable(memory, chain.writable(), out)?;
            out.op = Op::Read;
        }
        request::OUT if geometry.read_only => return answer(status::IOERR),
        request::OUT => {
            push_readable(memory, chain.readable(), out)?;
            out.op = Op::Write;
        }
        request::FLUSH => {
            (out.op, out.offset, out.len) = (Op::Flush, 0, 0);
            return Ok(Outcome { parsed: Parsed::Submit, status_at, written: 1 });
        }
        request::GET_ID => {
            push_writable(memory, chain.writable(), out)?;
            let written = out.buffers.len().min(blk::ID_LEN as u64) as u32 + 1;
            return Ok(Outcome { parsed: Parsed::GetId, status_at, written });
        }
        request::DISCARD | request::WRITE_ZEROES if geometry.read_only => return answer(status::IOERR),
        request::DISCARD | request::WRITE_ZEROES => {
            push_readable(memory, chain.readable(), out)?;
            return match read_range(header.kind, geometry, out)? {
                Ok(()) => Ok(Outcome { parsed: Parsed::Submit, status_at, written: 1 }),
                Err(code) => answer(code),
            };
        }
        _ => return answer(status::UNSUPP),
    }
    out.len = out.buffers.len();
    match byte_range(header.sector, out.len, geometry) {
        Some(offset) if out.len <= u64::from(geometry.max_io_size) => out.offset = offset,
        _ => return answer(status::IOERR),
    }
    let written = if out.op == Op::Read { out.len as u32 + 1 } else { 1 };
    Ok(Outcome { parsed: Parsed::Submit, status_at, written })
}

/// The status is the last byte of what the device may write.
#[inline(always)]
fn status_address(writable: &[Descriptor]) -> Option<GuestAddress> {
    let last = writable.last()?;
    last.address.0.checked_add(u64::from(last.len.checked_sub(1)?)).map(GuestAddress)
}

/// The header is the first 16 bytes, however they are cut into descriptors (2.7.4, message framing).
#[inline(always)]
fn read_header(memory: &GuestMemory, readable: &[Descriptor]) -> Result<Header, DeviceFault> {
    let mut bytes = [0; HEADER_LEN];
    let mut done = 0;
    for d in readable {
        let run = (d.len as usize).min(HEADER_LEN - done);
        memory.read(d.address, &mut bytes[done..done + run])?;
        done += run;
        if done == HEADER_LEN {
            return Ok(Header::parse(&bytes));
        }
    }
    Err(DeviceFault::Chain("a whole header"))
}

/// Adds the payload that the device writes: all but the status byte.
#[inline(always)]
fn push_writable(memory: &Arc<GuestMemory>, writable: &[Descriptor], out: &mut Request) -> Result<(), DeviceFault> {
    let (last, rest) = writable.split_last().expect("there is a status byte");
    for d in rest {
        memory.append_buffers(d.address, u64::from(d.len), &mut out.buffers)?;
    }
    Ok(memory.append_buffers(last.address, u64::from(last.len) - 1, &mut out.buffers)?)
}

/// Adds the payload that the device reads: all but the header.
#[inline(always)]
fn push_readable(memory: &Arc<GuestMemory>, readable: &[Descriptor], out: &mut Request) -> Result<(), DeviceFault> {
    let mut skip = HEADER_LEN as u64;
    for d in readable {
        let head = skip.min(u64::from(d.len));
        skip -= head;
        let address = d.address.0.wrapping_add(head);
        memory.append_buffers(GuestAddress(address), u64::from(d.len) - head, &mut out.buffers)?;
    }
    Ok(())
}

/// The single segment of a discard or write zeroes, or the status to refuse it with. Empties the buffers.
fn read_range(kind: u32, geometry: &Geometry, out: &mut Request) -> Result<Result<(), u8>, DeviceFault> {
    let mut bytes = [0; RANGE_LEN];
    if out.buffers.len() != RANGE_LEN as u64 {
        return Ok(Err(status::IOERR)); // max_discard_seg and max_write_zeroes_seg are 1
    }
    out.buffers.read(0, &mut bytes).expect("the buffers have that many bytes");
    out.buffers.clear();
    let range = Range::parse(&bytes);
    let unmap = range.flags & blk::WRITE_ZEROES_UNMAP != 0;
    // "the device MUST set status to UNSUPP if any unknown flag is set", and for a discard with the unmap flag (5.2.6.2).
    if range.flags & !blk::WRITE_ZEROES_UNMAP != 0 || (kind == request::DISCARD && unmap) {
        return Ok(Err(status::UNSUPP));
    }
    let (op, limit) = match kind {
        request::DISCARD => (Op::Discard, geometry.max_discard_blocks),
        _ => (Op::WriteZeroes { unmap }, geometry.max_write_zeroes_blocks),
    };
    if limit == 0 {
        return Ok(Err(status::UNSUPP));
    }
    (out.op, out.len) = (op, u64::from(range.sectors) * SECTOR_SIZE);
    match byte_range(range.sector, out.len, geometry) {
        Some(offset) if out.len <= u64::from(limit) * u64::from(geometry.block_size) => out.offset = offset,
        _ => return Ok(Err(status::IOERR)),
    }
    Ok(Ok(()))
}

/// The byte offset of a range that lies on the disk in whole blocks.
#[inline(always)]
fn byte_range(sector: u64, len: u64, geometry: &Geometry) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_SIZE)?;
    let mask = u64::from(geometry.block_size) - 1;
    let end = offset.checked_add(len)?;
    (end <= geometry.size_bytes() && (offset | len) & mask == 0 && len > 0).then_some(offset)
}
