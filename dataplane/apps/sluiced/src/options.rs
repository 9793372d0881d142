//! The daemon's options: from the command line, else from the configuration file, else the defaults.

use api::log::LogLevel;
use clap::{CommandFactory, Parser};
use control::{Control, LogFormat};
use engine::{CpuSet, IdlePolicy};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Userspace data plane: serves disks and network devices to virtual machines over vhost-user. Needs no configuration: objects are
/// created over the RPC socket, with sluicectl or with SPDK's clients.
#[derive(Debug, Default, Parser, Deserialize)]
#[command(name = "sluiced", version)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    /// TOML file with any of these options, named with underscores
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) config: Option<PathBuf>,
    /// RPC socket [default: /run/sluice/sluice.sock, else $XDG_RUNTIME_DIR/sluice.sock]
    #[arg(long, value_name = "PATH")]
    pub(crate) rpc_socket: Option<PathBuf>,
    /// Permissions of the RPC socket, octal [default: 600]
    #[arg(long, value_name = "MODE")]
    pub(crate) rpc_socket_mode: Option<String>,
    /// User IDs that may use the RPC socket besides root and the daemon's own
    #[arg(long, value_name = "UID", value_delimiter = ',')]
    pub(crate) rpc_allowed_uids: Option<Vec<u32>>,
    /// Directory of the saved configuration, restored at start [default: none]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Directory of the vhost-user sockets [default: that of the RPC socket]
    #[arg(long, value_name = "DIR")]
    pub(crate) vhost_dir: Option<PathBuf>,
    /// Permissions of the vhost-user sockets, octal [default: 600]
    #[arg(long, value_name = "MODE")]
    pub(crate) vhost_socket_mode: Option<String>,
    /// CPUs of the workers, such as 2,4-7 [default: the last one this process may use]
    #[arg(long, value_name = "CPULIST")]
    pub(crate) workers: Option<String>,
    /// Microseconds that an idle worker spins before it sleeps; "never": it never sleeps [default: 50]
    #[arg(long, value_name = "N", value_parser = Spin::parse)]
    pub(crate) idle_spin_us: Option<Spin>,
    /// Number of packet buffers of 2 KiB, allocated with the first port [default: 16384]
    #[arg(long, value_name = "N")]
    pub(crate) packet_buffers: Option<usize>,
    /// Maximum number of offloaded rules per port [default: 131072]
    #[arg(long, value_name = "N")]
    pub(crate) offload_rules_per_port: Option<u32>,
    /// EAL options of DPDK, such as "--in-memory -a 0000:03:00.0". They start DPDK at once, so that all packets are in DPDK's memory
    /// and no DPDK port copies them; without, the first DPDK port starts DPDK, in hugepages if there are enough
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) eal: Option<String>,
    /// Address of the OpenMetrics HTTP endpoint, such as 127.0.0.1:9100 [default: none]
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Log format: text or json [default: text]
    #[arg(long, value_name = "FORMAT", value_parser = word::<LogFormat>)]
    pub(crate) log_format: Option<LogFormat>,
    /// Log level: error, warning, notice, info, debug [default: notice]
    #[arg(long, value_name = "LEVEL", value_parser = word::<LogLevel>)]
    pub(crate) log_level: Option<LogLevel>,
    /// Print the man page
    #[arg(long, hide = true)]
    #[serde(skip)]
    man: bool,
}

/// How long an idle worker spins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Spin {
    /// This many microseconds.
    Microseconds(u64),
    /// For ever.
    Never(Never),
}

/// The word itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Never {
    Never,
}

impl Spin {
    fn parse(text: &str) -> Result<Spin, String> {
        match text {
            "never" => Ok(Spin::Never(Never::Never)),
            _ => text.parse().map(Spin::Microseconds).map_err(|_| "expected microseconds, or \"never\"".to_owned()),
        }
    }
}

/// An error of the options.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionsError {
    #[error("configuration file {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("configuration file {path}: {source}", path = path.display())]
    Parse { path: PathBuf, source: toml::de::Error },
    #[error("--{option}: got {got:?}, expected {expected}")]
    Invalid { option: &'static str, got: String, expected: String },
    #[error("RPC socket: neither /run/sluice nor $XDG_RUNTIME_DIR can be used (set --rpc-socket PATH)")]
    NoSocket,
    #[error("workers: no usable CPU found (set --workers CPULIST)")]
    NoCpu,
}

