//! `sluicectl boot create`: the boot disk of a host and its cloud-init files, by flags.

use crate::error::VerbError;
use crate::output;
use api::client::Client;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use serde_json::{Map, Value, json};

/// Files of the cloud-init disk: flag, parameter, help.
const FILES: [(&str, &str, &str); 3] = [
    ("user-data", "user_data", "File with cloud-init's user-data"),
    ("meta-data", "meta_data", "File with cloud-init's meta-data"),
    ("network-config", "network_config", "File with cloud-init's network-config, version 1 or 2"),
];

pub(crate) fn declare(leaf: Command) -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).requires("nvme").help(help)
    };
    let leaf = leaf
        .about("Creates the boot disk of a host: attaches the remote disk, creates the cloud-init disk, serves both; undoes all if a step fails")
        .arg(Arg::new("name").required(true).help("Name of the host; its controllers are NAME and NAME-cidata"))
        .arg(option("nvme", "IP[:PORT]", "NVMe/TCP target of the remote disk").requires("subnqn"))
        .arg(option("subnqn", "NQN", "NQN of the NVMe subsystem").requires("nvme"))
        .arg(option("nsid", "N", "NVMe namespace ID [default: 1]").requires("nvme").value_parser(clap::value_parser!(u32)))
        .arg(option("hostnqn", "NQN", "NQN of this host").requires("nvme"))
        .arg(switch("hdgst", "Enable NVMe header digests (CRC32C)"))
        .arg(switch("ddgst", "Enable NVMe data digests (CRC32C)"))
        .arg(option("iscsi", "URL", "Remote disk at an iSCSI target: iscsi://[user[%password]@]host[:port]/iqn/lun").requires("initiator-iqn"))
        .arg(option("initiator-iqn", "IQN", "Initiator name").requires("iscsi"))
        .arg(option("num-queues", "N", "Maximum number of queues").value_parser(clap::value_parser!(u16)))
        .group(ArgGroup::new("disk").args(["nvme", "iscsi"]).required(true));
    FILES.iter().fold(leaf, |leaf, (flag, _, help)| leaf.arg(option(flag, "FILE", help)))
}

pub(crate) fn run(client: &mut Client, leaf: &ArgMatches, json: bool) -> Result<(), VerbError> {
    let booted = client.call("boot_create", params(leaf)?)?;
    if json {
        output::print(&format!("{booted:#}\n"));
        return Ok(());
    }
    let millis = |us: &Value| format!("{:.1} ms", us.as_f64().unwrap_or(0.0) / 1000.0);
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut rows = vec![vec!["STEP".to_owned(), "TIME".to_owned()]];
    rows.extend(
        booted["steps"].as_array().into_iter().flatten().map(|step| vec![word(&step["step"]), millis(&step["us"])]),
    );
    rows.push(vec!["total".to_owned(), millis(&booted["total_us"])]);
    output::print(&output::align(&rows));
    Ok(())
}

fn params(leaf: &ArgMatches) -> Result<Value, VerbError> {
    let text = |name: &str| leaf.get_one::<String>(name).cloned();
    let mut params = Map::new();
    params.insert("name".into(), json!(text("name")));
    if let Some(address) = text("nvme") {
        let (traddr, port) = split_port(&address);
        let mut nvme =
            Map::from_iter([("traddr".to_owned(), json!(traddr)), ("subnqn".to_owned(), json!(text("subnqn")))]);
        nvme.extend(port.map(|port| ("trsvcid".to_owned(), json!(port))));
        nvme.extend(text("hostnqn").map(|nqn| ("hostnqn".to_owned(), json!(nqn))));
        nvme.extend(leaf.get_one::<u32>("nsid").map(|nsid| ("nsid".to_owned(), json!(nsid))));
        for digest in ["hdgst", "ddgst"] {
            nvme.insert(digest.to_owned(), json!(leaf.get_flag(digest)));
        }
        params.insert("nvme".into(), Value::Object(nvme));
    }
    if let Some(url) = text("iscsi") {
        params.insert("iscsi".into(), json!({"url": url, "initiator_iqn": text("initiator-iqn")}));
    }
    let mut cidata = Map::new();
    for (flag, field, _) in FILES {
        if let Some(file) = text(flag) {
            let content =
                std::fs::read_to_string(&file).map_err(|e| VerbError::Usage(format!("--{flag} {file}: {e}")))?;
            cidata.insert(field.to_owned(), json!(content));
        }
    }
    if !cidata.is_empty() {
        params.insert("cidata".into(), Value::Object(cidata));
    }
    if let Some(queues) = leaf.get_one::<u16>("num-queues") {
        params.insert("controller".into(), json!({"num_queues": queues}));
    }
    Ok(Value::Object(params))
}

/// `IP`, `IPv4:PORT` or `[IPv6]:PORT`.
fn split_port(address: &str) -> (&str, Option<&str>) {
    if let Some((ip, rest)) = address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (ip, rest.strip_prefix(':'));
    }
    match address.rsplit_once(':') {
        Some((ip, port)) if !ip.contains(':') => (ip, Some(port)),
        _ => (address, None),
    }
}

#[cfg(test)]
mod tests {
    use super::split_port;

    #[test]
    fn addresses_with_and_without_port() {
        assert_eq!(split_port("10.0.0.1"), ("10.0.0.1", None));
        assert_eq!(split_port("10.0.0.1:4420"), ("10.0.0.1", Some("4420")));
        assert_eq!(split_port("fd00::1"), ("fd00::1", None));
        assert_eq!(split_port("[fd00::1]:4420"), ("fd00::1", Some("4420")));
    }
}
