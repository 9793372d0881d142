//! Files: what conformance does not cover. Bad input, files that change under the disk, full file systems, sleeping workers.

use crate::support::{Frontend, TIMEOUT, bytes, simple, write};
use block::{Bdev, BlockError, FileBdev, FileEngine, FileParams, FileProduct, Op, Status};
use clock::Cycles;
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const KIB: u64 = 1024;
const ENGINES: [FileEngine; 2] = [FileEngine::Auto, FileEngine::Threads];

/// A sparse file of `len` bytes in a directory of its own.
fn backing(len: u64) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    File::create(&path).unwrap().set_len(len).unwrap();
    (directory, path)
}

fn open(path: &Path, engine: FileEngine) -> std::sync::Arc<FileBdev> {
    FileBdev::create(FileParams { engine, ..FileParams::new("f", path) }).unwrap()
}

#[test]
fn geometry_and_identity() {
    let (_directory, path) = backing(64 * KIB);
    let disk = FileBdev::create(FileParams::new("f", &path)).unwrap();
    let geometry = disk.geometry();
    assert_eq!((geometry.block_size, geometry.num_blocks, geometry.read_only), (512, 128, false));
    assert!(geometry.physical_block_size >= 512 && geometry.write_cache);
    assert_eq!(disk.identity().product_name, "URING bdev");

    let product = FileProduct::Aio;
    let params = FileParams { product, read_only: true, block_size: Some(4096), ..FileParams::new("f", &path) };
    let disk = FileBdev::create(params).unwrap();
    let geometry = disk.geometry();
    assert_eq!((geometry.block_size, geometry.num_blocks, geometry.read_only), (4096, 16, true));
    assert_eq!((geometry.max_discard_blocks, geometry.max_write_zeroes_blocks), (0, 0));
    assert_eq!(disk.identity().product_name, "AIO disk");
}

/// The error for a path, as an operator reads it.
fn refusal(path: &Path) -> (String, Option<&'static str>) {
    let error = FileBdev::create(FileParams::new("f", path)).map(|_| ()).unwrap_err();
    (error.to_string(), error.hint())
}

#[test]
fn paths_that_are_no_disk_are_refused_with_a_reason() {
    let (directory, path) = backing(64 * KIB);
    let (text, hint) = refusal(&directory.path().join("missing"));
    assert!(text.contains("open ") && text.contains("missing") && text.contains("No such file"), "{text}");
    assert!(hint.is_some_and(|hint| hint.contains("truncate")), "{hint:?}");

    let (text, _) = refusal(directory.path());
    assert!(
        text.starts_with("filename: ") && text.contains("a directory") && text.contains("a regular file"),
        "{text}"
    );

    let fifo = directory.path().join("fifo");
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: the name is a terminated string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(refusal(&fifo).0.contains("a FIFO"), "and it does not wait for a writer");
    assert!(refusal(Path::new("/dev/null")).0.contains("a character device"));

    File::create(&path).unwrap();
    assert!(refusal(&path).0.contains("of 0 bytes, expected a multiple of the block size, 512, and not empty"));
    File::create(&path).unwrap().set_len(1000).unwrap();
    assert!(refusal(&path).0.contains("of 1000 bytes"));
}

#[test]
fn block_sizes_out_of_range_are_refused() {
    let (_directory, path) = backing(64 * KIB);
    for size in [0, 100, 768, 131_072] {
        let params = FileParams { block_size: Some(size), ..FileParams::new("f", &path) };
        let error = FileBdev::create(params).map(|_| ()).unwrap_err();
        assert!(matches!(error, BlockError::Invalid(ref e) if e.field == "block_size"), "{error}");
    }
}

#[test]
fn an_unreadable_file_is_refused_with_a_hint() {
    let (directory, path) = backing(64 * KIB);
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    let nobody = || {
        // SAFETY: changes this thread's file system identity alone, which lets root meet permissions too.
        unsafe { libc::setfsuid(65_534) };
        refusal(&path)
    };
    let (text, hint) = std::thread::scope(|scope| scope.spawn(nobody).join().unwrap());
    assert!(text.contains("Permission denied"), "{text}");
    assert!(hint.is_some_and(|hint| hint.contains("read and write")), "{hint:?}");
}

