use super::*;
use parking_lot::Mutex;
use std::io::Write;
use std::sync::Arc;

fn byte(memory: &Memory, offset: usize) -> u8 {
    assert!(offset < memory.len());
    // SAFETY: inside the allocation, which this test alone uses.
    unsafe { memory.as_ptr().add(offset).read() }
}

fn fill(memory: &Memory, value: u8) {
    // SAFETY: the whole allocation, which this test alone uses.
    unsafe { memory.as_ptr().write_bytes(value, memory.len()) };
}

#[test]
fn memory_is_zeroed_aligned_and_counted() {
    let memory = Memory::allocate(3 * MIB + 5, None).unwrap();
    assert!((memory.as_ptr() as usize).is_multiple_of(memory.page_size()));
    assert!([0, MIB, 3 * MIB + 4].iter().all(|&at| byte(&memory, at) == 0));
    let mine = |u: &Usage| u.page_size == memory.page_size() && u.node.is_none() && u.bytes >= memory.len() as u64;
    assert!(usage().iter().any(mine), "{:?}", usage());
}

#[test]
fn released_pages_read_as_zero_and_others_stay() {
    let memory = Memory::allocate(4 * MIB, None).unwrap();
    fill(&memory, 7);
    let page = memory.page_size();
    assert!(memory.release(page, page));
    assert_eq!((byte(&memory, page - 1), byte(&memory, page), byte(&memory, 2 * page - 1)), (7, 0, 0));
    if 2 * page < memory.len() {
        assert_eq!(byte(&memory, 2 * page), 7);
    }
}

#[test]
fn advice_for_huge_pages_changes_no_byte() {
    for len in [0, 1, 2 * MIB - 1, 5 * MIB] {
        let mut bytes = vec![3_u8; len];
        prefer_huge_pages(&bytes);
        assert!(bytes.iter().all(|byte| *byte == 3));
        prefer_huge_pages(bytes.spare_capacity_mut());
    }
}

#[test]
fn node_0_is_there_and_node_63_is_not() {
    let memory = Memory::allocate(64 * KIB, Some(0)).unwrap();
    fill(&memory, 1);
    assert!(usage().iter().any(|u| u.node == Some(0) && u.bytes >= 64 * KIB as u64));
    let error = Memory::allocate(64 * KIB, Some(63)).unwrap_err();
    assert!(matches!(error, MemoryError::Node { got: 63, .. }), "{error}");
}

#[test]
fn illegal_lengths_are_refused() {
    for len in [0, usize::MAX, isize::MAX as usize] {
        assert!(matches!(Memory::allocate(len, None), Err(MemoryError::Length { got }) if got == len));
    }
    assert!(matches!(Memory::allocate(1 << 46, None), Err(MemoryError::Os { .. })), "more than any machine has");
}

#[test]
fn a_pool_gives_each_buffer_once_and_none_when_empty() {
    let mut pool = Pool::new(8 * KIB, 3, None).unwrap();
    let buffers: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    let mut addresses: Vec<_> = buffers.iter().map(|b| pool.address(b) as usize).collect();
    addresses.sort_unstable();
    assert_eq!(addresses.len(), 3);
    assert!(addresses.windows(2).all(|pair| pair[1] - pair[0] >= 8 * KIB));
    assert!(pool.take().is_none());
    buffers.into_iter().for_each(|buffer| pool.give(buffer));
    assert!(pool.take().is_some());
}

#[test]
fn hugepages_are_taken_where_the_machine_has_some() {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let field =
        |name: &str| meminfo.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    // More than it needs: tests beside this one take some too.
    let free: u64 = field("HugePages_Free:").unwrap_or(0);
    if free < 8 || field("Hugepagesize:") != Some(2048) {
        eprintln!("skipped: no free hugepages of 2 MiB (echo 32 > /proc/sys/vm/nr_hugepages)");
        return;
    }
    let memory = Memory::allocate(4 * MIB, Some(0)).unwrap();
    assert_eq!(memory.page_size(), 2 * MIB);
    fill(&memory, 9);
    assert!(memory.release(2 * MIB, 2 * MIB));
    assert_eq!((byte(&memory, 2 * MIB - 1), byte(&memory, 2 * MIB)), (9, 0));
    assert_eq!(Memory::allocate(2 * MIB + 4 * KIB, None).unwrap().page_size(), normal_page(), "half would be wasted");
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Alone in its process (nextest or not): the line is once a process, so the test runs itself again as a child.
#[test]
fn missing_hugepages_are_logged_exactly_once() {
    const CHILD: &str = "MEMORY_TEST_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let test = std::env::current_exe().unwrap();
        let name = "tests::missing_hugepages_are_logged_exactly_once";
        assert!(std::process::Command::new(test).args([name, "--exact"]).env(CHILD, "1").status().unwrap().success());
        return;
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let normal = tracing::subscriber::with_default(subscriber, || {
        let all = [Memory::allocate(2 * MIB, None).unwrap(), Memory::allocate(2 * MIB, None).unwrap()];
        drop(Memory::allocate(4 * KIB, None).unwrap());
        all.iter().filter(|memory| memory.page_size() < 2 * MIB).count()
    });
    let text = String::from_utf8(lines.0.lock().clone()).unwrap();
    assert_eq!(text.matches("no free hugepages").count(), normal.min(1), "{text}");
}
