//! Serves a file as a disk over NVMe/TCP or iSCSI, for trials and tests. It needs no daemon.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// Block size of the disks in bytes.
const BLOCK_SIZE: u32 = 512;

/// The protocol of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// NVMe/TCP: the disk is namespace 1.
    Nvme,
    /// iSCSI: the disk is LUN 0.
    Iscsi,
}

/// A target that serves. Dropping it ends it.
pub struct Target {
    address: SocketAddr,
    _server: Box<dyn Any>,
}

impl Target {
    /// The address that the target listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Why a target cannot serve.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct ServeError {
    /// The file or the address.
    what: String,
    source: io::Error,
}

/// Serves `file` at the address `listen` as the target `name`, an NQN or IQN.
pub fn serve(protocol: Protocol, file: &Path, listen: &str, name: &str, read_only: bool) -> Result<Target, ServeError> {
    let at_file = |source| ServeError { what: file.display().to_string(), source };
    let at_address = |source| ServeError { what: listen.to_owned(), source };
    // An initiator refuses two disks of one identity: it is made of all that distinguishes this disk from others.
    let place = file.canonicalize().map_err(at_file)?;
    let identity = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{name}\n{}", place.display()).as_bytes());
    match protocol {
        Protocol::Nvme => {
            use nvme::target::{Access, FileStore, Namespace, Server, Target as Subsystem, TargetConfig};
            let store = Arc::new(FileStore::open(file, read_only).map_err(at_file)?);
            let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
            let target = Subsystem::new(TargetConfig::new(name), u64::from(std::process::id()));
            target.set_namespace(1, Namespace { store, block_size: BLOCK_SIZE, access, uuid: identity });
            let server = Server::start(target, listen).map_err(at_address)?;
            Ok(Target { address: server.address(), _server: Box::new(server) })
        }
        Protocol::Iscsi => {
            use iscsi::target::{FileStore, Server, Target as IscsiTarget, TargetConfig, Unit};
            let store = Arc::new(FileStore::open(file, read_only).map_err(at_file)?);
            let unit = Unit::new(store, BLOCK_SIZE, read_only, identity.as_u64_pair().0);
            let target = IscsiTarget::new(TargetConfig::new(name));
            target.insert_unit(iscsi::Lun(0), Arc::new(unit));
            let server = Server::start(Arc::new(target), listen).map_err(at_address)?;
            Ok(Target { address: server.address(), _server: Box::new(server) })
        }
    }
}