#[test]
fn a_read_only_disk_refuses_all_changes() {
    let (_directory, path) = backing(64 * KIB);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
    for engine in ENGINES {
        let params = FileParams { engine, read_only: true, ..FileParams::new("f", &path) };
        let mut frontend = Frontend::new(FileBdev::create(params).unwrap().as_ref());
        for op in [Op::Write, Op::Discard, Op::WriteZeroes { unmap: false }] {
            assert_eq!(frontend.perform(simple(op, 0, 4096)).1, Status::IoError, "{op:?}");
        }
        assert_eq!(frontend.perform(simple(Op::Read, 0, 4096)).1, Status::Ok);
        assert_eq!(frontend.perform(simple(Op::Flush, 0, 0)).1, Status::Ok);
    }
}

#[test]
fn a_file_that_shrinks_fails_what_lies_behind_its_end() {
    for engine in ENGINES {
        let (_directory, path) = backing(64 * KIB);
        let disk = open(&path, engine);
        let mut frontend = Frontend::new(disk.as_ref());
        File::options().write(true).open(&path).unwrap().set_len(16 * KIB).unwrap();
        assert_eq!(frontend.perform(simple(Op::Read, 16 * KIB, 4096)).1, Status::IoError);
        assert_eq!(frontend.perform(simple(Op::Read, 12 * KIB, 8 * KIB)).1, Status::IoError, "half of it is left");
        assert_eq!(frontend.perform(simple(Op::Read, 12 * KIB, 4 * KIB)).1, Status::Ok);

        assert!(disk.rescan().unwrap(), "the size changed");
        assert_eq!(disk.geometry().num_blocks, 32);
        assert_eq!(frontend.perform(write(16 * KIB, &[1; 4096])).1, Status::IoError);
        assert_eq!(path.metadata().unwrap().len(), 16 * KIB, "and the file does not grow again");
    }
}

#[test]
fn a_file_that_grows_makes_the_disk_grow_at_rescan() {
    let (_directory, path) = backing(64 * KIB);
    let disk = open(&path, FileEngine::Auto);
    let mut frontend = Frontend::new(disk.as_ref());
    assert!(!disk.rescan().unwrap(), "nothing changed");
    File::options().write(true).open(&path).unwrap().set_len(128 * KIB).unwrap();
    assert_eq!(frontend.perform(write(100 * KIB, &[1; 4096])).1, Status::IoError);
    assert!(disk.rescan().unwrap());
    assert_eq!(disk.geometry().num_blocks, 256);
    assert_eq!(frontend.perform(write(100 * KIB, &[7; 4096])).1, Status::Ok);
    assert_eq!(bytes(&frontend.perform(simple(Op::Read, 100 * KIB, 4096)).0), [7; 4096]);

    File::options().write(true).open(&path).unwrap().set_len(130 * KIB + 1).unwrap();
    assert!(matches!(disk.rescan(), Err(BlockError::Invalid(e)) if e.field == "filename"));
    assert_eq!(disk.geometry().num_blocks, 256, "an odd size changes nothing");
}

#[test]
fn written_blocks_are_in_the_file_and_discarded_ones_take_no_space() {
    use std::os::unix::fs::MetadataExt;
    for engine in ENGINES {
        let (_directory, path) = backing(1024 * KIB);
        let disk = open(&path, engine);
        let mut frontend = Frontend::new(disk.as_ref());
        frontend.perform(write(64 * KIB, &[3; 512 * KIB as usize]));
        assert_eq!(frontend.perform(simple(Op::Flush, 0, 0)).1, Status::Ok);
        let content = std::fs::read(&path).unwrap();
        assert!(content[64 * 1024..576 * 1024].iter().all(|&byte| byte == 3));
        assert!(path.metadata().unwrap().blocks() >= 1024);
        if disk.geometry().max_discard_blocks > 0 {
            assert_eq!(frontend.perform(simple(Op::Discard, 0, 1024 * KIB)).1, Status::Ok);
            assert!(path.metadata().unwrap().blocks() < 64, "{} sectors", path.metadata().unwrap().blocks());
        }
    }
}

