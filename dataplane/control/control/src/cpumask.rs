//! Sets of CPUs, as SPDK writes them: `[0,2-3]`, or a hexadecimal mask with or without `0x`.

/// Parses a set of CPUs.
pub(crate) fn parse(text: &str) -> Option<Vec<usize>> {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(list) => parse_list(list),
        None => {
            let mask = u128::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()?;
            Some((0..128).filter(|cpu| mask >> cpu & 1 == 1).collect())
        }
    }
}

/// Parses a list of CPUs and of ranges of them: `0,2-3`.
pub fn parse_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= 128 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Writes a set of CPUs as a hexadecimal mask without `0x`.
pub(crate) fn format(cpus: impl IntoIterator<Item = usize>) -> String {
    format!("{:x}", cpus.into_iter().fold(0_u128, |mask, cpu| mask | 1 << cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_are_understood() {
        assert_eq!(parse("[0,2-3]"), Some(vec![0, 2, 3]));
        assert_eq!(parse("0xd"), Some(vec![0, 2, 3]));
        assert_eq!(parse("d"), Some(vec![0, 2, 3]));
        assert_eq!(parse("[1]"), Some(vec![1]));
        assert_eq!(format([0, 2, 3]), "d");
        for bad in ["", "[]", "[a]", "[3-1]", "0xg", "[0", "[999]", "1ffffffffffffffffffffffffffffffff"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
