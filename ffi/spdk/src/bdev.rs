//! A block device of SPDK's as a disk.

use crate::Spdk;
use crate::channel::{Channel, MAX_IO};
use crate::descriptor::Descriptor;
use block::limits::{MAX_BLOCK_SIZE, MAX_DISK_BYTES, MIN_BLOCK_SIZE};
use block::{Bdev, BlockChannel, BlockError, Geometry, Identity};
use parking_lot::Mutex;
use spdk_sys as sys;
use std::ffi::{CString, c_void};
use std::io;
use std::ptr::null_mut;
use std::sync::Arc;
use uuid::Uuid;

/// A block device of SPDK.
#[derive(Debug)]
pub struct SpdkBdev {
    spdk: Arc<Spdk>,
    name: CString,
    read_only: bool,
    identity: Identity,
    geometry: Mutex<Geometry>,
}

impl SpdkBdev {
    /// The block device that SPDK knows by this name.
    pub fn open(spdk: &Arc<Spdk>, name: &str, read_only: bool) -> Result<Arc<SpdkBdev>, BlockError> {
        let Ok(c_name) = CString::new(name) else {
            return Err(invalid("name", format!("{name:?}"), "no NUL in it"));
        };
        let (uuid, geometry) = look(spdk, &c_name, read_only)?;
        let identity = Identity { name: name.into(), product_name: "SPDK bdev", uuid };
        let (spdk, geometry) = (spdk.clone(), Mutex::new(geometry));
        Ok(Arc::new(SpdkBdev { spdk, name: c_name, read_only, identity, geometry }))
    }
}

impl Bdev for SpdkBdev {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn geometry(&self) -> Geometry {
        *self.geometry.lock()
    }

    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        let write = !self.geometry().read_only;
        Ok(Channel::open(&self.spdk, &self.name, write).map_err(|source| failed(&self.identity.name, source))?)
    }

    fn rescan(&self) -> Result<bool, BlockError> {
        let (uuid, new) = look(&self.spdk, &self.name, self.read_only)?;
        let mut geometry = self.geometry.lock();
        if uuid != self.identity.uuid || new.block_size != geometry.block_size {
            return Err(invalid("name", self.identity.name.clone(), "the same device as when it was opened"));
        }
        Ok(std::mem::replace(&mut *geometry, new) != new)
    }
}

/// Reads the identity and the geometry of a device.
fn look(spdk: &Spdk, name: &CString, read_only: bool) -> Result<(Uuid, Geometry), BlockError> {
    let own_name = name.clone();
    let look = move || -> io::Result<_> {
        // SAFETY: `Spdk::call` runs this within an SPDK thread; `ignore` does not use its context.
        let device = unsafe { Descriptor::open(&own_name, false, ignore, null_mut())? };
        Ok(describe(&device, read_only))
    };
    let described = spdk.call(look).and_then(|looked| looked);
    described.map_err(|source| failed(&name.to_string_lossy(), source))?
}

fn describe(device: &Descriptor, read_only: bool) -> Result<(Uuid, Geometry), BlockError> {
    let bdev = device.bdev();
    // SAFETY: open-device.
    let block_size = unsafe { sys::spdk_bdev_get_block_size(bdev) };
    // SAFETY: open-device.
    let physical = unsafe { sys::spdk_bdev_get_physical_block_size(bdev) };
    // SAFETY: open-device.
    let metadata = unsafe { sys::spdk_bdev_get_md_size(bdev) };
    // SAFETY: open-device.
    let write_unit = unsafe { sys::spdk_bdev_get_write_unit_size(bdev) };
    // SAFETY: open-device.
    let write_cache = unsafe { sys::spdk_bdev_has_write_cache(bdev) };
    // SAFETY: open-device.
    let uuid = unsafe { sys::spdk_bdev_get_uuid(bdev) };
    // SAFETY: a device has a UUID, which stays as long as the device.
    let uuid = unsafe { &(*uuid).u };
    // SAFETY: any bytes are a valid UUID.
    let uuid = Uuid::from_bytes(unsafe { uuid.raw });
    if !block_size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
        return Err(invalid("block size", block_size, "a power of two from 512 to 65536"));
    }
    if (metadata, write_unit) != (0, 1) {
        let got = format!("{metadata} bytes of metadata, {write_unit} blocks");
        return Err(invalid("blocks", got, "no metadata, and writes of single blocks"));
    }
    let num_blocks = device.num_blocks();
    if !(1..=MAX_DISK_BYTES / u64::from(block_size)).contains(&num_blocks) {
        return Err(invalid("num_blocks", num_blocks, "1 to 2^63 bytes"));
    }
    let unmap = device.supports(sys::SPDK_BDEV_IO_TYPE_UNMAP);
    let geometry = Geometry {
        block_size,
        num_blocks,
        physical_block_size: if physical.is_power_of_two() { physical.max(block_size) } else { block_size },
        optimal_io_size: 0,
        max_io_size: MAX_IO as u32,
        max_discard_blocks: if unmap { u32::MAX } else { 0 },
        // SPDK writes zeros itself where the device has no command for it.
        max_write_zeroes_blocks: u32::MAX,
        compare: false,
        read_only: read_only || !device.supports(sys::SPDK_BDEV_IO_TYPE_WRITE),
        write_cache,
    };
    Ok((uuid, geometry))
}

fn invalid(field: &'static str, got: impl ToString, expected: &str) -> BlockError {
    invalid::Invalid::new(field, got.to_string(), expected).into()
}

fn failed(name: &str, source: io::Error) -> BlockError {
    BlockError::Io { what: "open in SPDK", path: name.into(), source }
}

unsafe extern "C" fn ignore(_: sys::spdk_bdev_event_type, _: *mut sys::spdk_bdev, _: *mut c_void) {}
