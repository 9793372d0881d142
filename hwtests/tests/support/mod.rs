//! Our own targets, as cloud disks over files.

#![allow(dead_code, reason = "each test takes what it needs")]

use anyhow::Result;
use iscsi::Auth;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

pub(crate) const NQN: &str = "nqn.2024-01.io.sluice:test";
pub(crate) const IQN: &str = "iqn.2024-01.io.sluice:test";

/// A cloud disk over our own target: it ends with the value.
pub(crate) struct CloudDisk {
    pub(crate) address: String,
    /// Gives it another length and tells who uses it.
    pub(crate) resize: Box<dyn Fn(u64) -> std::io::Result<()>>,
    _server: Box<dyn std::any::Any>,
}

pub(crate) fn nvme_target(file: &Path, read_only: bool, address: &str) -> Result<CloudDisk> {
    use nvme::target::{Access, FileStore, Namespace, Server, Target, TargetConfig};
    let target = Target::new(TargetConfig::new(NQN), 1);
    let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
    let store = Arc::new(FileStore::open(file, read_only)?);
    target.set_namespace(1, Namespace { store, block_size: 512, access, uuid: uuid::Uuid::from_u128(7) });
    let server = Server::start(target.clone(), address)?;
    let file = (!read_only).then(|| File::options().write(true).open(file)).transpose()?;
    let resize = move |len| {
        file.as_ref().ok_or(ErrorKind::ReadOnlyFilesystem)?.set_len(len)?;
        target.namespace_resized();
        Ok(())
    };
    Ok(CloudDisk { address: server.address().to_string(), resize: Box::new(resize), _server: Box::new(server) })
}

pub(crate) fn iscsi_target(file: &Path, read_only: bool, address: &str) -> Result<CloudDisk> {
    iscsi_target_with(Auth::default(), file, read_only, address)
}

/// As [`iscsi_target`], for those that prove who they are.
pub(crate) fn iscsi_target_with(auth: Auth, file: &Path, read_only: bool, address: &str) -> Result<CloudDisk> {
    use iscsi::target::{FileStore, Server, Target, TargetConfig, Unit};
    let target = Target::new(TargetConfig { auth, ..TargetConfig::new(IQN) });
    let unit = Arc::new(Unit::new(Arc::new(FileStore::open(file, read_only)?), 512, read_only, 7));
    target.insert_unit(iscsi::Lun(0), unit.clone());
    let server = Server::start(Arc::new(target), address)?;
    let resize = move |len| unit.resize(len);
    Ok(CloudDisk { address: server.address().to_string(), resize: Box::new(resize), _server: Box::new(server) })
}
