//! What `bdev_nvme_attach_controller` and `bdev_nvme_set_options` say, with SPDK's names and meanings.

use crate::pdu::Digests;
use crate::spec::{ConnectData, DYNAMIC_CONTROLLER, MAX_NQN_BYTES};
use initiator::{Recovery, RecoveryOptions};
use invalid::Invalid;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use uuid::Uuid;

/// Parameters of an attach. Names are SPDK's.
#[derive(Clone, Debug)]
pub struct AttachParams {
    /// Name of the controller; its disks are `{name}n{nsid}`.
    pub name: String,
    /// `TCP`.
    pub trtype: String,
    /// IP address of the target.
    pub traddr: String,
    /// `IPv4` or `IPv6`; must agree with `traddr` where given.
    pub adrfam: Option<String>,
    /// Port of the target; 4420 where not given.
    pub trsvcid: Option<String>,
    /// NQN of the subsystem.
    pub subnqn: String,
    /// NQN of this host; made from `hostid` where not given.
    pub hostnqn: Option<String>,
    /// Host identifier: one for all controllers of this host.
    pub hostid: Uuid,
    /// Local address to connect from.
    pub hostaddr: Option<String>,
    /// Local port to connect from.
    pub hostsvcid: Option<String>,
    /// Header digest.
    pub hdgst: bool,
    /// Data digest.
    pub ddgst: bool,
    /// Time for connecting a queue, in microseconds; 0 takes 5 s.
    pub fabrics_connect_timeout_us: u64,
    /// I/O queues at most, one a channel: 1 to 1024.
    pub num_io_queues: u32,
    /// Recovery while the controller cannot be reached.
    pub recovery: RecoveryOptions,
    /// Options that apply to all controllers.
    pub options: Options,
}

/// Parameters that apply to all controllers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Keep-alive timeout in milliseconds: 1000 to 3,600,000. How long writes wait after a lost connection depends on it.
    pub keep_alive_timeout_ms: u32,
    /// Time for an I/O command in microseconds before it is aborted, and twice that before the controller is reset; 0 never.
    pub timeout_us: u64,
    /// Time for an admin command in microseconds; 0 takes 10 s.
    pub timeout_admin_us: u64,
    /// Times that a command is sent again after an error that allows it.
    pub bdev_retry_count: u8,
    /// Commands outstanding on an I/O queue at most: 1 to 1022.
    pub io_queue_requests: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            keep_alive_timeout_ms: 10_000,
            timeout_us: 30_000_000,
            timeout_admin_us: 10_000_000,
            bdev_retry_count: 3,
            io_queue_requests: 127,
        }
    }
}

impl AttachParams {
    /// A boot disk: it holds its requests and reconnects for ever.
    pub fn new(name: &str, address: SocketAddr, subnqn: &str) -> AttachParams {
        AttachParams {
            name: name.to_owned(),
            trtype: "TCP".to_owned(),
            traddr: address.ip().to_string(),
            adrfam: None,
            trsvcid: Some(address.port().to_string()),
            subnqn: subnqn.to_owned(),
            hostnqn: None,
            hostid: Uuid::from_u128(0x5100_1ce0_0000_4000_8000_0000_0000_0001),
            hostaddr: None,
            hostsvcid: None,
            hdgst: false,
            ddgst: false,
            fabrics_connect_timeout_us: 0,
            num_io_queues: 64,
            recovery: RecoveryOptions::default(),
            options: Options::default(),
        }
    }

    /// Checks everything once; what comes out is known to be good.
    pub fn validate(&self) -> Result<Settings, Invalid> {
        if self.name.is_empty() || self.name.len() > 63 || self.name.contains(char::is_whitespace) {
            return Err(invalid("name", &self.name, "1 to 63 characters without spaces", "pick another name"));
        }
        if !self.trtype.eq_ignore_ascii_case("tcp") {
            return Err(invalid("trtype", &self.trtype, "TCP", "RDMA and PCIe are not supported"));
        }
        let target = self.target_address()?;
        let source = self.source_address(target)?;
        check_nqn("subnqn", &self.subnqn)?;
        let hostnqn =
            self.hostnqn.clone().unwrap_or_else(|| format!("nqn.2014-08.org.nvmexpress:uuid:{}", self.hostid));
        check_nqn("hostnqn", &hostnqn)?;
        let options = &self.options;
        check_range("num_io_queues", self.num_io_queues.into(), 1, 1024)?;
        check_range("keep_alive_timeout_ms", options.keep_alive_timeout_ms.into(), 1000, 3_600_000)?;
        check_range("io_queue_requests", options.io_queue_requests.into(), 1, 1022)?;
        let recovery = self.recovery.validate()?;
        let micros_or = |us: u64, default: u64| Duration::from_micros(if us == 0 { default } else { us });
        Ok(Settings {
            name: self.name.clone(),
            target,
            source,
            connect: ConnectData {
                host_id: *self.hostid.as_bytes(),
                controller_id: DYNAMIC_CONTROLLER,
                subnqn: self.subnqn.clone(),
                hostnqn,
            },
            digests: Digests { header: self.hdgst, data: self.ddgst },
            connect_timeout: micros_or(self.fabrics_connect_timeout_us, 5_000_000),
            io_queues: self.num_io_queues as u16,
            io_entries: options.io_queue_requests as u16 + 1,
            keep_alive: Duration::from_millis(options.keep_alive_timeout_ms.into()),
            io_timeout: (options.timeout_us > 0).then(|| Duration::from_micros(options.timeout_us)),
            admin_timeout: micros_or(options.timeout_admin_us, 10_000_000),
            retries: options.bdev_retry_count,
            recovery,
        })
    }

