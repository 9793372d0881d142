//! The files of a seed, and what must be true of them.

use serde_json::{Map, Value};
use uuid::Uuid;

/// Most bytes of one file: cloud providers take 16 to 64 KiB of user data.
pub const MAX_FILE_LEN: usize = 1 << 20;

/// Kinds of user data that cloud-init tells apart by the first line, besides gzip (cloud-init, "User-data formats").
const USER_DATA_STARTS: [&str; 9] = [
    "#cloud-config",
    "#!",
    "#include",
    "#cloud-boothook",
    "#part-handler",
    "#cloud-config-archive",
    "#upstart-job",
    "## template: jinja",
    "Content-Type:",
];

/// Why a seed is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// A file is too long.
    #[error("{file}: {len} bytes, expected at most {MAX_FILE_LEN}")]
    TooLong {
        /// Which file.
        file: &'static str,
        /// The number of bytes of the file.
        len: usize,
    },
    /// A file is not YAML.
    #[error("{file}: not YAML: {reason}")]
    Yaml {
        /// Which file.
        file: &'static str,
        /// The parser's reason, with its place.
        reason: String,
    },
    /// A file is YAML, but not what cloud-init expects there.
    #[error("{file}: {field}: got {got}, expected {expected}")]
    Invalid {
        /// Which file.
        file: &'static str,
        /// The field.
        field: String,
        /// The value of the field.
        got: String,
        /// The accepted values.
        expected: &'static str,
    },
}

/// Which machine the guest believes to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Instance {
    /// The one that belongs to the disk's name: the same whatever the content.
    #[default]
    OfName,
    /// A new one: the guest runs its first boot again.
    New,
    /// The operator's.
    Id(String),
}

/// The files of a seed, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    pub(crate) user_data: String,
    pub(crate) meta_data: String,
    pub(crate) network_config: Option<String>,
    instance_id: String,
}

impl Seed {
    /// Checks the files of the disk `name`. An `instance-id` in `meta_data` counts; without one it is added.
    pub fn new(
        name: &str,
        user_data: String,
        meta_data: String,
        network_config: Option<String>,
        instance: Instance,
    ) -> Result<Seed, SeedError> {
        check_user_data(&user_data)?;
        let (meta_data, instance_id) = complete_meta_data(name, meta_data, instance)?;
        if let Some(text) = &network_config {
            check_network_config(text)?;
        }
        Ok(Seed { user_data, meta_data, network_config, instance_id })
    }

    /// The `instance-id` that the guest will see.
    pub fn instance_id(&self) -> &str {
        &self.instance_id
    }
}

fn check_user_data(text: &str) -> Result<(), SeedError> {
    let file = "user-data";
    check_len(file, text)?;
    if text.trim().is_empty() {
        return Ok(());
    }
    let first = text.lines().next().unwrap_or_default();
    if !USER_DATA_STARTS.iter().any(|start| first.starts_with(start)) && !first.starts_with("MIME-Version:") {
        return Err(SeedError::Invalid {
            file,
            field: "first line".into(),
            got: format!("{:?}", first.chars().take(60).collect::<String>()),
            expected: "#cloud-config, #! or another header of cloud-init's user data",
        });
    }
    if first.trim_end() == "#cloud-config" {
        mapping(file, text)?;
    }
    Ok(())
}

/// The meta data with its `instance-id`.
fn complete_meta_data(name: &str, text: String, instance: Instance) -> Result<(String, String), SeedError> {
    let file = "meta-data";
    check_len(file, &text)?;
    let fields = mapping(file, &text)?;
    match fields.get("instance-id") {
        Some(Value::String(id)) if !id.is_empty() && instance == Instance::OfName => {
            let id = id.clone();
            return Ok((text, id));
        }
        Some(Value::String(_)) if instance != Instance::OfName => {
            return Err(invalid(file, "instance-id", &fields["instance-id"], "it once: here, or as a parameter"));
        }
        Some(other) => return Err(invalid(file, "instance-id", other, "a text that is not empty")),
        None => {}
    }
    let id = match instance {
        Instance::OfName => Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string(),
        Instance::New => Uuid::new_v4().to_string(),
        Instance::Id(id) if id.is_empty() || id.chars().any(char::is_control) => {
            return Err(invalid(file, "instance-id", &Value::String(id), "a text of one line"));
        }
        Instance::Id(id) => id,
    };
    let line = Value::String(id.clone());
    // A flow mapping (JSON) takes no line behind it, so what is not in block style is written anew.
    let block_style = text.lines().all(|l| !l.trim_start().starts_with('{'));
    let text = if fields.is_empty() {
        format!("instance-id: {line}\n")
    } else if block_style {
        format!("instance-id: {line}\n{text}")
    } else {
        let mut fields = fields;
        fields.insert("instance-id".into(), line);
        format!("{}\n", Value::Object(fields))
    };
    mapping(file, &text)?;
    Ok((text, id))
}

