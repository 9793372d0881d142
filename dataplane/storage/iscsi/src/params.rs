//! What an operator says about a disk: SPDK's `bdev_iscsi_create {name, initiator_iqn, url}` and what goes beyond it.

use crate::chap::Credentials;
use crate::login::{Auth, DigestPolicy};
use crate::pdu::Lun;
use initiator::Recovery;
use invalid::Invalid;
use std::time::Duration;

/// The port of iSCSI (RFC 7143 section 4.2).
pub const DEFAULT_PORT: u16 = 3260;

/// A disk at an iSCSI target.
#[derive(Clone, Debug)]
pub struct IscsiParams {
    /// The disk's name.
    pub name: String,
    /// Our name.
    pub initiator_iqn: String,
    /// Where the target listens: `host:port`, IPv6 in brackets.
    pub portal: String,
    /// The target's name.
    pub target_iqn: String,
    /// The unit.
    pub lun: Lun,
    /// CHAP.
    pub auth: Auth,
    /// CRC32C on headers.
    pub header_digest: DigestPolicy,
    /// CRC32C on data.
    pub data_digest: DigestPolicy,
    /// Commands under way on one channel, 1 to 4096.
    pub queue_depth: u16,
    /// Connecting, logging in and asking the unit, together.
    pub connect_timeout: Duration,
    /// A command, before it is aborted and sent again.
    pub io_timeout: Duration,
    /// An abort or a logout, before the session is given up.
    pub abort_timeout: Duration,
    /// Silence after which the target is pinged.
    pub ping_interval: Duration,
    /// How long it has to answer a ping.
    pub ping_timeout: Duration,
    /// Recovery while there is no session.
    pub recovery: Recovery,
}

fn error(field: &'static str, got: impl std::fmt::Display, expected: &str) -> Invalid {
    let hint = match field {
        "url" | "url option" => "SPDK's and libiscsi's URLs are taken as they are",
        "initiator_iqn" | "target_iqn" => "copy it from the target; discovery lists its names",
        "CHAP user" | "CHAP target user" | "CHAP target password" | "password" => "ask the target's administrator",
        "lun" => "0 is usual",
        _ => "leave it out for the default",
    };
    Invalid::new(field, got, format!("{expected} ({hint})"))
}

const URL_SHAPE: &str = "iscsi://[user[%password]@]host[:port]/target-iqn/lun[?option=value&...]";

impl IscsiParams {
    /// Defaults for a unit of a target.
    pub fn new(name: &str, initiator_iqn: &str, portal: &str, target_iqn: &str, lun: Lun) -> IscsiParams {
        IscsiParams {
            name: name.into(),
            initiator_iqn: initiator_iqn.into(),
            portal: portal.into(),
            target_iqn: target_iqn.into(),
            lun,
            auth: Auth::default(),
            header_digest: DigestPolicy::None,
            data_digest: DigestPolicy::None,
            queue_depth: 128,
            connect_timeout: Duration::from_secs(10),
            io_timeout: Duration::from_secs(30),
            abort_timeout: Duration::from_secs(15),
            ping_interval: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(5),
            recovery: Recovery::default(),
        }
    }

    /// From a URL as libiscsi and SPDK have it: `iscsi://[user[%password]@]host[:port]/target-iqn/lun`, with the options
    /// `header_digest` and `data_digest` (`none`, `crc32c`, `prefer`), `target_user`, `target_password`, `password` and
    /// `queue_depth`.
    pub fn from_url(name: &str, initiator_iqn: &str, url: &str) -> Result<IscsiParams, Invalid> {
        let shape = || error("url", redacted(url), URL_SHAPE);
        let rest = url.strip_prefix("iscsi://").ok_or_else(shape)?;
        let (path, options) = rest.split_once('?').unwrap_or((rest, ""));
        let mut parts = path.splitn(3, '/');
        let (Some(authority), Some(target), Some(lun)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(shape());
        };
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let mut params = IscsiParams::new(name, initiator_iqn, &portal(host)?, target, parse_lun(lun)?);
        if let Some(user) = user {
            let (user, secret) = user.split_once('%').unwrap_or((user, ""));
            params.auth.initiator = Some(Credentials { name: user.into(), secret: secret.into() });
        }
        for option in options.split('&').filter(|o| !o.is_empty()) {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            params.set_option(key, value)?;
        }
        params.check()?;
        Ok(params)
    }

    fn set_option(&mut self, key: &str, value: &str) -> Result<(), Invalid> {
        let target = || Credentials { name: String::new(), secret: String::new() };
        match key {
            "header_digest" => self.header_digest = parse_digest("header_digest", value)?,
            "data_digest" => self.data_digest = parse_digest("data_digest", value)?,
            "target_user" => self.auth.target.get_or_insert_with(target).name = value.into(),
            "target_password" => self.auth.target.get_or_insert_with(target).secret = value.into(),
            "password" => match &mut self.auth.initiator {
                Some(credentials) => credentials.secret = value.into(),
                None => return Err(error("password", "a password without a user", "iscsi://user@host/...")),
            },
            "queue_depth" => {
                self.queue_depth = value.parse().map_err(|_| error("queue_depth", value, "1 to 4096"))?;
            }
            _ => {
                let expected = "header_digest, data_digest, target_user, target_password, password or queue_depth";
                return Err(error("url option", key, expected));
            }
        }
        Ok(())
    }

    /// Checks what can be checked without the target.
    pub fn check(&self) -> Result<(), Invalid> {
        check_name("initiator_iqn", &self.initiator_iqn)?;
        check_name("target_iqn", &self.target_iqn)?;
        if self.name.is_empty() {
            return Err(error("name", "", "a name for the disk"));
        }
        if !(1..=4096).contains(&self.queue_depth) {
            return Err(error("queue_depth", self.queue_depth.to_string(), "1 to 4096"));
        }
        check_auth(&self.auth)
    }
}

