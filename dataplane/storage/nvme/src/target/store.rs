//! What a namespace of the target is made of.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::RwLock;

/// Bytes of a namespace. Ranges are checked by the caller against [`len`](Store::len); a store that shrank answers an error.
pub trait Store: Send + Sync + Debug {
    /// Bytes it has now.
    fn len(&self) -> u64;
    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads at `offset`.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes at `offset`.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes completed writes durable.
    fn flush(&self) -> io::Result<()>;
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

/// A namespace in memory.
#[derive(Debug)]
pub struct MemoryStore(RwLock<Vec<u8>>);

impl MemoryStore {
    /// `len` zeros.
    pub fn new(len: usize) -> MemoryStore {
        MemoryStore(RwLock::new(vec![0; len]))
    }

    /// Grows with zeros, or shrinks.
    pub fn resize(&self, len: usize) {
        self.0.write().unwrap_or_else(|e| e.into_inner()).resize(len, 0);
    }
}

fn range(offset: u64, len: usize, size: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok();
    let end = start.and_then(|start| start.checked_add(len)).filter(|&end| end <= size);
    start.zip(end).map(|(start, end)| start..end).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

impl Store for MemoryStore {
    fn len(&self) -> u64 {
        self.0.read().unwrap_or_else(|e| e.into_inner()).len() as u64
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let memory = self.0.read().unwrap_or_else(|e| e.into_inner());
        bytes.copy_from_slice(&memory[range(offset, bytes.len(), memory.len())?]);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut memory = self.0.write().unwrap_or_else(|e| e.into_inner());
        let size = memory.len();
        memory[range(offset, bytes.len(), size)?].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A namespace in a file.
#[derive(Debug)]
pub struct FileStore {
    file: File,
    read_only: bool,
}

impl FileStore {
    /// Serves the file at `path`.
    pub fn open(path: &Path, read_only: bool) -> io::Result<FileStore> {
        Ok(FileStore { file: File::options().read(true).write(!read_only).open(path)?, read_only })
    }

    /// Whether it was opened to be read only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }
}

impl Store for FileStore {
    fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