    fn target_address(&self) -> Result<SocketAddr, Invalid> {
        let hint = "host names are not resolved here: give the address";
        let ip: IpAddr =
            self.traddr.parse().map_err(|_| invalid("traddr", &self.traddr, "an IPv4 or IPv6 address", hint))?;
        let port = self.trsvcid.as_deref().unwrap_or("4420");
        let port = port.parse().ok().filter(|&port: &u16| port > 0);
        let port = port.ok_or_else(|| {
            let got = self.trsvcid.as_deref().unwrap_or_default();
            invalid("trsvcid", got, "a port, 1 to 65535", "4420 is the usual one")
        })?;
        if let Some(family) = &self.adrfam {
            let expected = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            if !family.eq_ignore_ascii_case(expected) {
                return Err(invalid("adrfam", family, expected, "it must agree with traddr, or be left out"));
            }
        }
        Ok(SocketAddr::new(ip, port))
    }

    fn source_address(&self, target: SocketAddr) -> Result<Option<SocketAddr>, Invalid> {
        let Some(address) = &self.hostaddr else { return Ok(None) };
        let ip = address.parse().ok().filter(|ip: &IpAddr| ip.is_ipv4() == target.is_ipv4());
        let ip =
            ip.ok_or_else(|| invalid("hostaddr", address, "a local address of traddr's family", "leave it out"))?;
        let port = self.hostsvcid.as_deref().unwrap_or("0");
        let port = port.parse().map_err(|_| invalid("hostsvcid", port, "a port, 0 to 65535", "leave it out"))?;
        Ok(Some(SocketAddr::new(ip, port)))
    }
}

fn invalid(field: &'static str, got: &str, expected: &str, hint: &str) -> Invalid {
    Invalid::new(field, got, format!("{expected} ({hint})"))
}

fn check_range(field: &'static str, got: u64, low: u64, high: u64) -> Result<(), Invalid> {
    if (low..=high).contains(&got) {
        return Ok(());
    }
    Err(Invalid::new(field, got, format!("{low} to {high} (leave it out for the default)")))
}

/// "nqn." yyyy-mm "." domain [":" string], at most 223 bytes (Base 4.5).
fn check_nqn(field: &'static str, nqn: &str) -> Result<(), Invalid> {
    if nqn.starts_with("nqn.") && nqn.len() > 11 && nqn.len() <= MAX_NQN_BYTES && !nqn.contains('\0') {
        return Ok(());
    }
    Err(invalid(field, nqn, "an NQN: nqn.yyyy-mm.domain:name, at most 223 bytes", "copy it from the target"))
}

/// Checked parameters.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) name: String,
    pub(crate) target: SocketAddr,
    pub(crate) source: Option<SocketAddr>,
    pub(crate) connect: ConnectData,
    pub(crate) digests: Digests,
    pub(crate) connect_timeout: Duration,
    pub(crate) io_queues: u16,
    pub(crate) io_entries: u16,
    pub(crate) keep_alive: Duration,
    pub(crate) io_timeout: Option<Duration>,
    pub(crate) admin_timeout: Duration,
    pub(crate) retries: u8,
    pub(crate) recovery: Recovery,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params() -> AttachParams {
        AttachParams::new("Nvme0", "127.0.0.1:4420".parse().unwrap(), "nqn.2024-01.org.sluice:disk")
    }

    fn field_of(change: impl FnOnce(&mut AttachParams)) -> String {
        let mut params = params();
        change(&mut params);
        params.validate().expect_err("must be refused").field.into_owned()
    }

    #[test]
    fn each_bad_parameter_is_named() {
        assert_eq!(field_of(|p| p.name.clear()), "name");
        assert_eq!(field_of(|p| p.trtype = "RDMA".into()), "trtype");
        assert_eq!(field_of(|p| p.traddr = "example.org".into()), "traddr");
        assert_eq!(field_of(|p| p.trsvcid = Some("0".into())), "trsvcid");
        assert_eq!(field_of(|p| p.adrfam = Some("IPv6".into())), "adrfam");
        assert_eq!(field_of(|p| p.subnqn = "disk".into()), "subnqn");
        assert_eq!(field_of(|p| p.hostnqn = Some("x".repeat(300))), "hostnqn");
        assert_eq!(field_of(|p| p.hostaddr = Some("::1".into())), "hostaddr");
        assert_eq!(field_of(|p| p.num_io_queues = 0), "num_io_queues");
        assert_eq!(field_of(|p| p.options.keep_alive_timeout_ms = 0), "keep_alive_timeout_ms");
        assert_eq!(field_of(|p| p.recovery.reconnect_delay_sec = 0), "reconnect_delay_sec");
    }
}
