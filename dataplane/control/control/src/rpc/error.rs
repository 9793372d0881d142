//! The error of a call, as the client sees it.

use block::BlockError;
use serde::Serialize;
use std::fmt::Display;
use uuid::Uuid;

const PARSE: i64 = -32700;
/// JSON that is no request.
pub(crate) const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const INTERNAL: i64 = -32603;

/// Why a call was refused or failed. Nothing changed, unless the message says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// JSON-RPC's code, or a negative errno, as SPDK has them.
    pub code: i64,
    /// What went wrong, in one line.
    pub message: String,
    /// The same in parts.
    #[serde(skip_serializing_if = "ErrorData::is_empty")]
    pub data: Box<ErrorData>,
}

/// What was wrong, where, what was expected, and what to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ErrorData {
    /// The parameter, with its path if it is nested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub got: Option<String>,
    /// What is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ErrorData {
    fn is_empty(&self) -> bool {
        *self == ErrorData::default()
    }
}

impl RpcError {
    /// An error with a code of its own.
    pub fn new(code: i64, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into(), data: Box::default() }
    }

    /// A parameter that is not accepted.
    pub fn invalid(field: impl Into<String>, got: impl Display, expected: impl Display) -> RpcError {
        let field = field.into();
        let mut error = RpcError::new(INVALID_PARAMS, format!("{field}: got {got}, expected {expected}"));
        *error.data = ErrorData {
            field: Some(field),
            got: Some(got.to_string()),
            expected: Some(expected.to_string()),
            hint: None,
        };
        error
    }

    /// A refusal with a system's reason: `errno` is positive, as in `libc`.
    pub fn errno(errno: i32, message: impl Into<String>) -> RpcError {
        RpcError::new(-i64::from(errno), message)
    }

    /// There is no such thing.
    pub fn no_such(kind: &str, name: &str) -> RpcError {
        let mut error = RpcError::errno(libc::ENODEV, format!("there is no {kind} {name}"));
        error.data.got = Some(name.to_owned());
        error
    }

    /// A name that something else has.
    pub fn name_taken(field: &str, name: &str) -> RpcError {
        let mut error = RpcError::errno(libc::EEXIST, format!("{field}: the name {name} is taken"));
        (error.data.field, error.data.got) = (Some(field.to_owned()), Some(name.to_owned()));
        error.data.expected = Some("a name that nothing else has".to_owned());
        error.hint("choose another name, or delete what has this one")
    }

    /// A disk that is there already under another name.
    pub fn same_identity(name: &str, twin: &str, uuid: Uuid) -> RpcError {
        let message = format!("the disks {name} and {twin} are one: both have the identity {uuid}");
        let mut error = RpcError::errno(libc::EEXIST, message).field("uuid", uuid);
        error.data.expected = Some(format!("an identity that no other disk has: {twin} has this one"));
        error.hint(format!(
            "use {twin}, or delete it first: a disk has one path, multipath is not supported yet; where they are two disks, give \
             one another UUID (at its target: UUID, NGUID or EUI64 of the namespace, designator or serial number of the LUN)"
        ))
    }

    /// A limit that was met.
    pub fn limit(what: &str, limit: impl Display) -> RpcError {
        let mut error = RpcError::errno(libc::ENOSPC, format!("limit met: at most {limit} {what}"));
        error.data.expected = Some(format!("at most {limit} {what}"));
        error
    }

    /// A method that does not exist.
    pub(crate) fn unknown_method(name: &str, nearest: Option<&str>) -> RpcError {
        let mut error = RpcError::new(METHOD_NOT_FOUND, format!("Method not found: {name}"));
        (error.data.field, error.data.got) = (Some("method".to_owned()), Some(name.to_owned()));
        match nearest {
            Some(nearest) => error.hint(format!("did you mean {nearest}? rpc_get_methods lists all")),
            None => error.hint("rpc_get_methods lists all"),
        }
    }

    /// Text that is not JSON.
    pub(crate) fn parse(message: impl Display) -> RpcError {
        RpcError::new(PARSE, format!("Parse error: {message}"))
    }

    /// A fault of ours.
    pub fn internal(message: impl Into<String>) -> RpcError {
        RpcError::new(INTERNAL, message)
    }

    /// The same, with what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> RpcError {
        self.data.hint = Some(hint.into());
        self
    }

    /// The same, with the parameter that it is about.
    pub fn field(mut self, field: &str, got: impl Display) -> RpcError {
        (self.data.field, self.data.got) = (Some(field.to_owned()), Some(got.to_string()));
        self
    }
}

impl From<BlockError> for RpcError {
    fn from(error: BlockError) -> RpcError {
        let hint = error.hint();
        let error = match error {
            BlockError::Invalid { field, got, expected } => RpcError::invalid(field, got, expected),
            BlockError::Io { ref source, .. } => RpcError::from_io(source, error.to_string()),
        };
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

impl RpcError {
    /// A refusal of the system.
    pub(crate) fn from_io(source: &std::io::Error, message: String) -> RpcError {
        use std::io::ErrorKind::{NotFound, PermissionDenied, StorageFull};
        let error = RpcError::errno(source.raw_os_error().unwrap_or(libc::EIO), message);
        match source.kind() {
            NotFound => error.hint("check the path: it is resolved by the daemon, not by the client"),
            PermissionDenied => error.hint("the daemon's user needs access to it"),
            StorageFull => error.hint("make room under it and try again"),
            _ => error,
        }
    }
}
