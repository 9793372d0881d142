//! Sets of CPUs, as the kernel and SPDK write them.

use std::fmt;
use std::str::FromStr;

/// CPU numbers from here on are refused: no kernel has as many, and a mistyped range is to fill no memory.
const CPUS: usize = 1 << 16;

/// A set of CPUs of any number, in the order in which they were named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuSet(Vec<usize>);

/// A text that names no set of CPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuSetError {
    /// The text is neither a list nor a mask.
    #[error("CPUs such as 2,4-7")]
    Syntax,
    /// The list names a CPU more than once.
    #[error("CPUs of which none is named twice")]
    NamedTwice,
}

impl CpuSet {
    /// Parses a list of CPUs and of ranges of CPUs: `0,2-3`.
    pub fn parse_list(list: &str) -> Result<CpuSet, CpuSetError> {
        let named = parse_ranges(list).ok_or(CpuSetError::Syntax)?;
        let set = CpuSet::from_iter(named.iter().copied());
        if set.0.len() == named.len() { Ok(set) } else { Err(CpuSetError::NamedTwice) }
    }

    /// The CPUs, in the order in which they were named.
    pub fn as_slice(&self) -> &[usize] {
        &self.0
    }

    /// Whether the set has this CPU.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.contains(&cpu)
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<T: IntoIterator<Item = usize>>(cpus: T) -> CpuSet {
        let mut known = std::collections::HashSet::new();
        CpuSet(cpus.into_iter().filter(|cpu| known.insert(*cpu)).collect())
    }
}

/// SPDK's notations: `[0,2-3]`, or a hexadecimal mask with or without `0x`.
impl FromStr for CpuSet {
    type Err = CpuSetError;

    fn from_str(text: &str) -> Result<CpuSet, CpuSetError> {
        let cpus = match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(list) => parse_ranges(list),
            None => parse_mask(text.strip_prefix("0x").unwrap_or(text)),
        };
        cpus.map(CpuSet::from_iter).ok_or(CpuSetError::Syntax)
    }
}

/// A hexadecimal mask without `0x`.
impl fmt::LowerHex for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.0.iter().max().map_or(0, |cpu| cpu / 4);
        (0..=last).rev().try_for_each(|digit| {
            let bits = self.0.iter().filter(|cpu| *cpu / 4 == digit).fold(0_u8, |bits, cpu| bits | 1 << (cpu % 4));
            write!(f, "{bits:x}")
        })
    }
}

fn parse_ranges(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

fn parse_mask(mask: &str) -> Option<Vec<usize>> {
    if mask.is_empty() || mask.len() > CPUS / 4 {
        return None;
    }
    let mut cpus = Vec::new();
    for (digit, text) in mask.chars().rev().enumerate() {
        let bits = text.to_digit(16)?;
        cpus.extend((0..4).filter(|bit| bits >> bit & 1 == 1).map(|bit| 4 * digit + bit));
    }
    Some(cpus)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Vec<usize>> {
        text.parse::<CpuSet>().ok().map(|set| set.as_slice().to_vec())
    }

    #[test]
    fn lists_and_masks_are_parsed() {
        assert_eq!(parse("[0,2-3]"), Some(vec![0, 2, 3]));
        assert_eq!(parse("0xd"), Some(vec![0, 2, 3]));
        assert_eq!(parse("d"), Some(vec![0, 2, 3]));
        assert_eq!(parse("[1]"), Some(vec![1]));
        assert_eq!(format!("{:x}", CpuSet::from_iter([0, 2, 3])), "d");
        for bad in ["", "[]", "[a]", "[3-1]", "0xg", "[0", "[99999]", "[0-18446744073709551615]"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(CpuSet::parse_list("4,0-1").unwrap().as_slice(), [4, 0, 1]);
        assert_eq!(CpuSet::parse_list("1,0-1"), Err(CpuSetError::NamedTwice));
    }

    #[test]
    fn cpus_beyond_128_are_parsed_and_printed() {
        assert_eq!(CpuSet::parse_list("126-129,191").unwrap().as_slice(), [126, 127, 128, 129, 191]);
        let last = format!("{:x}", CpuSet::from_iter([191]));
        assert_eq!((last.as_str(), parse(&last)), (format!("8{:047}", 0).as_str(), Some(vec![191])));
        assert!("[191]".parse::<CpuSet>().unwrap().contains(191));
    }
}