impl Options {
    /// The command line over the configuration file.
    pub(crate) fn read() -> Result<Options, OptionsError> {
        let given = Options::parse();
        if given.man {
            let page = clap_mangen::Man::new(Options::command()).render(&mut std::io::stdout());
            std::process::exit(i32::from(page.is_err()));
        }
        let Some(path) = given.config.clone() else { return Ok(given) };
        let text =
            std::fs::read_to_string(&path).map_err(|source| OptionsError::Read { path: path.clone(), source })?;
        let file = toml::from_str(&text).map_err(|source| OptionsError::Parse { path, source })?;
        Ok(given.over(file))
    }

    fn over(self, file: Options) -> Options {
        Options {
            config: self.config,
            rpc_socket: self.rpc_socket.or(file.rpc_socket),
            rpc_socket_mode: self.rpc_socket_mode.or(file.rpc_socket_mode),
            rpc_allowed_uids: self.rpc_allowed_uids.or(file.rpc_allowed_uids),
            state_dir: self.state_dir.or(file.state_dir),
            vhost_dir: self.vhost_dir.or(file.vhost_dir),
            vhost_socket_mode: self.vhost_socket_mode.or(file.vhost_socket_mode),
            workers: self.workers.or(file.workers),
            idle_spin_us: self.idle_spin_us.or(file.idle_spin_us),
            packet_buffers: self.packet_buffers.or(file.packet_buffers),
            offload_rules_per_port: self.offload_rules_per_port.or(file.offload_rules_per_port),
            eal: self.eal.or(file.eal),
            metrics: self.metrics.or(file.metrics),
            log_format: self.log_format.or(file.log_format),
            log_level: self.log_level.or(file.log_level),
            man: self.man,
        }
    }

    /// The path of the RPC socket.
    pub(crate) fn socket(&self) -> Result<PathBuf, OptionsError> {
        let default = || api::default_sockets().into_iter().find(|path| usable(path));
        self.rpc_socket.clone().or_else(default).ok_or(OptionsError::NoSocket)
    }

    /// The permissions of the RPC socket and of the vhost-user sockets.
    pub(crate) fn socket_modes(&self) -> Result<(u32, u32), OptionsError> {
        let mode = |option, text: &Option<String>| {
            let Some(text) = text else { return Ok(0o600) };
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
            mode.ok_or_else(|| invalid(option, text, "permissions in octal, such as 660"))
        };
        Ok((mode("rpc-socket-mode", &self.rpc_socket_mode)?, mode("vhost-socket-mode", &self.vhost_socket_mode)?))
    }

    /// The CPUs of the workers.
    pub(crate) fn cpus(&self) -> Result<CpuSet, OptionsError> {
        match &self.workers {
            Some(list) => CpuSet::parse_list(list).map_err(|error| invalid("workers", list, error)),
            // The first CPU is where a machine's interrupts and other programs tend to be.
            None => match core_affinity::get_core_ids().unwrap_or_default().last() {
                Some(last) => Ok(CpuSet::from_iter([last.id])),
                None => Err(OptionsError::NoCpu),
            },
        }
    }

    /// The options of DPDK, word by word.
    pub(crate) fn eal(&self) -> Result<Option<Vec<String>>, OptionsError> {
        match &self.eal {
            Some(options) if !cfg!(feature = "dpdk") => {
                Err(invalid("eal", options, "nothing: this daemon was built without DPDK"))
            }
            options => Ok(options.as_ref().map(|words| words.split_whitespace().map(str::to_owned).collect())),
        }
    }

    /// How workers idle.
    pub(crate) fn idle(&self) -> IdlePolicy {
        match self.idle_spin_us.unwrap_or(Spin::Microseconds(Control::DEFAULT_SPIN_US)) {
            Spin::Microseconds(us) => IdlePolicy::spin_for(Duration::from_micros(us)),
            Spin::Never(Never::Never) => IdlePolicy::POLL,
        }
    }
}

fn invalid(option: &'static str, got: &str, expected: impl ToString) -> OptionsError {
    OptionsError::Invalid { option, got: got.to_owned(), expected: expected.to_string() }
}

/// Whether a socket can be made there; its directory is made if it is missing.
fn usable(path: &std::path::Path) -> bool {
    let Some(dir) = path.parent() else { return false };
    let made = std::fs::create_dir_all(dir).is_ok();
    // Only an attempt tells whether files can be made in it.
    let probe = dir.join(format!(".sluice-{}", std::process::id()));
    made && std::fs::write(&probe, []).is_ok() && std::fs::remove_file(&probe).is_ok()
}

fn word<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, serde::de::value::Error> {
    T::deserialize(text.into_deserializer())
}