fn check_auth(auth: &Auth) -> Result<(), Invalid> {
    for (field, credentials) in [("CHAP user", &auth.initiator), ("CHAP target user", &auth.target)] {
        let Some(credentials) = credentials else { continue };
        if credentials.name.is_empty() || credentials.secret.is_empty() {
            return Err(error(field, &credentials.name, "a name and a secret"));
        }
    }
    match (&auth.initiator, &auth.target) {
        (None, Some(target)) => Err(error("CHAP target user", &target.name, "our own user and password as well")),
        // "Any CHAP secret used for initiator authentication MUST NOT be configured for authentication of any target"
        // (RFC 7143 9.2.1).
        (Some(own), Some(target)) if own.secret == target.secret => {
            Err(error("CHAP target password", "our own password", "another one than ours"))
        }
        _ => Ok(()),
    }
}

/// Names are `iqn.`, `eui.` or `naa.` (RFC 7143 4.2.7), at most 223 bytes; and they go into text as they are.
fn check_name(field: &'static str, name: &str) -> Result<(), Invalid> {
    let known = ["iqn.", "eui.", "naa."].iter().any(|prefix| name.starts_with(prefix));
    let clean = name.bytes().all(|b| b.is_ascii_graphic() && b != b'=' && b != b',');
    if known && clean && name.len() <= 223 {
        return Ok(());
    }
    Err(error(field, name, "iqn.yyyy-mm.domain:name, eui.... or naa...., at most 223 characters"))
}

/// `host[:port]` with the port made explicit.
pub(crate) fn portal(host: &str) -> Result<String, Invalid> {
    let wrong = || error("portal", host, "host[:port], IPv6 addresses in brackets");
    let after_address = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or_else(wrong)?.1,
        None => host.find(':').map_or("", |at| &host[at..]),
    };
    if host.is_empty() || host.starts_with(':') {
        return Err(wrong());
    }
    match after_address.strip_prefix(':') {
        None if after_address.is_empty() => Ok(format!("{host}:{DEFAULT_PORT}")),
        Some(port) if port.parse::<u16>().is_ok_and(|p| p > 0) => Ok(host.into()),
        _ => Err(wrong()),
    }
}

fn parse_lun(text: &str) -> Result<Lun, Invalid> {
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    number.map(Lun::from_number).ok_or_else(|| error("lun", text, "a number, or the eight bytes as 0x..."))
}

fn parse_digest(field: &'static str, value: &str) -> Result<DigestPolicy, Invalid> {
    match value.to_ascii_lowercase().as_str() {
        "none" => Ok(DigestPolicy::None),
        "crc32c" => Ok(DigestPolicy::Require),
        "prefer" => Ok(DigestPolicy::Prefer),
        _ => Err(error(field, value, "none, crc32c or prefer")),
    }
}

/// The URL without what might be a secret.
fn redacted(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, rest)) => format!("iscsi://...@{}", rest.split('?').next().unwrap_or("")),
        None => url.split('?').next().unwrap_or("").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: &str = "iqn.2026-01.example:host";

    #[test]
    fn a_url_says_it_all() {
        let url = "iscsi://me%secret@[::1]:3261/iqn.2026-01.example:disk/5?header_digest=crc32c&target_user=t&target_password=p";
        let params = IscsiParams::from_url("d", US, url).unwrap();
        assert_eq!((params.portal.as_str(), params.target_iqn.as_str()), ("[::1]:3261", "iqn.2026-01.example:disk"));
        assert_eq!((params.lun, params.header_digest), (Lun::from_number(5), DigestPolicy::Require));
        assert_eq!(params.auth.initiator.unwrap().secret, "secret");
        assert_eq!(params.auth.target.unwrap(), Credentials { name: "t".into(), secret: "p".into() });
        let params = IscsiParams::from_url("d", US, "iscsi://host/iqn.x/0").unwrap();
        assert_eq!(params.portal, "host:3260");
    }

    #[test]
    fn bad_urls_are_refused_by_the_part_that_is_bad() {
        for (url, field) in [
            ("http://host/iqn.x/0", "url"),
            ("iscsi://host/iqn.x", "url"),
            ("iscsi://host/disk/0", "target_iqn"),
            ("iscsi://host/iqn.x/one", "lun"),
            ("iscsi://host:99999/iqn.x/0", "portal"),
            ("iscsi://:3260/iqn.x/0", "portal"),
            ("iscsi://host/iqn.x/0?data_digest=md5", "data_digest"),
            ("iscsi://host/iqn.x/0?speed=11", "url option"),
            ("iscsi://host/iqn.x/0?queue_depth=0", "queue_depth"),
            ("iscsi://host/iqn.x/0?target_user=a&target_password=b", "CHAP target user"),
            ("iscsi://a%same@host/iqn.x/0?target_user=b&target_password=same", "CHAP target password"),
            ("iscsi://a@host/iqn.x/0", "CHAP user"),
        ] {
            assert_eq!(IscsiParams::from_url("d", US, url).unwrap_err().field, field, "{url}");
        }
        assert_eq!(IscsiParams::from_url("d", "host", "iscsi://h/iqn.x/0").unwrap_err().field, "initiator_iqn");
    }

    #[test]
    fn errors_contain_no_secret() {
        let error = IscsiParams::from_url("d", US, "iscsi://me%sesame@host?password=sesame").unwrap_err();
        assert!(!error.to_string().contains("sesame"), "{error}");
    }
}
