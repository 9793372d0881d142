//! `sluicectl target`: serves a file as a cloud disk, for trying things out and for tests. Needs no daemon.

use crate::client::CallError;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// Bytes a block of the disks served.
const BLOCK: u32 = 512;

/// The protocol of a target.
#[derive(Clone, Copy)]
pub(crate) enum Protocol {
    Nvme,
    Iscsi,
}

pub(crate) fn declare(leaf: Command, protocol: Protocol) -> Command {
    let (about, listen, name, default) = match protocol {
        Protocol::Nvme => ("Serves a file over NVMe/TCP", "127.0.0.1:4420", "subnqn", "nqn.2024-01.io.sluice:disk"),
        Protocol::Iscsi => {
            ("Serves a file over iSCSI, as LUN 0", "127.0.0.1:3260", "iqn", "iqn.2024-01.io.sluice:disk")
        }
    };
    leaf.about(about)
        .arg(Arg::new("file").required(true).help("The file: a raw image"))
        .arg(
            Arg::new("listen")
                .long("listen")
                .value_name("ADDR")
                .default_value(listen)
                .help("Where; port 0 takes a free one"),
        )
        .arg(Arg::new("name").long(name).default_value(default).help("The target's name"))
        .arg(Arg::new("read-only").long("read-only").action(ArgAction::SetTrue).help("Nobody may write"))
}

/// Serves until the process is ended.
pub(crate) fn run(leaf: &ArgMatches, protocol: Protocol) -> Result<(), CallError> {
    let text = |name: &str| leaf.get_one::<String>(name).expect("has a default").as_str();
    let (file, listen, name, read_only) = (text("file"), text("listen"), text("name"), leaf.get_flag("read-only"));
    let usage = |what: &str| {
        let what = what.to_owned();
        move |e: std::io::Error| CallError::Usage(format!("{what}: {e}"))
    };
    // Two disks with one identity are refused: it is made of all that tells this one from others.
    let place = Path::new(file).canonicalize().map_err(usage(file))?;
    let identity = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{name}\n{}", place.display()).as_bytes());
    // Either server lives until the process ends.
    let (address, _server): (_, Box<dyn std::any::Any>) = match protocol {
        Protocol::Nvme => {
            use nvme::target::{Access, FileStore, Namespace, Server, Target, TargetConfig};
            let store = Arc::new(FileStore::open(Path::new(file), read_only).map_err(usage(file))?);
            let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
            let target = Target::new(TargetConfig::new(name), u64::from(std::process::id()));
            target.set_namespace(1, Namespace { store, block_size: BLOCK, access, uuid: identity });
            let server = Server::start(target, listen).map_err(usage(listen))?;
            (server.address(), Box::new(server))
        }
        Protocol::Iscsi => {
            use iscsi::target::{FileStore, Server, Target, TargetConfig, Unit};
            let store = Arc::new(FileStore::open(Path::new(file), read_only).map_err(usage(file))?);
            let unit = Unit::new(store, BLOCK, read_only, identity.as_u64_pair().0);
            let target = Target::new(TargetConfig::new(name));
            target.insert_unit(iscsi::Lun(0), Arc::new(unit));
            let server = Server::start(Arc::new(target), listen).map_err(usage(listen))?;
            (server.address(), Box::new(server))
        }
    };
    println!("serving {file} as {name} at {address}");
    loop {
        std::thread::park();
    }
}
