//! The disk: read-only bytes in memory.

use crate::Seed;
use crate::fat::{SECTOR, volume};
use block::{Bdev, BlockChannel, BlockError, BlockRequest, Completions, Geometry, Identity, Op, Status};
use clock::Cycles;
use std::sync::Arc;
use uuid::Uuid;

/// The label that cloud-init looks for (cloud-init, "NoCloud": a vfat or iso9660 file system labelled `cidata` or `CIDATA`).
const LABEL: [u8; 11] = *b"cidata     ";

/// A read-only disk with a seed on it.
#[derive(Debug)]
pub struct Cidata {
    identity: Identity,
    image: Arc<[u8]>,
    instance_id: String,
}

impl Cidata {
    /// Makes the disk `name` of a checked seed.
    pub fn create(name: &str, seed: &Seed) -> Result<Arc<Cidata>, BlockError> {
        let mut files = vec![("user-data", seed.user_data.as_str()), ("meta-data", seed.meta_data.as_str())];
        files.extend(seed.network_config.as_deref().map(|text| ("network-config", text)));
        let image = volume(LABEL, &files).map_err(|source| BlockError::Io {
            what: "make the file system of",
            path: name.to_owned(),
            source,
        })?;
        let uuid = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes());
        let identity = Identity { name: name.to_owned(), product_name: "cidata disk", uuid };
        Ok(Arc::new(Cidata { identity, image: image.into(), instance_id: seed.instance_id().to_owned() }))
    }

    /// The `instance-id` that the guest will see.
    pub fn instance_id(&self) -> &str {
        &self.instance_id
    }
}

impl Bdev for Cidata {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn geometry(&self) -> Geometry {
        Geometry {
            block_size: SECTOR as u32,
            num_blocks: (self.image.len() / SECTOR) as u64,
            physical_block_size: SECTOR as u32,
            optimal_io_size: 0,
            max_io_size: u32::MAX,
            max_discard_blocks: 0,
            max_write_zeroes_blocks: 0,
            compare: false,
            read_only: true,
            write_cache: false,
        }
    }

    fn open_channel(&self) -> Result<Box<dyn BlockChannel>, BlockError> {
        Ok(Box::new(Channel(self.image.clone())))
    }
}

struct Channel(Arc<[u8]>);

impl BlockChannel for Channel {
    fn submit(&mut self, request: BlockRequest, done: &mut Completions) {
        let status = match request.op {
            Op::Read => read(&self.0, &request),
            Op::Flush => Status::Ok,
            Op::Compare => Status::Unsupported,
            Op::Write | Op::Discard | Op::WriteZeroes { .. } => Status::IoError,
        };
        request.complete(done, status);
    }

    fn poll(&mut self, _: Cycles, _: &mut Completions) -> usize {
        0
    }

    fn outstanding(&self) -> usize {
        0
    }
}

fn read(image: &[u8], request: &BlockRequest) -> Status {
    let range = usize::try_from(request.offset).ok().zip(usize::try_from(request.len).ok());
    let bytes = range.and_then(|(at, len)| image.get(at..at.checked_add(len)?));
    match bytes.map(|bytes| request.buffers.write(0, bytes)) {
        Some(Ok(())) => Status::Ok,
        _ => Status::IoError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Instance;
    use block::Request;
    use memory::IoBuffers;
    use std::process::Command;

    fn disk(user: &str) -> Arc<Cidata> {
        let network = "version: 2\nethernets: {e0: {dhcp4: true}}";
        let seed = Seed::new("seed0", user.into(), "a: 1".into(), Some(network.into()), Instance::OfName).unwrap();
        Cidata::create("seed0", &seed).unwrap()
    }

    /// All blocks, read through the channel.
    fn content(disk: &Cidata) -> Vec<u8> {
        let len = disk.geometry().size_bytes();
        let mut request = Request::new(IoBuffers::anonymous(len as usize).unwrap());
        request.op = Op::Read;
        request.len = len;
        let mut done = Completions::default();
        disk.open_channel().unwrap().submit(BlockRequest::new(request), &mut done);
        let completed = done.drain().next().unwrap();
        assert_eq!(completed.status, Status::Ok);
        let mut bytes = vec![0; len as usize];
        completed.request.buffers.read(0, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn writes_fail_and_ranges_off_the_disk_too() {
        let disk = disk("");
        let mut channel = disk.open_channel().unwrap();
        for (op, offset) in [(Op::Write, 0), (Op::Read, disk.geometry().size_bytes()), (Op::Read, u64::MAX)] {
            let mut request = Request::new(IoBuffers::anonymous(512).unwrap());
            request.op = op;
            request.offset = offset;
            request.len = 512;
            let mut done = Completions::default();
            channel.submit(BlockRequest::new(request), &mut done);
            assert_eq!(done.drain().next().unwrap().status, Status::IoError);
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_disk() {
        assert_eq!(content(&disk("#!/bin/sh")), content(&disk("#!/bin/sh")));
        assert_ne!(content(&disk("#!/bin/sh")), content(&disk("#!/bin/bash")));
    }

    #[test]
    fn a_seed_as_large_as_allowed_fits() {
        let user = format!("#!{}", "x".repeat(crate::MAX_FILE_LEN - 2));
        assert!(content(&disk(&user)).len() > crate::MAX_FILE_LEN);
    }

    /// blkid and mtools, of other makers, find label and files.
    #[test]
    fn blkid_and_mtools_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed.img");
        std::fs::write(&path, content(&disk("#cloud-config\nlocale: C\n"))).unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).arg(&path).output();
            output.ok().map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        };
        let Some(label) = run("/usr/sbin/blkid", &["-p", "-o", "value", "-s", "LABEL"]) else {
            eprintln!("skipped: blkid is not installed");
            return;
        };
        assert_eq!(label.trim(), "cidata");
        assert_eq!(run("/usr/sbin/blkid", &["-p", "-o", "value", "-s", "TYPE"]).unwrap().trim(), "vfat");
        let Some(listing) = run("mdir", &["-b", "-i"]) else {
            eprintln!("skipped: mtools is not installed");
            return;
        };
        for file in ["user-data", "meta-data", "network-config"] {
            assert!(listing.contains(file), "{listing}");
        }
        let user = Command::new("mtype").arg("-i").arg(&path).arg("::user-data").output().unwrap();
        assert_eq!(user.stdout, b"#cloud-config\nlocale: C\n");
    }
}
