//! The environment abstraction layer: DPDK's one instance in a process.

use crate::{Errno, log};
use dpdk_sys as sys;
use parking_lot::Mutex;
use std::ffi::{CStr, CString, c_char};

/// The source of DPDK's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EalMemory {
    /// Hugepages without files (`--in-memory`): nothing is left behind, no mount and no privilege is needed.
    InMemory,
    /// Hugepages as files of a mounted hugetlbfs, which other DPDK processes may map under this prefix.
    Files {
        /// Tells instances on one machine apart.
        prefix: String,
    },
    /// Normal pages (`--no-huge`), this much at once. Slower, and devices that need physical addresses do not work.
    NoHuge {
        /// Mebibytes.
        mib: u32,
    },
}

/// The configuration of DPDK.
#[derive(Clone, Debug)]
pub struct EalConfig {
    /// The source of memory.
    pub memory: EalMemory,
    /// CPUs for DPDK's own threads (interrupts, alarms); empty: those that the calling thread may run on.
    pub control_cpus: Vec<usize>,
    /// More options of the EAL, as in its documentation.
    pub options: Vec<String>,
}

impl EalMemory {
    /// Mebibytes that are enough for fifty thousand packets.
    pub const DEFAULT_MIB: u32 = 256;

    /// Hugepages where the system has so much in free ones, else as much in normal pages.
    pub fn detect(mib: u32) -> EalMemory {
        let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        let free_kib: u64 = sizes.filter_map(|size| free_hugepages_kib(&size.path())).sum();
        if free_kib >= u64::from(mib) * 1024 { EalMemory::InMemory } else { EalMemory::NoHuge { mib } }
    }
}

/// Free hugepages of one size, in KiB; its directory is named like `hugepages-2048kB`.
fn free_hugepages_kib(directory: &std::path::Path) -> Option<u64> {
    let kib: u64 = directory.file_name()?.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    let free: u64 = std::fs::read_to_string(directory.join("free_hugepages")).ok()?.trim().parse().ok()?;
    Some(kib * free)
}

impl Default for EalConfig {
    fn default() -> EalConfig {
        EalConfig { memory: EalMemory::detect(EalMemory::DEFAULT_MIB), control_cpus: Vec::new(), options: Vec::new() }
    }
}

/// The reason why DPDK did not start.
#[derive(Debug, thiserror::Error)]
pub enum EalError {
    /// DPDK is initialised once in a process.
    #[error(
        "DPDK was already initialised in this process: share its `Eal`, or restart the process to change its options"
    )]
    AlreadyInitialised,
    /// An option that would end the process or cannot be passed.
    #[error("EAL option {option:?}: {expected}")]
    Option {
        /// The option.
        option: String,
        /// The accepted options.
        expected: &'static str,
    },
    /// An option that DPDK does not understand.
    #[error("DPDK refused an option of {options:?}: {said}")]
    Options {
        /// All options.
        options: Vec<String>,
        /// DPDK's log messages.
        said: String,
    },
    /// Not enough hugepages, or none.
    #[error(
        "DPDK has no memory: {said}. Reserve hugepages (`sysctl vm.nr_hugepages=512`), or use no-huge memory, which is slower"
    )]
    Memory {
        /// DPDK's log messages.
        said: String,
    },
    /// The process lacks a privilege.
    #[error("DPDK lacks a permission: {said}. In-memory and no-huge memory need none")]
    Permission {
        /// DPDK's log messages.
        said: String,
    },
    /// Any other failure.
    #[error("DPDK did not start with {options:?}: {errno}: {said}")]
    Failed {
        /// All options.
        options: Vec<String>,
        /// DPDK's error number.
        errno: Errno,
        /// DPDK's log messages.
        said: String,
    },
}

/// The running EAL, which stays until the process ends: `rte_eal_cleanup` unmaps what DPDK's own interrupt thread, which nothing
/// stops, may still read (seen with net_memif), and all that it frees the process's end frees too.
#[derive(Clone, Debug)]
pub struct Eal(());

/// Whether DPDK was initialised, or tried to be: once a process.
static INSTANCE: Mutex<Option<Running>> = Mutex::new(None);

enum Running {
    Yes,
    Failed,
}

