//! Copying an image onto a disk.

use super::StoragePlane;
use super::bdevs::{Holder, Use};
use super::disk_io::DiskIo;
use crate::rpc::method::{Handler, Row};
use api::RpcError;
use api::image::{ImageGetProgress, ImageProgress, ImageWrite};
use block::Bdev;
use parking_lot::{Mutex, MutexGuard};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) fn rows() -> Vec<Row> {
    vec![Row::of::<ImageWrite>(), Row::of::<ImageGetProgress>()]
}

/// Bytes copied, or verified, at once.
const PIECE: usize = 1 << 20;

/// Copies that run, and the last one of each disk that ended.
#[derive(Default)]
pub(crate) struct Copies(Mutex<Vec<Arc<Copy>>>);

struct Copy {
    disk: String,
    file: String,
    total: u64,
    /// Verify what was written.
    verify: bool,
    copied: AtomicU64,
    verified: AtomicU64,
    /// `None` while it runs.
    ended: Mutex<Option<Result<(), CopyError>>>,
}

/// Why a copy failed.
#[derive(Clone, Debug, thiserror::Error)]
enum CopyError {
    /// The image could not be read, or the disk not be written or read.
    #[error("{0}")]
    Io(String),
    /// The disk does not hold what was written.
    #[error("the disk does not hold what was written to the {len} bytes at {at}")]
    Differs { at: u64, len: usize },
}

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> CopyError {
        CopyError::Io(error.to_string())
    }
}

impl Copies {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Copy>>> {
        self.0.lock()
    }
}

impl Handler for ImageWrite {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<bool, RpcError> {
        let file = File::open(&self.file).map_err(|e| RpcError::from_io(&e, format!("file {}: {e}", self.file)))?;
        let metadata = file.metadata().map_err(|e| RpcError::from_io(&e, format!("file {}: {e}", self.file)))?;
        if !metadata.is_file() {
            return Err(RpcError::invalid("file", &self.file, "a regular file"));
        }
        let total = metadata.len();
        let holder = Holder::Copy(self.file.clone());
        let disk = plane.bdevs.hold(&self.name, holder.clone(), Use::Exclusive)?;
        let room = disk.bdev.geometry().size_bytes();
        if total > room {
            plane.bdevs.release(disk.name(), &holder);
            let got = format!("{total} bytes");
            return Err(RpcError::invalid("file", got, format!("at most the {room} bytes of {}", disk.name())));
        }
        let name = disk.name().to_owned();
        let copy = Arc::new(Copy {
            disk: name.clone(),
            file: self.file.clone(),
            total,
            verify: self.verify,
            copied: AtomicU64::new(0),
            verified: AtomicU64::new(0),
            ended: Mutex::default(),
        });
        let mut copies = plane.copies.lock();
        copies.retain(|other| other.disk != name);
        copies.push(copy.clone());
        drop(copies);
        let plane = plane.clone();
        tokio::task::spawn_blocking(move || {
            let result = run(disk.bdev.as_ref(), &file, &copy);
            plane.bdevs.release(&copy.disk, &holder);
            *copy.ended.lock() = Some(result);
        });
        Ok(true)
    }
}

fn run(bdev: &dyn Bdev, file: &File, copy: &Copy) -> Result<(), CopyError> {
    let geometry = bdev.geometry();
    let block = geometry.block_size as usize;
    let image = Image { file, len: copy.total, block, piece: PIECE.min(geometry.max_io_size as usize / block * block) };
    let mut io = DiskIo::open(bdev, image.piece)?;
    image.each_piece(&copy.copied, |at, bytes| Ok(io.write(at, bytes)?))?;
    io.flush()?;
    if !copy.verify {
        return Ok(());
    }
    let mut back = vec![0; image.piece];
    image.each_piece(&copy.verified, |at, bytes| {
        let same = if geometry.compare {
            io.compare(at, bytes)?
        } else {
            let back = &mut back[..bytes.len()];
            io.read(at, back)?;
            back == bytes
        };
        if same { Ok(()) } else { Err(CopyError::Differs { at, len: bytes.len() }) }
    })
}

/// An image file, in pieces that a disk takes.
struct Image<'a> {
    file: &'a File,
    len: u64,
    /// Bytes a block of the disk.
    block: usize,
    /// Bytes a piece, whole blocks.
    piece: usize,
}

impl Image<'_> {
    /// Hands out each piece with its place, and counts in `done`. The last block is filled up with zeros.
    fn each_piece(
        &self,
        done: &AtomicU64,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let mut bytes = vec![0; self.piece];
        let mut at = 0;
        while at < self.len {
            let len = (self.len - at).min(self.piece as u64) as usize;
            self.file.read_exact_at(&mut bytes[..len], at)?;
            let whole = len.next_multiple_of(self.block);
            bytes[len..whole].fill(0);
            take(at, &bytes[..whole])?;
            at += len as u64;
            done.store(at, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Handler for ImageGetProgress {
    type Plane = StoragePlane;

    async fn call(&mut self, plane: &Arc<StoragePlane>) -> Result<ImageProgress, RpcError> {
        let copies = plane.copies.lock();
        let copy = copies.iter().find(|copy| copy.disk == self.name);
        let copy = copy.ok_or_else(|| RpcError::no_such("copy onto the disk", &self.name))?;
        let ended = copy.ended.lock().clone();
        let error = ended.as_ref().and_then(|ended| ended.as_ref().err());
        Ok(ImageProgress {
            file: copy.file.clone(),
            total: copy.total,
            copied: copy.copied.load(Ordering::Relaxed),
            verified: copy.verify.then(|| copy.verified.load(Ordering::Relaxed)),
            done: ended.is_some(),
            error: error.map(CopyError::to_string),
            differs_at: match error {
                Some(CopyError::Differs { at, .. }) => Some(*at),
                _ => None,
            },
        })
    }
}
