//! Where a target's disk keeps its bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::RwLock;

/// Bytes behind a logical unit. Offsets and lengths are checked against [`len`](Store::len) by the caller.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Bytes.
    fn len(&self) -> u64;
    /// Fills `bytes` from `offset`.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes `bytes` at `offset`.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes all writes durable.
    fn flush(&self) -> io::Result<()>;
    /// Makes it longer or shorter.
    fn resize(&self, len: u64) -> io::Result<()>;
    /// Whether it has no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bytes in memory.
#[derive(Debug)]
pub struct MemoryStore(RwLock<Vec<u8>>);

impl MemoryStore {
    /// `len` zeros.
    pub fn new(len: usize) -> MemoryStore {
        MemoryStore(RwLock::new(vec![0; len]))
    }

    fn range(bytes: &[u8], offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        match start.checked_add(len) {
            Some(end) if end <= bytes.len() => Ok(start..end),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Store for MemoryStore {
    fn len(&self) -> u64 {
        self.0.read().expect("no holder panics").len() as u64
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let memory = self.0.read().expect("no holder panics");
        let range = MemoryStore::range(&memory, offset, bytes.len())?;
        bytes.copy_from_slice(&memory[range]);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut memory = self.0.write().expect("no holder panics");
        let range = MemoryStore::range(&memory, offset, bytes.len())?;
        memory[range].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn resize(&self, len: u64) -> io::Result<()> {
        self.0.write().expect("no holder panics").resize(len as usize, 0);
        Ok(())
    }
}

/// Bytes in a file.
#[derive(Debug)]
pub struct FileStore(File);

impl FileStore {
    /// Over an open file.
    pub fn new(file: File) -> FileStore {
        FileStore(file)
    }
}

impl Store for FileStore {
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |m| m.len())
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