/// More than the depth of a ring and more than its bounce buffers, all at once.
#[test]
fn a_thousand_requests_at_once_come_back_once_each() {
    const LEN: u64 = 4096;
    for engine in ENGINES {
        let (_directory, path) = backing(1000 * LEN);
        let mut frontend = Frontend::new(open(&path, engine).as_ref());
        for index in 0..1000_u64 {
            // Every second one is not aligned and needs a bounce buffer.
            let layout = vec![(index % 2, LEN)];
            let request = crate::support::request(Op::Write, index * LEN, LEN, &layout, index as u8);
            frontend.submit(request, Cycles::now());
        }
        assert!(frontend.drain().iter().all(|ended| ended.status == Status::Ok));
        let content = std::fs::read(&path).unwrap();
        for (index, block) in content.chunks(LEN as usize).enumerate() {
            assert!(block.iter().all(|&byte| byte == index as u8), "block {index}");
        }
    }
}

/// More pieces than the kernel takes in one call.
#[test]
fn requests_of_two_thousand_pieces() {
    for direct in [true, false] {
        let (_directory, path) = backing(4096 * KIB);
        let disk = FileBdev::create(FileParams { direct, ..FileParams::new("f", &path) }).unwrap();
        let mut frontend = Frontend::new(disk.as_ref());
        let layout: Vec<_> = (0..2000).map(|piece| (piece * 1536, 512)).collect();
        let request = crate::support::request(Op::Write, 512, 2000 * 512, &layout, 0);
        let content: Vec<u8> = (0..2000 * 512).map(|at| (at / 512) as u8).collect();
        request.buffers.write(0, &content).unwrap();
        assert_eq!(frontend.perform(request).1, Status::Ok);
        let read = crate::support::request(Op::Read, 512, 2000 * 512, &layout, 9);
        assert!(bytes(&frontend.perform(read).0) == content, "direct: {direct}");
    }
}

/// Reads alone, and of the machine's own device: what is on it is not for tests to change.
#[test]
fn a_block_device_has_its_own_sizes() {
    let attribute = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    for entry in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let (name, system) = (entry.file_name(), entry.path());
        let Some(sectors @ 1..) = attribute(system.join("size")) else { continue };
        let params = FileParams { read_only: true, ..FileParams::new("b", Path::new("/dev").join(&name)) };
        let Ok(disk) = FileBdev::create(params.clone()) else { continue };
        let geometry = disk.geometry();
        assert_eq!(geometry.size_bytes(), sectors * 512, "{name:?}");
        assert_eq!(Some(geometry.block_size.into()), attribute(system.join("queue/logical_block_size")));
        assert_eq!(Some(geometry.physical_block_size.into()), attribute(system.join("queue/physical_block_size")));
        let last = geometry.size_bytes() - 4096;
        assert_eq!(Frontend::new(disk.as_ref()).perform(simple(Op::Read, last, 4096)).1, Status::Ok);
        let small = FileParams { block_size: Some(geometry.block_size / 2), ..params };
        assert!(matches!(FileBdev::create(small), Err(BlockError::Invalid(e)) if e.field == "block_size"));
        return;
    }
    eprintln!("skipped: there is no block device that this user may read");
}

/// Sleeps until `fd` has an edge, as a worker does, or until the kernel interrupts the sleep to finish work for this thread.
/// False when the time is over.
fn epoll(fd: RawFd) -> impl Fn(Duration) -> bool {
    // SAFETY: plain system calls on descriptors that live through the test.
    unsafe {
        let set = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let mut event = libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLET) as u32, u64: 0 };
        assert_eq!(libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &mut event), 0);
        move |timeout| libc::epoll_wait(set, &mut event.clone(), 1, timeout.as_millis() as i32) != 0
    }
}

#[test]
fn a_sleeping_worker_is_woken_by_each_completion() {
    for engine in ENGINES {
        let (_directory, path) = backing(64 * KIB);
        let mut frontend = Frontend::new(open(&path, engine).as_ref());
        let sleep = epoll(frontend.channel.wake_fd().unwrap());
        while sleep(Duration::ZERO) {}
        for round in 0..200 {
            frontend.submit(write(0, &[round; 4096]), Cycles::now());
            while frontend.poll(Cycles::now()) == 0 {
                assert!(sleep(TIMEOUT), "round {round}, {engine:?}: asleep with a completion to take");
            }
            assert_eq!(frontend.outstanding(), 0);
        }
    }
}

