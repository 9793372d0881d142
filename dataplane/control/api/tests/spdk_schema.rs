//! Our methods against SPDK's schema (26.09-pre): every parameter that SPDK's clients may send is known, of the same type, and
//! nothing is asked for that they need not send.

use serde_json::Value;

/// SPDK's methods with their parameters as `name: type`; `*` marks a required one.
const SPDK: &[(&str, &str)] = &[
    ("rpc_get_methods", "current: boolean, include_aliases: boolean"),
    ("spdk_get_version", ""),
    ("framework_get_reactors", ""),
    ("framework_get_config", "name*: string, with_batches: boolean"),
    ("framework_get_subsystems", ""),
    ("framework_wait_init", ""),
    ("thread_get_stats", ""),
    ("thread_get_pollers", ""),
    ("log_set_level", "level*: log_level"),
    ("log_get_level", ""),
    ("notify_get_types", ""),
    ("notify_get_notifications", "id: uint64, max: uint64"),
    ("bdev_get_bdevs", "name: string, timeout: uint64"),
    ("bdev_get_iostat", "names: bdev_iostat_names, per_channel: boolean, reset_mode: bdev_reset_stat_mode"),
    ("bdev_reset_iostat", "name: string, mode: bdev_reset_stat_mode"),
    (
        "bdev_enable_histogram",
        "name*: string, enable*: boolean, opc: string, granularity: uint8, min_nsec: uint64, max_nsec: uint64",
    ),
    ("bdev_get_histogram", "name*: string"),
    (
        "bdev_set_qos_limit",
        "name*: string, rw_ios_per_sec: uint64, rw_mbytes_per_sec: uint64, r_mbytes_per_sec: uint64, w_mbytes_per_sec: uint64",
    ),
    (
        "bdev_malloc_create",
        "name: string, block_size*: uint32, num_blocks*: uint64, uuid: uuid, optimal_io_boundary: uint32, md_size: uint32, md_interleave: boolean, dif_type: int32, dif_is_head_of_md: boolean, physical_block_size: uint32, dif_pi_format: uint32, numa_id: int32",
    ),
    ("bdev_malloc_delete", "name*: string"),
    (
        "bdev_null_create",
        "name*: string, block_size*: uint32, num_blocks*: uint64, uuid: uuid, physical_block_size: uint32, md_size: uint32, dif_type: int32, dif_pi_format: uint32, dif_is_head_of_md: boolean, preferred_write_granularity: uint32, preferred_write_alignment: uint32, optimal_write_size: uint32, preferred_unmap_granularity: uint32, preferred_unmap_alignment: uint32",
    ),
    ("bdev_null_delete", "name*: string"),
    ("bdev_null_resize", "name*: string, new_size*: uint64"),
    (
        "bdev_aio_create",
        "name*: string, filename*: string, block_size: uint32, readonly: boolean, fallocate: boolean, uuid: uuid, nowait: boolean",
    ),
    ("bdev_aio_delete", "name*: string"),
    ("bdev_aio_rescan", "name*: string"),
    ("bdev_uring_create", "filename*: string, name*: string, block_size: uint32, uuid: uuid"),
    ("bdev_uring_delete", "name*: string"),
    ("bdev_uring_rescan", "name*: string"),
    ("bdev_error_create", "base_name*: string, uuid: uuid"),
    ("bdev_error_delete", "name*: string"),
    (
        "bdev_error_inject_error",
        "name*: string, io_type*: bdev_error_inject_io_type, error_type*: bdev_error_inject_error_type, nvme_sct: uint32, nvme_sc: uint32, num: uint32, queue_depth: uint64, corrupt_offset: uint64, corrupt_value: uint8",
    ),
    (
        "bdev_delay_create",
        "name*: string, base_bdev_name*: string, avg_read_latency*: uint64, p99_read_latency*: uint64, avg_write_latency*: uint64, p99_write_latency*: uint64, uuid: uuid",
    ),
    ("bdev_delay_delete", "name*: string"),
    (
        "bdev_delay_update_latency",
        "delay_bdev_name*: string, latency_type*: bdev_delay_latency_type, latency_us*: uint64",
    ),
    ("bdev_wait_for_examine", ""),
    (
        "vhost_create_blk_controller",
        "ctrlr*: string, dev_name*: string, readonly: boolean, packed_ring: boolean, cpumask: string, transport: string",
    ),
    ("vhost_get_controllers", "name: string"),
    ("vhost_delete_controller", "ctrlr*: string"),
    ("vhost_controller_set_coalescing", "ctrlr*: string, delay_base_us*: uint32, iops_threshold*: uint32"),
    ("virtio_blk_create_transport", "name*: string"),
    ("virtio_blk_get_transports", "name: string"),
];

/// Methods of SPDK's that are not answered, and why.
const MISSING: &[(&str, &str)] = &[(
    "vhost_controller_set_coalescing",
    "interrupts are coalesced by the event index alone: there is nothing to set",
)];

fn types(kind: &str) -> &'static [&'static str] {
    match kind {
        "boolean" => &["boolean"],
        "uint8" | "uint32" | "uint64" | "int32" => &["integer"],
        // Enumerations are words, and the list of names is one.
        "bdev_iostat_names" => &["array"],
        _ => &["string"],
    }
}

/// Whether a property's schema takes values of a type, wrapped as it may be.
fn takes(property: &Value, kind: &str) -> bool {
    let named = match &property["type"] {
        Value::String(only) => only == kind,
        Value::Array(several) => several.iter().any(|one| one == kind),
        _ => false,
    };
    let within = |key: &str| property[key].as_array().is_some_and(|all| all.iter().any(|one| takes(one, kind)));
    let words = kind == "string" && (property["enum"].is_array() || property["const"].is_string());
    named || words || within("oneOf") || within("anyOf")
}

#[test]
fn spdks_clients_may_send_what_they_send() {
    let table = api::table();
    for (name, params) in SPDK {
        if MISSING.iter().any(|(missing, _)| missing == name) {
            assert!(table.get(name).is_err(), "{name} is there: take it off the list");
            continue;
        }
        let entry = table.get(name).unwrap_or_else(|error| panic!("{error}"));
        let mut required: Vec<&str> = Vec::new();
        for param in params.split(", ").filter(|param| !param.is_empty()) {
            let (param, kind) = param.split_once(": ").unwrap();
            let bare = param.trim_end_matches('*');
            let property = &entry.params["properties"][bare];
            assert!(property.is_object(), "{name}: {bare} is unknown");
            assert!(types(kind).iter().any(|kind| takes(property, kind)), "{name}: {bare} is no {kind}: {property}");
            required.extend(param.ends_with('*').then_some(bare));
        }
        for ours in entry.params["required"].as_array().into_iter().flatten() {
            assert!(
                required.contains(&ours.as_str().unwrap()),
                "{name}: {ours} is required, which SPDK does not ask for"
            );
        }
    }
}

#[test]
fn every_method_and_every_parameter_is_documented() {
    for entry in api::table().entries() {
        assert!(!entry.doc().is_empty(), "{}", entry.name);
        for (name, property) in entry.params["properties"].as_object().into_iter().flatten() {
            assert!(property["description"].is_string(), "{}: {name}", entry.name);
        }
    }
}
