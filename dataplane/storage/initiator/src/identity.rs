//! Whether a disk that answers after a reconnect is the one that was there before.

/// The properties by which a disk is recognised when its connection returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskIdentity {
    /// The identity that the target reports: a UUID, a designator.
    pub id: Vec<u8>,
    /// Bytes a logical block: requests under way are measured in it.
    pub block_size: u32,
}

impl DiskIdentity {
    /// Refuses a disk that is another one than `self`: held writes must not go to it.
    pub fn check(&self, found: &DiskIdentity) -> Result<(), DiskReplaced> {
        if self == found { Ok(()) } else { Err(DiskReplaced) }
    }
}

/// Another disk answers where a known one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskReplaced;
