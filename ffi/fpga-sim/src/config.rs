//! The device's arguments, `--vdev net_fpgasim0,wire=(net_pcap0,iface=veth0),function=(net_vhost0,iface=/run/g.sock),exact=1024`.

use crate::pipeline::{Faults, Limits};
use std::time::Duration;

/// What the arguments ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What the physical port is over; nothing is a port without a cable.
    pub wire: Option<Backend>,
    /// What the guest functions are over; each gets a representor port.
    pub functions: Vec<Backend>,
    /// Sizes.
    pub limits: Limits,
    /// Troubles on demand.
    pub troubles: Troubles,
}

/// Another Ethernet device: one that is there already, or one to be made of these arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub args: String,
}

/// Troubles that real devices have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Those of the pipeline.
    pub faults: Faults,
    /// An insertion takes so long: the call, or until its completion can be pulled.
    pub insert_delay: Duration,
    /// Items and actions, by their names in rte_flow, that are refused in validate and create.
    pub refuse: Vec<String>,
    /// The same, but validate, templates and tables say that they are fine.
    pub refuse_create: Vec<String>,
    /// After so many packets from now on the device is reset, once: it forgets its rules and tells the application.
    pub reset_after: Option<u64>,
    /// Of so many completions of flow queues the last never comes, though what it is of is done.
    pub lose_completion: Option<u64>,
}

impl Troubles {
    /// Changes one. Nothing if there is none of that name.
    fn set(&mut self, key: &str, value: &str) -> Option<Result<(), &'static str>> {
        let number = || value.parse::<u32>().map_err(|_| "a number, 0 for none");
        let every = || number().map(|number| (number > 0).then_some(u64::from(number)));
        let names = || value.split(':').filter(|name| !name.is_empty()).map(str::to_uppercase).collect();
        Some(match key {
            "table-full" => number().map(|number| self.faults.full = number > 0),
            "counter-delay-ms" => number().map(|ms| self.faults.counter_delay = Duration::from_millis(ms.into())),
            "abort-after" => every().map(|actions| self.faults.abort_after = actions),
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

    /// What a device is told while it runs, `insert-delay-us=100,refuse=GENEVE`. Returns the troubles then, and whether it is to
    /// be reset now.
    pub fn changed(&self, changes: &str) -> Result<(Troubles, bool), InvalidArgument> {
        let (mut troubles, mut reset) = (self.clone(), false);
        for argument in split(changes)? {
            let invalid = |expected| InvalidArgument { argument: argument.to_owned(), expected };
            let (key, value) = argument.split_once('=').ok_or_else(|| invalid(TROUBLES))?;
            match (key, value) {
                ("reset", "1") => reset = true,
                ("reset", _) => return Err(invalid("reset=1")),
                _ => troubles.set(key, value).ok_or_else(|| invalid(TROUBLES))?.map_err(invalid)?,
            }
        }
        Ok((troubles, reset))
    }

    /// As they are written.
    pub fn shown(&self) -> [(&'static str, String); 8] {
        let number = |number: Option<u64>| number.unwrap_or(0).to_string();
        [
            ("table-full", u8::from(self.faults.full).to_string()),
            ("counter-delay-ms", self.faults.counter_delay.as_millis().to_string()),
            ("abort-after", number(self.faults.abort_after)),
            ("insert-delay-us", self.insert_delay.as_micros().to_string()),
            ("refuse", self.refuse.join(":")),
            ("refuse-create", self.refuse_create.join(":")),
            ("reset-after", number(self.reset_after)),
            ("lose-completion", number(self.lose_completion)),
        ]
    }
}

/// Arguments that make no sense.
#[derive(Debug, PartialEq, Eq)]
pub struct InvalidArgument {
    /// The argument.
    pub argument: String,
    /// What is accepted.
    pub expected: &'static str,
}

impl std::fmt::Display for InvalidArgument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: expected {}", self.argument, self.expected)
    }
}

const KEYS: &str = "wire=(DEVICE), function=(DEVICE), exact=RULES, exact-formats=N, masked=RULES, groups=N, priorities=N or a \
                    trouble: table-full, counter-delay-ms, abort-after, insert-delay-us, refuse, refuse-create, reset-after, \
                    lose-completion";
const TROUBLES: &str = "table-full=1, counter-delay-ms=N, abort-after=ACTIONS, insert-delay-us=N, refuse=NAME:NAME, \
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
                _ => config.troubles.set(key, value).ok_or_else(|| invalid(KEYS))?.map_err(invalid)?,
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
        assert_eq!(config.troubles.refuse, ["GENEVE", "AGE"]);
        assert_eq!(Config::parse(""), Ok(Config::default()));
    }

    #[test]
    fn troubles_come_and_go() {
        let troubles = Config::parse("table-full=1,refuse=geneve,lose-completion=3").unwrap().troubles;
        let (changed, reset) = troubles.changed("refuse=,abort-after=2,lose-completion=0,reset=1").unwrap();
        let faults = Faults { full: true, abort_after: Some(2), ..Faults::default() };
        assert_eq!((&changed, reset), (&Troubles { faults, ..Troubles::default() }, true));
        let shown: Vec<String> = changed.shown().iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(Troubles::default().changed(&shown.join(",")), Ok((changed, false)));
        for bad in ["exact=5", "table-full", "abort-after=x", "reset=2"] {
            assert_eq!(troubles.changed(bad).unwrap_err().argument, bad);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for bad in ["exact=many", "wire=(net_ring0", "wire=()", "wire=)(", "speed=100G", "exact", "wire=a,wire=b"] {
            let error = Config::parse(bad).unwrap_err();
            assert!(bad.contains(error.argument.as_str()), "{bad}: {error}");
        }
    }
}
