//! Copying an image onto a disk.

use crate::Control;
use crate::bdevs::{Holder, Use};
use crate::disk_io::DiskIo;
use crate::rpc::RpcError;
use crate::rpc::method::{Entry, Method};
use block::Bdev;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

pub(super) fn methods() -> Vec<Entry> {
    vec![Entry::of::<BdevImageWrite>(), Entry::of::<BdevImageGetProgress>()]
}

/// Bytes copied at once.
const CHUNK: usize = 1 << 20;

/// Copies that run, and the last one of each disk that ended.
#[derive(Default)]
pub(crate) struct Copies(Mutex<Vec<Arc<Copy>>>);

struct Copy {
    disk: String,
    file: String,
    total: u64,
    copied: AtomicU64,
    /// `None` while it runs.
    ended: Mutex<Option<Result<(), String>>>,
}

impl Copies {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Copy>>> {
        self.0.lock().expect("no panic under this lock")
    }
}

/// Begins to copy a file onto a disk that nothing else holds. `bdev_image_get_progress` tells how far it is.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevImageWrite {
    /// The disk.
    name: String,
    /// The raw image, on the daemon's side; at most as large as the disk.
    file: String,
}

impl Method for BdevImageWrite {
    const NAME: &'static str = "bdev_image_write";
    type Output = bool;

    async fn call(&mut self, control: &Arc<Control>) -> Result<bool, RpcError> {
        let file = File::open(&self.file).map_err(|e| RpcError::from_io(&e, format!("file {}: {e}", self.file)))?;
        let metadata = file.metadata().map_err(|e| RpcError::from_io(&e, format!("file {}: {e}", self.file)))?;
        if !metadata.is_file() {
            return Err(RpcError::invalid("file", &self.file, "a regular file"));
        }
        let total = metadata.len();
        let holder = Holder::Copy(self.file.clone());
        let disk = control.bdevs.hold(&self.name, holder.clone(), Use::Exclusive)?;
        let room = disk.bdev.geometry().size_bytes();
        if total > room {
            control.bdevs.release(disk.name(), &holder);
            let got = format!("{total} bytes");
            return Err(RpcError::invalid("file", got, format!("at most the {room} bytes of {}", disk.name())));
        }
        let copied = AtomicU64::new(0);
        let name = disk.name().to_owned();
        let copy =
            Arc::new(Copy { disk: name.clone(), file: self.file.clone(), total, copied, ended: Mutex::default() });
        let mut copies = control.copies.lock();
        copies.retain(|other| other.disk != name);
        copies.push(copy.clone());
        drop(copies);
        let control = control.clone();
        tokio::task::spawn_blocking(move || {
            let result = run(disk.bdev.as_ref(), file, &copy).map_err(|error| error.to_string());
            control.bdevs.release(&copy.disk, &holder);
            *copy.ended.lock().expect("no panic under this lock") = Some(result);
        });
        Ok(true)
    }
}

fn run(bdev: &dyn Bdev, mut file: File, copy: &Copy) -> io::Result<()> {
    let block = bdev.geometry().block_size as usize;
    let chunk = CHUNK.min(bdev.geometry().max_io_size as usize / block * block);
    let mut io = DiskIo::open(bdev, chunk)?;
    let mut bytes = vec![0; chunk];
    let mut at = 0;
    while at < copy.total {
        let len = (copy.total - at).min(chunk as u64) as usize;
        file.read_exact(&mut bytes[..len])?;
        // The last block is filled up with zeros.
        let whole = len.next_multiple_of(block);
        bytes[len..whole].fill(0);
        io.write(at, &bytes[..whole])?;
        at += len as u64;
        copy.copied.store(at, Ordering::Relaxed);
    }
    io.flush()
}

/// Tells how far the copying onto a disk is.
#[derive(Serialize, Deserialize, JsonSchema)]
struct BdevImageGetProgress {
    /// The disk.
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct Progress {
    /// The image.
    file: String,
    /// Bytes of the image.
    total: u64,
    /// Bytes copied.
    copied: u64,
    /// It has ended.
    done: bool,
    /// Why it failed.
    error: Option<String>,
}

impl Method for BdevImageGetProgress {
    const NAME: &'static str = "bdev_image_get_progress";
    type Output = Progress;

    async fn call(&mut self, control: &Arc<Control>) -> Result<Progress, RpcError> {
        let copies = control.copies.lock();
        let copy = copies.iter().find(|copy| copy.disk == self.name);
        let copy = copy.ok_or_else(|| RpcError::no_such("copy onto the disk", &self.name))?;
        let ended = copy.ended.lock().expect("no panic under this lock").clone();
        Ok(Progress {
            file: copy.file.clone(),
            total: copy.total,
            copied: copy.copied.load(Ordering::Relaxed),
            done: ended.is_some(),
            error: ended.and_then(Result::err),
        })
    }
}
