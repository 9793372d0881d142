use super::*;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

fn memfd(len: u64) -> std::fs::File {
    // SAFETY: `memfd_create` gives a new descriptor, which nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) };
    let file = std::fs::File::from(fd);
    file.set_len(len).unwrap();
    file
}

fn region(guest: u64, user: u64, len: u64) -> Arc<Region> {
    let file = memfd(len);
    let mapping = Mapping::shared(file.as_fd(), 0, len).unwrap();
    Arc::new(Region::new(GuestAddress(guest), UserAddress(user), mapping).unwrap())
}

#[test]
fn a_range_may_cross_regions_that_touch() {
    let memory = GuestMemory::new(vec![region(0x2000, 0, 0x1000), region(0x1000, 0x9000, 0x1000)]).unwrap();
    memory.write(GuestAddress(0x1ffe), &[1, 2, 3, 4]).unwrap();
    let mut back = [0; 4];
    memory.read(GuestAddress(0x1ffe), &mut back).unwrap();
    assert_eq!(back, [1, 2, 3, 4]);
    let memory = Arc::new(memory);
    let mut buffers = IoBuffers::new(memory.clone(), 4);
    memory.append_buffers(GuestAddress(0x1ffe), 4, &mut buffers).unwrap();
    assert_eq!(buffers.iovecs().len(), 2);
    buffers.read(1, &mut back[..2]).unwrap();
    assert_eq!(back[..2], [2, 3]);
}

#[test]
fn a_range_outside_is_an_error() {
    let memory = Arc::new(GuestMemory::new(vec![region(0x1000, 0, 0x1000), region(0x3000, 0x5000, 0x1000)]).unwrap());
    for (address, len) in [(0, 1), (0xfff, 2), (0x1fff, 2), (0x4000, 1), (u64::MAX, 2), (0x1000, u64::MAX)] {
        let mut buffers = IoBuffers::new(memory.clone(), 4);
        assert!(memory.append_buffers(GuestAddress(address), len, &mut buffers).is_err(), "{address:#x}+{len:#x}");
    }
    assert!(memory.read(GuestAddress(0x1fff), &mut [0; 2]).is_err());
    assert!(memory.user_window(UserAddress(0xff0), 17, 16).is_err());
    assert!(memory.user_window(UserAddress(0xff1), 2, 2).is_err());
    assert!(memory.user_window(UserAddress(0x5ff0), 16, 16).is_ok());
}

#[test]
fn overlapping_or_wrapping_regions_are_refused() {
    assert!(GuestMemory::new(vec![region(0x1000, 0, 0x2000), region(0x2000, 0, 0x1000)]).is_err());
    let wrapping = Region::new(GuestAddress(u64::MAX - 10), UserAddress(0), Mapping::anonymous(4096).unwrap());
    assert!(wrapping.is_err());
}

#[test]
fn a_mapping_larger_than_its_file_is_refused() {
    let file = memfd(0x1000);
    assert!(matches!(Mapping::shared(file.as_fd(), 0, 0x1001), Err(MapError::Size { .. })));
    assert!(matches!(Mapping::shared(file.as_fd(), u64::MAX, 2), Err(MapError::Size { .. })));
    assert!(matches!(Mapping::shared(file.as_fd(), 0, 0), Err(MapError::Size { .. })));
    assert_eq!(Mapping::shared(file.as_fd(), 0x123, 0x100).unwrap().len(), 0x100);
}

#[test]
fn a_truncated_file_marks_its_region_only() {
    let (file, other) = (memfd(0x4000), region(0x10000, 0x10000, 0x1000));
    let mapping = Mapping::shared(file.as_fd(), 0, 0x4000).unwrap();
    let lost = Arc::new(Region::new(GuestAddress(0), UserAddress(0), mapping).unwrap());
    let memory = GuestMemory::new(vec![lost, other.clone()]).unwrap();
    memory.write(GuestAddress(0x3000), &[7]).unwrap();
    file.set_len(0x1000).unwrap();
    let mut byte = [9];
    memory.read(GuestAddress(0x3000), &mut byte).unwrap();
    assert_eq!(byte, [0]);
    assert!(memory.is_truncated());
    assert!(!other.is_truncated());
}

#[test]
fn huge_pages_that_are_not_there_are_survived_even_when_sealed() {
    let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string; the call gives a new descriptor, or -1.
    let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), flags) };
    if fd < 0 {
        println!("skipped: this kernel has no huge pages");
        return;
    }
    // SAFETY: just created.
    let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let free = std::fs::read_to_string("/proc/meminfo").unwrap();
    if !free.lines().any(|line| line.starts_with("HugePages_Free:") && line.ends_with(" 0")) {
        println!("skipped: there are free huge pages, and others may need them");
        return;
    }
    let len = 4 << 20;
    file.set_len(len).unwrap();
    // SAFETY: `fd` is open; the call takes no pointer.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) }, 0);
    let mapping = Mapping::shared(file.as_fd(), 0, len).unwrap();
    let region = Region::new(GuestAddress(0), UserAddress(0), mapping).unwrap();
    let memory = GuestMemory::new(vec![Arc::new(region)]).unwrap();
    let mut byte = [9];
    memory.read(GuestAddress(0), &mut byte).unwrap();
    assert_eq!(byte, [0]);
    assert!(memory.is_truncated());
}

#[test]
fn the_dirty_log_marks_written_pages_and_no_other() {
    let file = memfd(4096);
    let log = DirtyLog::new(Mapping::shared(file.as_fd(), 0, 2).unwrap()).unwrap();
    log.mark(GuestAddress(0x1fff), 2);
    log.mark(GuestAddress(0xf000), 1);
    log.mark(GuestAddress(0x10000), 0x1000); // behind the end
    log.mark(GuestAddress(0x5000), 0);
    use std::os::unix::fs::FileExt;
    let mut bits = [0; 2];
    file.read_exact_at(&mut bits, 0).unwrap();
    assert_eq!(bits, [0b0000_0110, 0b1000_0000]);
}