/// Version 1 (cloud-init, "Networking config Version 1") or 2 (netplan's), bare or under `network`.
fn check_network_config(text: &str) -> Result<(), SeedError> {
    let file = "network-config";
    check_len(file, text)?;
    let outer = mapping(file, text)?;
    let config = match outer.get("network") {
        Some(Value::Object(inner)) => inner,
        Some(other) => return Err(invalid(file, "network", other, "a mapping")),
        None => &outer,
    };
    match config.get("version") {
        Some(Value::Number(version)) if version.as_u64() == Some(1) => check_version_1(file, config),
        Some(Value::Number(version)) if version.as_u64() == Some(2) => check_version_2(file, config),
        other => Err(invalid(file, "version", other.unwrap_or(&Value::Null), "1 or 2")),
    }
}

fn check_version_1(file: &'static str, config: &Map<String, Value>) -> Result<(), SeedError> {
    let items = config.get("config").unwrap_or(&Value::Null);
    let Value::Array(items) = items else {
        // "config: disabled" is legal.
        let disabled = items.as_str() == Some("disabled");
        return if disabled { Ok(()) } else { Err(invalid(file, "config", items, "a list")) };
    };
    for (index, item) in items.iter().enumerate() {
        let field = |name| format!("config[{index}].{name}");
        if item.get("type").and_then(Value::as_str).is_none() {
            return Err(invalid(
                file,
                field("type"),
                &item["type"],
                "physical, bond, bridge, vlan, nameserver or route",
            ));
        }
        if let Some(mac) = item.get("mac_address") {
            check_mac(file, field("mac_address"), mac)?;
        }
    }
    Ok(())
}

fn check_version_2(file: &'static str, config: &Map<String, Value>) -> Result<(), SeedError> {
    const KINDS: [&str; 5] = ["ethernets", "bonds", "bridges", "vlans", "wifis"];
    let mut found = false;
    for kind in KINDS {
        let Some(devices) = config.get(kind) else { continue };
        found = true;
        let Value::Object(devices) = devices else { return Err(invalid(file, kind, devices, "a mapping")) };
        for (name, device) in devices {
            let field = |suffix| format!("{kind}.{name}{suffix}");
            if !device.is_object() {
                return Err(invalid(file, field(""), device, "a mapping"));
            }
            if let Some(mac) = device.get("match").and_then(|m| m.get("macaddress")) {
                check_mac(file, field(".match.macaddress"), mac)?;
            }
            if let Some(mac) = device.get("macaddress") {
                check_mac(file, field(".macaddress"), mac)?;
            }
        }
    }
    let expected = "at least one of ethernets, bonds, bridges, vlans";
    if found { Ok(()) } else { Err(invalid(file, "network", &Value::Object(config.clone()), expected)) }
}

fn check_mac(file: &'static str, field: String, value: &Value) -> Result<(), SeedError> {
    let octets = value.as_str().map(|text| text.split(':').map(|o| o.len() == 2 && u8::from_str_radix(o, 16).is_ok()));
    match octets.map(|octets| octets.collect::<Vec<_>>()) {
        Some(octets) if octets == [true; 6] => Ok(()),
        _ => Err(invalid(file, field, value, "a MAC address like 52:54:00:12:34:56, in quotes")),
    }
}

fn check_len(file: &'static str, text: &str) -> Result<(), SeedError> {
    if text.len() > MAX_FILE_LEN { Err(SeedError::TooLong { file, len: text.len() }) } else { Ok(()) }
}

/// A YAML document that is a mapping, or empty.
fn mapping(file: &'static str, text: &str) -> Result<Map<String, Value>, SeedError> {
    let nothing = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    if nothing {
        return Ok(Map::new());
    }
    match serde_saphyr::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => Err(invalid(file, "document", &other, "a mapping")),
        Err(error) => Err(SeedError::Yaml { file, reason: error.to_string() }),
    }
}