#[test]
fn a_channel_dropped_with_requests_under_way_waits_for_the_kernel() {
    for engine in ENGINES {
        let (_directory, path) = backing(8192 * KIB);
        let disk = open(&path, engine);
        for _ in 0..20 {
            let mut frontend = Frontend::new(disk.as_ref());
            for index in 0..600 {
                frontend.submit(write(index % 8 * 1024 * KIB, &[1; 64 << 10]), Cycles::now());
                if index == 300 {
                    frontend.poll(Cycles::now());
                }
            }
            // Drops the requests' memory too: a kernel that still used it would fault or write into the next round's.
            drop(frontend);
        }
    }
}

#[test]
fn a_channel_opened_here_is_polled_there() {
    let (_directory, path) = backing(64 * KIB);
    let mut frontend = Frontend::new(open(&path, FileEngine::Auto).as_ref());
    std::thread::scope(|scope| {
        let there = scope.spawn(|| frontend.perform(write(0, &[1; 4096])).1);
        assert_eq!(there.join().unwrap(), Status::Ok);
    });
}

/// A namespace of this thread's own, with a tmpfs of `bytes` on `path`. False where that is not allowed.
fn mount_tmpfs(path: &Path, bytes: u64) -> bool {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let size = std::ffi::CString::new(format!("size={bytes}")).unwrap();
    let (root, tmpfs, none) = (c"/".as_ptr(), c"tmpfs".as_ptr(), std::ptr::null());
    // SAFETY: strings are terminated; the mount is seen in this thread's namespace alone and goes with it.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, root, none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) == 0
            && libc::mount(tmpfs, path.as_ptr(), tmpfs, 0, size.as_ptr().cast()) == 0
    }
}

#[test]
fn a_full_file_system_is_told_apart_and_the_disk_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let full = || {
        for engine in ENGINES {
            // One each: the kernel may let go of a ring's files later than we do.
            let place = directory.path().join(format!("{engine:?}"));
            std::fs::create_dir(&place).unwrap();
            if !mount_tmpfs(&place, 1024 * KIB) {
                eprintln!("skipped: mounting a small tmpfs needs root");
                return;
            }
            let path = place.join("disk");
            File::create(&path).unwrap().set_len(8192 * KIB).unwrap();
            let mut frontend = Frontend::new(open(&path, engine).as_ref());
            let statuses: Vec<_> =
                (0..32).map(|at| frontend.perform(write(at * 64 * KIB, &vec![1; 64 << 10])).1).collect();
            assert_eq!(statuses[0], Status::Ok);
            assert_eq!(statuses[31], Status::NoSpace, "{engine:?}");
            assert_eq!(
                frontend.perform(simple(Op::WriteZeroes { unmap: false }, 4096 * KIB, 512 * KIB)).1,
                Status::NoSpace
            );
            assert_eq!(frontend.perform(simple(Op::Discard, 0, 512 * KIB)).1, Status::Ok);
            assert_eq!(frontend.perform(write(31 * 64 * KIB, &[2; 4096])).1, Status::Ok, "there is room again");
        }
    };
    std::thread::scope(|scope| scope.spawn(full).join().unwrap());
}

/// Lets this thread's io_uring_setup fail with EPERM, as a container's filter does.
fn forbid_io_uring() -> bool {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let (load, jump, answer) = (
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        libc::BPF_RET | libc::BPF_K,
    );
    let mut filter = [
        statement(load, 0), // the call's number
        libc::sock_filter { jf: 1, ..statement(jump, libc::SYS_io_uring_setup as u32) },
        statement(answer, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(answer, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program outlives the call; both settings concern this thread alone.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    }
}

#[test]
fn where_io_uring_is_forbidden_threads_stand_in() {
    let (_directory, path) = backing(64 * KIB);
    let disk = open(&path, FileEngine::Auto);
    let kind = |fd: RawFd| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap().display().to_string();
    let forbidden = || {
        assert!(forbid_io_uring(), "a filter on one's own thread is always allowed");
        let mut frontend = Frontend::new(disk.as_ref());
        assert_eq!(kind(frontend.channel.wake_fd().unwrap()), "anon_inode:[eventfd]");
        assert_eq!(frontend.perform(write(0, &[4; 4096])).1, Status::Ok);
        assert_eq!(bytes(&frontend.perform(simple(Op::Read, 0, 4096)).0), [4; 4096]);
    };
    std::thread::scope(|scope| scope.spawn(forbidden).join().unwrap());
}
