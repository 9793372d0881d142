//! A FAT file system in memory.

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use std::io::{self, Cursor, Write};

/// Room for directory, tables and rounding beside the files.
const OVERHEAD: usize = 256 << 10;
/// Bytes a sector.
pub(crate) const SECTOR: usize = 512;

/// Makes a volume labelled `label` with `files` in its root. The same input gives the same bytes.
pub(crate) fn volume(label: [u8; 11], files: &[(&str, &str)]) -> io::Result<Vec<u8>> {
    let content: usize = files.iter().map(|(_, text)| text.len().next_multiple_of(4096)).sum();
    let mut image = vec![0; (content + OVERHEAD).next_multiple_of(64 << 10)];
    // The serial number would otherwise be the same for all volumes of the world.
    let options = FormatVolumeOptions::new().volume_label(label).volume_id(checksum(files));
    fatfs::format_volume(Cursor::new(&mut image[..]), options)?;
    // Without the library's clock every file is of the epoch.
    let volume = FileSystem::new(Cursor::new(&mut image[..]), FsOptions::new())?;
    for (name, text) in files {
        volume.root_dir().create_file(name)?.write_all(text.as_bytes())?;
    }
    volume.unmount()?;
    Ok(image)
}

/// FNV-1a of names and contents.
fn checksum(files: &[(&str, &str)]) -> u32 {
    let bytes = files.iter().flat_map(|(name, text)| name.bytes().chain(text.bytes()));
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
