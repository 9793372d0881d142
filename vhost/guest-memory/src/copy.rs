//! memcpy for what is short: headers and most packets, without a call.

/// The longest that is copied in place. Beyond, the system's copy has instructions that are faster than those of every x86-64.
const SHORT: usize = 256;

/// Copies `len` bytes.
///
/// # Safety
/// The same as of [`std::ptr::copy_nonoverlapping`].
#[inline(always)]
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: `copy_nonoverlapping` asks for what this function asks its caller for; `ends::<N>` also for a length from `N` to
    // `2 * N`, which the patterns give.
    unsafe {
        match len {
            8..=16 => ends::<8>(from, to, len),
            17..=32 => ends::<16>(from, to, len),
            33..=64 => ends::<32>(from, to, len),
            65..=128 => ends::<64>(from, to, len),
            129..=SHORT => ends::<128>(from, to, len),
            _ => std::ptr::copy_nonoverlapping(from, to, len),
        }
    }
}

/// Copies a block from the start and one that ends at the end. No loop, which the compiler would take for a memcpy to call.
///
/// # Safety
/// The same as of [`std::ptr::copy_nonoverlapping`]; `len` is from `N` to `2 * N`.
#[inline(always)]
unsafe fn ends<const N: usize>(from: *const u8, to: *mut u8, len: usize) {
    let last = len - N;
    // SAFETY: both blocks lie inside the range, and leave nothing of it out.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, N);
        std::ptr::copy_nonoverlapping(from.add(last), to.add(last), N);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_copied_and_nothing_beside_it() {
        let from: Vec<u8> = (0..1024).map(|at| (at * 7 % 251 + 1) as u8).collect();
        for len in 0..=2 * SHORT {
            for skew in [0, 1, 13] {
                let mut to = vec![0; 1024];
                // SAFETY: both have as many behind `skew`.
                unsafe { copy(from.as_ptr().add(skew), to.as_mut_ptr().add(skew), len) };
                assert_eq!(to[skew..skew + len], from[skew..skew + len], "{len} bytes");
                assert!(to[..skew].iter().chain(&to[skew + len..]).all(|&byte| byte == 0), "{len} bytes");
            }
        }
    }
}