impl Eal {
    /// Starts DPDK. Takes hold of no device: [`crate::EthDev::attach`] does.
    pub fn init(config: &EalConfig) -> Result<Eal, EalError> {
        let mut instance = INSTANCE.lock();
        if instance.is_some() {
            return Err(EalError::AlreadyInitialised);
        }
        let options = options(config)?;
        *instance = Some(Running::Failed);
        log::redirect();
        // DPDK pins the thread that it is started on: give it one that ends.
        let started = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("dpdk-init".into());
            thread.spawn_scoped(scope, || start(&options)).map(|thread| thread.join().expect("no panic in DPDK"))
        });
        let (result, said) =
            started.unwrap_or_else(|e| (Err(Errno(e.raw_os_error().unwrap_or_default())), String::new()));
        match result {
            Ok(()) => {
                *instance = Some(Running::Yes);
                Ok(Eal(()))
            }
            Err(Errno(libc::EINVAL)) => Err(EalError::Options { options, said }),
            Err(Errno(libc::ENOMEM)) => Err(EalError::Memory { said }),
            Err(Errno(libc::EACCES | libc::EPERM)) => Err(EalError::Permission { said }),
            Err(errno) => Err(EalError::Failed { options, errno, said }),
        }
    }

    /// The running EAL, if there is one.
    pub fn running() -> Option<Eal> {
        matches!(*INSTANCE.lock(), Some(Running::Yes)).then_some(Eal(()))
    }

    /// DPDK's version in words.
    pub fn version() -> String {
        // SAFETY: `rte_version` has no precondition.
        let version = unsafe { sys::rte_version() };
        // SAFETY: DPDK returns a static C string.
        unsafe { CStr::from_ptr(version) }.to_string_lossy().into_owned()
    }
}

/// The EAL's argument vector.
fn options(config: &EalConfig) -> Result<Vec<String>, EalError> {
    let cpus = if config.control_cpus.is_empty() { allowed_cpus() } else { config.control_cpus.clone() };
    let cpus = cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut options = vec![
        "sluice".to_owned(),
        format!("--lcores=0@({cpus})"),
        // An allow list with nothing in it: devices are attached one by one.
        "--allow=0000:00:00.0".to_owned(),
        "--no-telemetry".to_owned(),
    ];
    match &config.memory {
        EalMemory::InMemory => options.push("--in-memory".to_owned()),
        EalMemory::Files { prefix } => options.push(format!("--file-prefix={prefix}")),
        EalMemory::NoHuge { mib } => {
            options.extend(["--no-huge".to_owned(), "--no-shconf".to_owned(), format!("-m{mib}")]);
        }
    }
    for option in &config.options {
        if ["-h", "--help", "-v", "--version"].contains(&option.as_str()) {
            let expected = "it would end the process; expected an option that configures";
            return Err(EalError::Option { option: option.clone(), expected });
        }
        options.push(option.clone());
    }
    match options.iter().find(|option| option.contains('\0')) {
        Some(option) => Err(EalError::Option { option: option.clone(), expected: "expected no NUL byte" }),
        None => Ok(options),
    }
}

/// The CPUs that the calling thread may run on.
fn allowed_cpus() -> Vec<usize> {
    // SAFETY: zeros are a valid set: the empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` has the size that is passed.
    let _ = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) };
    // SAFETY: `cpu` is below the size of the set.
    let cpus = (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) });
    cpus.collect()
}

/// The arguments of DPDK, each with its NUL. DPDK keeps pointers into them, and may change them.
static ARGUMENTS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Runs `rte_eal_init`, and returns what it logged.
fn start(options: &[String]) -> (Result<(), Errno>, String) {
    let owned = |option: &String| CString::new(option.as_str()).expect("checked for NUL").into_bytes_with_nul();
    let mut options: Vec<Vec<u8>> = options.iter().map(owned).collect();
    let mut argv: Vec<*mut c_char> = options.iter_mut().map(|option| option.as_mut_ptr().cast()).collect();
    argv.push(std::ptr::null_mut());
    ARGUMENTS.lock().extend(options);
    let argc = argv.len() as i32 - 1;
    // SAFETY: `argv` has `argc` C strings, which `ARGUMENTS` never frees, and a null; DPDK permutes the array and does not keep it.
    let (parsed, said) = log::listen(|| unsafe { sys::rte_eal_init(argc, argv.as_mut_ptr()) });
    (if parsed < 0 { Err(Errno::last()) } else { Ok(()) }, said)
}
