//! The device's arguments, `--vdev net_fpgasim0,wire=(net_pcap0,iface=veth0),function=(net_vhost0,iface=/run/g.sock),exact=1024`.

use crate::pipeline::{Faults, Limits};
use std::time::Duration;

/// The device's arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The device below the physical port; without one the port has no cable.
    pub wire: Option<Backend>,
    /// The devices below the guest functions, each of which gets a representor port.
    pub functions: Vec<Backend>,
    /// Sizes of the device.
    pub limits: Limits,
    /// Faults injected from the start.
    pub faults: FaultInjection,
}

/// Another Ethernet device: one that exists already, or one to be made with these arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Name of the device.
    pub name: String,
    /// Arguments for its driver.
    pub args: String,
}

/// Faults of real devices, injected on demand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultInjection {
    /// Faults of the pipeline.
    pub pipeline: Faults,
    /// Duration of an insertion: of the call, or until its completion can be pulled.
    pub insert_delay: Duration,
    /// Items and actions, by their names in rte_flow, that are refused in validate and create.
    pub refuse: Vec<String>,
    /// Items and actions that are refused in create alone: validate, templates and tables accept them.
    pub refuse_create: Vec<String>,
    /// Number of packets from now on after which the device is reset, once: it forgets its rules and notifies the application.
    pub reset_after: Option<u64>,
    /// Of this number of completions of flow queues the last is lost, though its operation is done.
    pub lose_completion: Option<u64>,
}

impl FaultInjection {
    /// Changes one fault. `None` if there is none of that name.
    fn set(&mut self, key: &str, value: &str) -> Option<Result<(), &'static str>> {
        let number = || value.parse::<u32>().map_err(|_| "a number, 0 for none");
        let every = || number().map(|number| (number > 0).then_some(u64::from(number)));
        let names = || value.split(':').filter(|name| !name.is_empty()).map(str::to_uppercase).collect();
        Some(match key {
            "table-full" => number().map(|number| self.pipeline.full = number > 0),
            "counter-delay-ms" => number().map(|ms| self.pipeline.counter_delay = Duration::from_millis(ms.into())),
            "abort-after" => every().map(|actions| self.pipeline.abort_after = actions),
            "insert-delay-us" => number().map(|us| self.insert_delay = Duration::from_micros(us.into())),
            "refuse" => {
                self.refuse = names();
                Ok(())
            }
            "refuse-create" => {
                self.refuse_create = names();
                Ok(())
            }
            "reset-after" => every().map(|packets| self.reset_after = packets),
            "lose-completion" => every().map(|completions| self.lose_completion = completions),
            _ => return None,
        })
    }

    /// Whether items or actions are refused.
    pub fn refuses(&self) -> bool {
        !self.refuse.is_empty() || !self.refuse_create.is_empty()
    }

    /// Applies changes such as `insert-delay-us=100,refuse=GENEVE`. Returns the faults afterwards, and whether the device is to be
    /// reset now.
    pub fn changed(&self, changes: &str) -> Result<(FaultInjection, bool), InvalidArgument> {
        let mut faults = self.clone();
        let mut reset = false;
        for argument in split(changes)? {
            let invalid = |expected| InvalidArgument { argument: argument.to_owned(), expected };
            let (key, value) = argument.split_once('=').ok_or_else(|| invalid(FAULTS))?;
            match (key, value) {
                ("reset", "1") => reset = true,
                ("reset", _) => return Err(invalid("reset=1")),
                _ => faults.set(key, value).ok_or_else(|| invalid(FAULTS))?.map_err(invalid)?,
            }
        }
        Ok((faults, reset))
    }

    /// The faults as arguments.
    pub fn shown(&self) -> [(&'static str, String); 8] {
        let number = |number: Option<u64>| number.unwrap_or(0).to_string();
        [
            ("table-full", u8::from(self.pipeline.full).to_string()),
            ("counter-delay-ms", self.pipeline.counter_delay.as_millis().to_string()),
            ("abort-after", number(self.pipeline.abort_after)),
            ("insert-delay-us", self.insert_delay.as_micros().to_string()),
            ("refuse", self.refuse.join(":")),
            ("refuse-create", self.refuse_create.join(":")),
            ("reset-after", number(self.reset_after)),
            ("lose-completion", number(self.lose_completion)),
        ]
    }
}

/// An argument that is not accepted.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidArgument {
    /// The argument.
    pub argument: String,
    /// The accepted values.
    pub expected: &'static str,
}

impl std::fmt::Display for InvalidArgument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: expected {}", self.argument, self.expected)
    }
}

const KEYS: &str = "wire=(DEVICE), function=(DEVICE), exact=RULES, exact-formats=N, masked=RULES, groups=N, priorities=N or a \
                    fault: table-full, counter-delay-ms, abort-after, insert-delay-us, refuse, refuse-create, reset-after, \
                    lose-completion";
