//! What NVMe/TCP and iSCSI have in common below their PDUs: connections that are polled, scatter and gather straight from and into
//! guest memory, descriptors that wake a sleeper, and CRC32C.

pub mod crc32c;
pub mod io;
