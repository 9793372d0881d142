//! Where memory lies.

use crate::MemoryError;

/// Nodes that a policy mask can name: one word of it.
const MAX_NODES: u32 = 64;

/// Refuses a node that the machine has not. A kernel without NUMA has node 0 alone.
pub(crate) fn check(node: u32) -> Result<(), MemoryError> {
    let online = std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_else(|_| "0".into());
    let online = online.trim();
    if node < MAX_NODES && contains(online, node) {
        return Ok(());
    }
    Err(MemoryError::Node { got: node, online: online.into() })
}

/// Whether the kernel's list notation (`0-3,8`) names `node`.
fn contains(list: &str, node: u32) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!((first.parse::<u32>(), last.parse::<u32>()), (Ok(first), Ok(last)) if (first..=last).contains(&node))
    })
}

/// Asks that pages of the range, when first touched, come from `node`. Where policies are not allowed (a seccomp filter of a
/// container) the kernel's default stays, which is the node of the worker that touches them.
pub(crate) fn prefer(address: *mut u8, len: usize, node: u32) {
    let mask: u64 = 1 << node;
    // SAFETY: the range is a mapping that the caller owns, and the mask outlives the call; a policy changes no byte. The kernel reads one
    // bit less than it is told.
    unsafe { libc::syscall(libc::SYS_mbind, address, len, libc::MPOL_PREFERRED, &raw const mask, MAX_NODES + 1, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_notation_is_understood() {
        for (list, node, there) in [
            ("0", 0, true),
            ("0", 1, false),
            ("0-3,8", 3, true),
            ("0-3,8", 8, true),
            ("0-3,8", 5, false),
            ("", 0, false),
        ] {
            assert_eq!(contains(list, node), there, "{node} in {list:?}");
        }
    }
}
