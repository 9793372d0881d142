//! How much memory the process has allocated, by page size and NUMA node.

use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Bytes allocated with pages of one size for one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of a page.
    pub page_size: usize,
    /// The NUMA node asked for; `None` where none was.
    pub node: Option<u32>,
    /// Bytes, rounded up to pages. Normal pages count in full, touched or not.
    pub bytes: u64,
}

static USAGE: Mutex<BTreeMap<(usize, Option<u32>), i64>> = Mutex::new(BTreeMap::new());

/// What the process has allocated, by page size and node.
pub fn usage() -> Vec<Usage> {
    let all = USAGE.lock();
    let in_use = all.iter().filter(|&(_, &bytes)| bytes > 0);
    in_use.map(|(&(page_size, node), &bytes)| Usage { page_size, node, bytes: bytes as u64 }).collect()
}

pub(crate) fn add(page_size: usize, node: Option<u32>, bytes: i64) {
    let mut all = USAGE.lock();
    *all.entry((page_size, node)).or_default() += bytes;
}
