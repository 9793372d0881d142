//! The command: serves a file until the process ends.

use clap::{Args, Parser, Subcommand};
use sluice_target::{Protocol, serve};
use std::path::PathBuf;
use std::process::ExitCode;

/// Serves a file as a disk over NVMe/TCP or iSCSI, for trials and tests.
#[derive(Parser)]
#[command(name = "sluice-target", version)]
struct Options {
    #[command(subcommand)]
    protocol: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves a file over NVMe/TCP, as namespace 1.
    Nvme {
        #[command(flatten)]
        disk: Disk,
        /// Address to listen at; port 0 takes a free one.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4420")]
        listen: String,
        /// NQN of the subsystem.
        #[arg(long, value_name = "NQN", default_value = "nqn.2024-01.io.sluice:disk")]
        subnqn: String,
    },
    /// Serves a file over iSCSI, as LUN 0.
    Iscsi {
        #[command(flatten)]
        disk: Disk,
        /// Address to listen at; port 0 takes a free one.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3260")]
        listen: String,
        /// Name of the target.
        #[arg(long, value_name = "IQN", default_value = "iqn.2024-01.io.sluice:disk")]
        iqn: String,
    },
}

#[derive(Args)]
struct Disk {
    /// The file: a raw image.
    file: PathBuf,
    /// Refuse writes.
    #[arg(long)]
    read_only: bool,
}

fn main() -> ExitCode {
    let (protocol, Disk { file, read_only }, listen, name) = match Options::parse().protocol {
        Command::Nvme { disk, listen, subnqn } => (Protocol::Nvme, disk, listen, subnqn),
        Command::Iscsi { disk, listen, iqn } => (Protocol::Iscsi, disk, listen, iqn),
    };
    let target = match serve(protocol, &file, &listen, &name, read_only) {
        Ok(target) => target,
        Err(error) => {
            eprintln!("sluice-target: {error}");
            return ExitCode::from(2);
        }
    };
    println!("serving {} as {name} at {}", file.display(), target.address());
    loop {
        std::thread::park();
    }
}
