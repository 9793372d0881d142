//! Where a target's disk keeps its bytes.

use parking_lot::RwLock;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a namespace or logical unit. The caller checks ranges against [`len`](Store::len); a store that shrank meanwhile
/// answers an error.
pub trait Store: Send + Sync + Debug {
    /// The number of bytes now.
    fn len(&self) -> u64;
    /// Whether the store has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads at `offset`.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes at `offset`.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes completed writes durable.
    fn flush(&self) -> io::Result<()>;
    /// Grows the store with zeros, or shrinks it.
    fn resize(&self, len: u64) -> io::Result<()>;
    /// Makes a range read as zero.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let block = [0; 64 << 10];
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let run = (end - at).min(block.len() as u64);
            self.write(at, &block[..run as usize])?;
            at += run;
        }
        Ok(())
    }
}

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore(RwLock<Vec<u8>>);

impl MemoryStore {
    /// A store of `len` zeros.
    pub fn new(len: usize) -> MemoryStore {
        MemoryStore(RwLock::new(vec![0; len]))
    }
}

fn range(offset: u64, len: usize, size: usize) -> io::Result<Range<usize>> {
    let start = usize::try_from(offset).ok();
    let end = start.and_then(|start| start.checked_add(len)).filter(|&end| end <= size);
    start.zip(end).map(|(start, end)| start..end).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

impl Store for MemoryStore {
    fn len(&self) -> u64 {
        self.0.read().len() as u64
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let memory = self.0.read();
        bytes.copy_from_slice(&memory[range(offset, bytes.len(), memory.len())?]);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut memory = self.0.write();
        let size = memory.len();
        memory[range(offset, bytes.len(), size)?].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        self.0.write().resize(len as usize, 0);
        Ok(())
    }
}

/// A store in a file.
#[derive(Debug)]
pub struct FileStore(File);

impl FileStore {
    /// Serves the file at `path`.
    pub fn open(path: &Path, read_only: bool) -> io::Result<FileStore> {
        Ok(FileStore(File::options().read(true).write(!read_only).open(path)?))
    }
}

impl Store for FileStore {
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}