const FAULTS: &str = "table-full=1, counter-delay-ms=N, abort-after=ACTIONS, insert-delay-us=N, refuse=NAME:NAME, \
                        refuse-create=NAME:NAME, reset-after=PACKETS, lose-completion=N or reset=1; 0 or no name ends one";

/// Functions that a device has at most.
const MAX_FUNCTIONS: usize = 16;

impl Config {
    /// Reads what stands behind the device's name.
    pub fn parse(args: &str) -> Result<Config, InvalidArgument> {
        let mut config = Config::default();
        for argument in split(args)? {
            let invalid = |expected| InvalidArgument { argument: argument.to_owned(), expected };
            let (key, value) = argument.split_once('=').ok_or_else(|| invalid(KEYS))?;
            let number = || value.parse::<u32>().map_err(|_| invalid("a number"));
            let device =
                || backend(value).ok_or_else(|| invalid("a device, as (net_ring0) or (net_pcap0,iface=veth0)"));
            let limits = &mut config.limits;
            match key {
                "wire" if config.wire.is_none() => config.wire = Some(device()?),
                "wire" => return Err(invalid("one wire")),
                "function" if config.functions.len() == MAX_FUNCTIONS => return Err(invalid("16 functions at most")),
                "function" => config.functions.push(device()?),
                "exact" => limits.exact = number()? as usize,
                "exact-formats" => limits.exact_formats = number()? as usize,
                "masked" => limits.masked = number()? as usize,
                "groups" => limits.groups = number()?.max(1),
                "priorities" => limits.priorities = number()?.max(1),
                _ => config.faults.set(key, value).ok_or_else(|| invalid(KEYS))?.map_err(invalid)?,
            }
        }
        Ok(config)
    }
}

/// Splits at commas that are not in parentheses.
fn split(args: &str) -> Result<Vec<&str>, InvalidArgument> {
    let unbalanced = || InvalidArgument { argument: args.to_owned(), expected: "as many ( as )" };
    let (mut depth, mut start, mut parts) = (0usize, 0, Vec::new());
    for (at, char) in args.char_indices() {
        match char {
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1).ok_or_else(unbalanced)?,
            ',' if depth == 0 => {
                parts.push(&args[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth > 0 {
        return Err(unbalanced());
    }
    parts.push(&args[start..]);
    parts.retain(|part| !part.is_empty());
    Ok(parts)
}

fn backend(value: &str) -> Option<Backend> {
    let inner = value.strip_prefix('(').map_or(Some(value), |rest| rest.strip_suffix(')'))?;
    let (name, args) = inner.split_once(',').unwrap_or((inner, ""));
    let valid = !name.is_empty() && !inner.contains('\0');
    valid.then(|| Backend { name: name.to_owned(), args: args.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_arguments_stay_together() {
        let config = Config::parse(
            "wire=(net_pcap0,rx_pcap=a,tx_pcap=b),function=(net_ring0),function=net_null1,exact=10,refuse=geneve:Age",
        )
        .unwrap();
        let device = |name: &str, args: &str| Backend { name: name.to_owned(), args: args.to_owned() };
        assert_eq!(config.wire, Some(device("net_pcap0", "rx_pcap=a,tx_pcap=b")));
        assert_eq!(config.functions, [device("net_ring0", ""), device("net_null1", "")]);
        assert_eq!((config.limits.exact, config.limits.masked), (10, Limits::default().masked));
        assert_eq!(config.faults.refuse, ["GENEVE", "AGE"]);
        assert_eq!(Config::parse(""), Ok(Config::default()));
    }

    #[test]
    fn faults_are_injected_and_ended() {
        let faults = Config::parse("table-full=1,refuse=geneve,lose-completion=3").unwrap().faults;
        let (changed, reset) = faults.changed("refuse=,abort-after=2,lose-completion=0,reset=1").unwrap();
        let pipeline = Faults { full: true, abort_after: Some(2), ..Faults::default() };
        assert_eq!((&changed, reset), (&FaultInjection { pipeline, ..FaultInjection::default() }, true));
        let shown: Vec<String> = changed.shown().iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(FaultInjection::default().changed(&shown.join(",")), Ok((changed, false)));
        for bad in ["exact=5", "table-full", "abort-after=x", "reset=2"] {
            assert_eq!(faults.changed(bad).unwrap_err().argument, bad);
        }
    }

    #[test]
    fn invalid_arguments_are_refused_by_name() {
        for bad in ["exact=many", "wire=(net_ring0", "wire=()", "wire=)(", "speed=100G", "exact", "wire=a,wire=b"] {
            let error = Config::parse(bad).unwrap_err();
            assert!(bad.contains(error.argument.as_str()), "{bad}: {error}");
        }
    }
}
