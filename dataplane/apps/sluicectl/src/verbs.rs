//! The verbs, and the method that each calls.

use crate::error::VerbError;
use crate::output::Column;
use crate::output::Format::{Bytes, Plain};
use serde_json::Value;

/// One verb: `sluicectl NOUN VERB`.
pub(crate) struct Verb {
    pub(crate) path: &'static [&'static str],
    pub(crate) action: Action,
    /// The columns of its table; none for an answer that is a word.
    pub(crate) columns: &'static [Column],
    /// Where in the answer the rows are.
    pub(crate) rows: &'static str,
}

/// What a verb does.
pub(crate) enum Action {
    /// Calls a method. Its parameters are flags, and those named here positional arguments.
    Call { method: &'static str, positional: &'static [&'static str] },
    /// Calls a method with a document from a file.
    LoadFile { method: &'static str },
    /// Creates the boot disk of a host.
    Boot,
    /// Captures a port's packets until interrupted.
    Capture,
    /// Copies an image onto a disk and shows the progress.
    ImageWrite,
    /// Calls any method.
    Raw,
    /// Shows live rates.
    Top,
    /// Writes man pages.
    Man,
    /// Prints a shell's completions.
    Completions,
}

const fn call(path: &'static [&'static str], method: &'static str, positional: &'static [&'static str]) -> Verb {
    Verb { path, action: Action::Call { method, positional }, columns: &[], rows: "" }
}

const fn table(path: &'static [&'static str], method: &'static str, columns: &'static [Column]) -> Verb {
    Verb { path, action: Action::Call { method, positional: &[] }, columns, rows: "" }
}

const fn special(path: &'static [&'static str], action: Action) -> Verb {
    Verb { path, action, columns: &[], rows: "" }
}

pub(crate) const NOUNS: &[(&str, &str)] = &[
    ("disk", "Disks (SPDK: bdevs)"),
    ("create", "Creates one of the given kind"),
    ("error", "Error injection"),
    ("controller", "vhost-user-blk controllers: disks served to guests"),
    ("nvme", "NVMe/TCP controllers"),
    ("iscsi", "iSCSI sessions and discovery"),
    ("boot", "Boot disks of hosts"),
    ("image", "Disk images"),
    ("bridge", "Learning bridges"),
    ("fdb", "Forwarding databases of bridges"),
    ("port", "Ports of the switch"),
    ("flow", "Datapath flows"),
    ("worker", "Workers (poll-mode threads)"),
    ("scheduler", "Scheduler of queues on workers"),
    ("event", "Events"),
    ("config", "Configuration of the daemon as a document"),
    ("log", "Log of the daemon"),
];

pub(crate) const VERBS: &[Verb] = &[
    call(&["disk", "create", "malloc"], "bdev_malloc_create", &["name"]),
    call(&["disk", "create", "null"], "bdev_null_create", &["name"]),
    call(&["disk", "create", "file"], "bdev_uring_create", &["name", "filename"]),
    call(&["disk", "create", "aio"], "bdev_aio_create", &["name", "filename"]),
    call(&["disk", "create", "error"], "bdev_error_create", &["base_name"]),
    call(&["disk", "create", "delay"], "bdev_delay_create", &["name", "base_bdev_name"]),
    table(
        &["disk", "list"],
        "bdev_get_bdevs",
        &[
            Column("NAME", "/name", Plain),
            Column("KIND", "/product_name", Plain),
            Column("SIZE", "/size", Bytes),
            Column("BLOCK", "/block_size", Plain),
            Column("HELD", "/claimed", Plain),
            Column("UUID", "/uuid", Plain),
        ],
    ),
    call(&["disk", "delete"], "bdev_delete", &["name"]),
    call(&["disk", "resize"], "bdev_null_resize", &["name", "new_size"]),
    call(&["disk", "rescan"], "bdev_rescan", &["name"]),
    call(&["disk", "qos"], "bdev_set_qos_limit", &["name"]),
    call(&["disk", "latency"], "bdev_delay_update_latency", &["delay_bdev_name", "latency_type", "latency_us"]),
    call(&["disk", "error", "inject"], "bdev_error_inject_error", &["name", "io_type", "error_type"]),
    Verb {
        path: &["disk", "stat"],
        action: Action::Call { method: "bdev_get_iostat", positional: &["name"] },
        columns: &[
            Column("NAME", "/name", Plain),
            Column("READS", "/num_read_ops", Plain),
            Column("READ", "/bytes_read", Bytes),
            Column("WRITES", "/num_write_ops", Plain),
            Column("WRITTEN", "/bytes_written", Bytes),
            Column("ERRORS", "/io_error", Plain),
        ],
        rows: "/bdevs",
    },
    call(&["disk", "create", "cidata"], "bdev_cidata_create", &["name"]),
    call(&["disk", "create", "iscsi"], "bdev_iscsi_create", &["name", "initiator_iqn", "url"]),
    call(&["nvme", "attach"], "bdev_nvme_attach_controller", &["name", "trtype", "traddr", "subnqn"]),
    call(&["nvme", "detach"], "bdev_nvme_detach_controller", &["name"]),
    call(&["nvme", "reset"], "bdev_nvme_reset_controller", &["name"]),
    table(
        &["nvme", "list"],
        "bdev_nvme_get_controllers",
        &[
            Column("NAME", "/name", Plain),
            Column("STATE", "/ctrlrs/0/state", Plain),
            Column("ADDRESS", "/ctrlrs/0/trid/traddr", Plain),
            Column("PORT", "/ctrlrs/0/trid/trsvcid", Plain),
            Column("SUBSYSTEM", "/ctrlrs/0/trid/subnqn", Plain),
            Column("HELD", "/ctrlrs/0/held", Plain),
            Column("ATTEMPTS", "/ctrlrs/0/failed_attempts", Plain),
        ],
    ),
    Verb {
        path: &["nvme", "discover"],
        action: Action::Call { method: "nvme_discover", positional: &["traddr"] },
        columns: &[
            Column("SUBSYSTEM", "/subnqn", Plain),
            Column("ADDRESS", "/traddr", Plain),
            Column("PORT", "/trsvcid", Plain),
        ],
        rows: "",
    },
    Verb {
        path: &["iscsi", "discover"],
        action: Action::Call { method: "iscsi_discover", positional: &["portal", "initiator_iqn"] },
        columns: &[Column("TARGET", "/iqn", Plain), Column("ADDRESSES", "/addresses", Plain)],
        rows: "",
    },
    Verb {
        path: &["iscsi", "sessions"],
        action: Action::Call { method: "bdev_iscsi_get_sessions", positional: &["name"] },
        columns: &[
            Column("SESSION", "/session", Plain),
            Column("CONNECTED", "/connected", Plain),
            Column("HELD", "/held", Plain),
            Column("ATTEMPTS", "/failed_attempts", Plain),
            Column("RECONNECTS", "/reconnects", Plain),
            Column("LAST ERROR", "/last_error", Plain),
        ],
        rows: "",
    },
    special(&["boot", "create"], Action::Boot),
    call(&["boot", "delete"], "boot_delete", &["name"]),
    special(&["image", "write"], Action::ImageWrite),
    call(&["controller", "create"], "vhost_create_blk_controller", &["ctrlr", "dev_name"]),
    table(
        &["controller", "list"],
        "vhost_get_controllers",
        &[
            Column("NAME", "/ctrlr", Plain),
            Column("DISK", "/backend_specific/block/bdev", Plain),
            Column("CONNECTED", "/connected", Plain),
            Column("QUEUES", "/num_queues", Plain),
            Column("CPUS", "/cpumask", Plain),
            Column("SOCKET", "/socket", Plain),
            Column("QUARANTINED", "/quarantined", Plain),
        ],
    ),
    call(&["controller", "delete"], "vhost_delete_controller", &["ctrlr"]),
    call(&["controller", "move-queue"], "vhost_controller_move_queue", &["ctrlr", "queue", "worker"]),
    call(&["bridge", "create"], "bridge_create", &["name"]),
    call(&["bridge", "delete"], "bridge_delete", &["name"]),
    table(
        &["bridge", "list"],
        "bridge_get",
        &[
            Column("NAME", "/name", Plain),
            Column("STATIONS", "/stations", Plain),
            Column("AGING_S", "/mac_aging_s", Plain),
            Column("FLOOD_PPS", "/flood_pps", Plain),
        ],
    ),
    Verb {
        path: &["bridge", "ports"],
        action: Action::Call { method: "bridge_get", positional: &["name"] },
        columns: &[
            Column("PORT", "/port", Plain),
            Column("TAG", "/tag", Plain),
            Column("TRUNKS", "/trunks", Plain),
            Column("NATIVE", "/native_vlan", Plain),
            Column("MACS", "/allowed_macs", Plain),
            Column("IPS", "/allowed_ips", Plain),
        ],
        rows: "/0/ports",
    },
    call(&["bridge", "add-port"], "bridge_add_port", &["bridge", "port"]),
    call(&["bridge", "remove-port"], "bridge_remove_port", &["bridge", "port"]),
    Verb {
        path: &["fdb", "show"],
        action: Action::Call { method: "bridge_get_fdb", positional: &["bridge"] },
        columns: &[
            Column("PORT", "/port", Plain),
            Column("VLAN", "/vlan", Plain),
            Column("MAC", "/mac", Plain),
            Column("AGE_S", "/age_s", Plain),
        ],
        rows: "",
    },
    call(&["fdb", "flush"], "bridge_flush_fdb", &["bridge"]),
    call(&["fdb", "add"], "bridge_add_fdb", &["bridge", "mac", "port"]),
    call(&["fdb", "delete"], "bridge_delete_fdb", &["bridge", "mac"]),
    call(&["port", "create", "vhost-user"], "port_create_vhost_user", &["name"]),
    call(&["port", "create", "tap"], "port_create_tap", &["name"]),
    call(&["port", "create", "dpdk"], "port_create_dpdk", &["name", "devargs"]),
    table(
        &["port", "list"],
        "port_get",
        &[
            Column("NO", "/port_no", Plain),
            Column("NAME", "/name", Plain),
            Column("KIND", "/kind", Plain),
            Column("BRIDGE", "/bridge", Plain),
            Column("LINK", "/link_up", Plain),
            Column("MTU", "/mtu", Plain),
            Column("RX", "/stats/rx_packets", Plain),
            Column("RX_BYTES", "/stats/rx_bytes", Bytes),
            Column("TX", "/stats/tx_packets", Plain),
            Column("TX_BYTES", "/stats/tx_bytes", Bytes),
        ],
    ),
    call(&["port", "show"], "port_get", &["name"]),
    call(&["port", "delete"], "port_delete", &["name"]),
    table(
        &["port", "guests"],
        "port_get",
        &[
            Column("NAME", "/name", Plain),
            Column("CONNECTED", "/vhost_user/connected", Plain),
            Column("SOCKET", "/vhost_user/socket", Plain),
            Column("QUARANTINED", "/vhost_user/quarantined", Plain),
            Column("LAST ERROR", "/vhost_user/last_error", Plain),
        ],
    ),
    call(&["port", "move-queue"], "port_move_queue", &["name", "queue", "worker"]),
    call(&["port", "limit"], "port_set_rate_limit", &["name"]),
    special(&["capture"], Action::Capture),
    call(&["flow", "add"], "flow_add", &["flow", "actions"]),
    call(&["flow", "delete"], "flow_delete", &["flow"]),
    call(&["flow", "dump"], "flow_dump", &[]),
    call(&["flow", "trace"], "flow_trace", &["flow"]),
    call(&["flow", "offload"], "flow_get_offload", &[]),
    Verb {
        path: &["worker", "list"],
        action: Action::Call { method: "framework_get_reactors", positional: &[] },
        columns: &[
            Column("CPU", "/lcore", Plain),
            Column("BUSY", "/busy", Plain),
            Column("IDLE", "/idle", Plain),
            Column("ASLEEP", "/asleep", Plain),
            Column("SLEEPS", "/sleeps", Plain),
        ],
        rows: "/reactors",
    },
    call(&["worker", "idle"], "framework_set_idle", &["spin_us"]),
    call(&["scheduler", "set"], "framework_set_scheduler", &["name"]),
    Verb {
        path: &["scheduler", "show"],
        action: Action::Call { method: "framework_get_scheduler", positional: &[] },
        columns: &[
            Column("KIND", "/kind", Plain),
            Column("NAME", "/name", Plain),
            Column("QUEUE", "/queue", Plain),
            Column("WORKER", "/worker", Plain),
            Column("LOAD_%", "/load", Plain),
            Column("PINNED", "/pinned", Plain),
        ],
        rows: "/queues",
    },
    table(
        &["event", "list"],
        "notify_get_notifications",
        &[
            Column("ID", "/id", Plain),
            Column("TIME_MS", "/time_ms", Plain),
            Column("TYPE", "/type", Plain),
            Column("OBJECT", "/ctx", Plain),
            Column("DETAIL", "/detail", Plain),
        ],
    ),
    call(&["config", "save"], "save_config", &[]),
    special(&["config", "load"], Action::LoadFile { method: "load_config" }),
    special(&["config", "validate"], Action::LoadFile { method: "config_validate" }),
    table(
        &["config", "pending"],
        "config_get_pending",
        &[Column("OBJECT", "/object", Plain), Column("METHOD", "/method", Plain), Column("ERROR", "/error", Plain)],
    ),
    call(&["log", "level"], "log_set_level", &["level"]),
    call(&["metrics"], "metrics_get", &[]),
    special(&["top"], Action::Top),
    special(&["rpc"], Action::Raw),
    special(&["completions"], Action::Completions),
    special(&["man"], Action::Man),
];

/// Reads a configuration document from a file, or from the standard input for `-`.
pub(crate) fn read_document(file: &str) -> Result<Value, VerbError> {
    let text = if file == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    let text = text.map_err(|e| VerbError::Usage(format!("{file}: {e}")))?;
    serde_json::from_str(&text).map_err(|e| VerbError::Usage(format!("{file}: {e}")))
}