fn invalid(file: &'static str, field: impl Into<String>, got: &Value, expected: &'static str) -> SeedError {
    let got = match got {
        Value::Null => "nothing".to_owned(),
        got => got.to_string().chars().take(80).collect(),
    };
    SeedError::Invalid { file, field: field.into(), got, expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(user: &str, meta: &str, network: Option<&str>) -> Result<Seed, SeedError> {
        Seed::new("seed0", user.into(), meta.into(), network.map(Into::into), Instance::OfName)
    }

    #[test]
    fn the_instance_depends_on_the_name_until_asked_otherwise() {
        let id = |user, name: &str, instance| {
            let seed = Seed::new(name, String::from(user), "local-hostname: a".into(), None, instance).unwrap();
            assert!(seed.meta_data.contains(seed.instance_id()) && seed.meta_data.contains("local-hostname: a"));
            seed.instance_id().to_owned()
        };
        let first = id("#!/bin/sh", "a", Instance::OfName);
        assert_eq!(first, id("#cloud-config\nlocale: C", "a", Instance::OfName));
        assert_ne!(first, id("#!/bin/sh", "b", Instance::OfName));
        assert_ne!(first, id("#!/bin/sh", "a", Instance::New));
        assert_eq!(id("", "a", Instance::Id("i-7".into())), "i-7");
        assert_eq!(seed("", "instance-id: i-9\nx: 1", None).unwrap().instance_id(), "i-9");
        assert_eq!(seed("", "{\"x\": 1}", None).unwrap().meta_data.matches("instance-id").count(), 1);
    }

    #[test]
    fn empty_files_are_legal() {
        let seed = seed("", "", None).unwrap();
        assert_eq!((seed.user_data.as_str(), seed.network_config), ("", None));
    }

    #[test]
    fn what_is_not_yaml_is_refused_with_its_place() {
        let error = seed("#cloud-config\na: [1,\nb: 2", "", None).unwrap_err().to_string();
        assert!(error.starts_with("user-data: not YAML") && error.contains("line"), "{error}");
        assert!(matches!(seed("", "a: b: c", None), Err(SeedError::Yaml { file: "meta-data", .. })));
        assert!(matches!(seed("#cloud-config\n- a", "", None), Err(SeedError::Invalid { .. })));
    }

    #[test]
    fn unknown_user_data_a_second_instance_id_and_length_are_refused() {
        assert!(seed("hello", "", None).unwrap_err().to_string().contains("first line: got \"hello\""));
        assert!(seed("", "instance-id: [1]", None).unwrap_err().to_string().contains("instance-id"));
        let twice = Seed::new("a", String::new(), "instance-id: x".into(), None, Instance::New);
        assert!(twice.unwrap_err().to_string().contains("once"));
        assert!(matches!(seed(&"#".repeat(MAX_FILE_LEN + 1), "", None), Err(SeedError::TooLong { .. })));
    }

    #[test]
    fn network_configs_of_both_versions_are_checked() {
        let network = |text| seed("", "", Some(text)).map(drop).map_err(|e| e.to_string());
        assert_eq!(
            network("version: 2\nethernets: {e0: {match: {macaddress: '52:54:00:12:34:56'}, dhcp4: true}}"),
            Ok(())
        );
        assert_eq!(network("network: {version: 1, config: [{type: physical, name: e0}]}"), Ok(()));
        assert_eq!(network("version: 1\nconfig: disabled"), Ok(()));
        for (text, part) in [
            ("version: 3", "version: got 3, expected 1 or 2"),
            ("ethernets: {}", "version: got nothing"),
            ("version: 2", "at least one of ethernets"),
            ("version: 2\nethernets: [1]", "ethernets: got [1]"),
            ("version: 2\nethernets: {e0: {match: {macaddress: 5}}}", "ethernets.e0.match.macaddress: got 5"),
            ("version: 1\nconfig: [{name: e0}]", "config[0].type: got nothing"),
            ("version: 1\nconfig: [{type: physical, mac_address: 'zz:54:00:12:34:56'}]", "config[0].mac_address"),
            ("network: 1", "network: got 1"),
        ] {
            let error = network(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
