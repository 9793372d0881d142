//! The error of a call, as the client sees it.

use serde::{Deserialize, Serialize};
use std::fmt::Display;
use uuid::Uuid;

const PARSE: i64 = -32700;
/// JSON-RPC's code for JSON that is not a request.
pub const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const INTERNAL: i64 = -32603;

// Linux's numbers: they are part of the contract.
const EIO: i32 = 5;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;
const ENOSPC: i32 = 28;

/// The error of a call that was refused or failed. Nothing changed, unless the message says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// JSON-RPC's code, or a negative errno, as SPDK has them.
    pub code: i64,
    /// The error in one line.
    pub message: String,
    /// The error in parts.
    #[serde(default, skip_serializing_if = "ErrorData::is_empty")]
    pub data: Box<ErrorData>,
}

/// The parts of an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorData {
    /// The parameter, with its path if it is nested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The refused value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub got: Option<String>,
    /// The accepted values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ErrorData {
    fn is_empty(&self) -> bool {
        *self == ErrorData::default()
    }
}

impl RpcError {
    /// An error with the given code.
    pub fn new(code: i64, message: impl Into<String>) -> RpcError {
        RpcError { code, message: message.into(), data: Box::default() }
    }

    /// A parameter whose value is not accepted.
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

    /// An error with a system error number: `errno` is positive, as in `libc`.
    pub fn errno(errno: i32, message: impl Into<String>) -> RpcError {
        RpcError::new(-i64::from(errno), message)
    }

    /// An object that does not exist.
    pub fn no_such(kind: &str, name: &str) -> RpcError {
        let mut error = RpcError::errno(ENODEV, format!("there is no {kind} {name}"));
        error.data.got = Some(name.to_owned());
        error
    }

    /// A name that another object has.
    pub fn name_taken(field: &str, name: &str) -> RpcError {
        let mut error = RpcError::errno(EEXIST, format!("{field}: the name {name} is taken"));
        (error.data.field, error.data.got) = (Some(field.to_owned()), Some(name.to_owned()));
        error.data.expected = Some("an unused name".to_owned());
        error.hint("choose another name, or delete the object that has this one")
    }

    /// A disk that is attached already under another name.
    pub fn same_identity(name: &str, twin: &str, uuid: Uuid) -> RpcError {
        let message = format!("the disks {name} and {twin} are one: both have the identity {uuid}");
        let mut error = RpcError::errno(EEXIST, message).field("uuid", uuid);
        error.data.expected = Some(format!("an identity that no other disk has: {twin} has this one"));
        error.hint(format!(
            "use {twin}, or delete it first: a disk has one path, multipath is not supported yet; where they are two disks, give \
             one another UUID (at its target: UUID, NGUID or EUI64 of the namespace, designator or serial number of the LUN)"
        ))
    }

    /// A limit that was reached.
    pub fn limit(what: &str, limit: impl Display) -> RpcError {
        let mut error = RpcError::errno(ENOSPC, format!("limit reached: at most {limit} {what}"));
        error.data.expected = Some(format!("at most {limit} {what}"));
        error
    }

    /// A method that does not exist.
    pub fn unknown_method(name: &str, nearest: Option<&str>) -> RpcError {
        let mut error = RpcError::new(METHOD_NOT_FOUND, format!("Method not found: {name}"));
        (error.data.field, error.data.got) = (Some("method".to_owned()), Some(name.to_owned()));
        match nearest {
            Some(nearest) => error.hint(format!("did you mean {nearest}? rpc_get_methods lists all")),
            None => error.hint("rpc_get_methods lists all"),
        }
    }

    /// Text that is not JSON.
    pub fn parse(message: impl Display) -> RpcError {
        RpcError::new(PARSE, format!("Parse error: {message}"))
    }

    /// A fault of the daemon.
    pub fn internal(message: impl Into<String>) -> RpcError {
        RpcError::new(INTERNAL, message)
    }

    /// This error with a remedy.
    pub fn hint(mut self, hint: impl Into<String>) -> RpcError {
        self.data.hint = Some(hint.into());
        self
    }

    /// This error with the parameter that it is about.
    pub fn field(mut self, field: &str, got: impl Display) -> RpcError {
        (self.data.field, self.data.got) = (Some(field.to_owned()), Some(got.to_string()));
        self
    }
}

impl RpcError {
    /// A refusal of the operating system.
    pub fn from_io(source: &std::io::Error, message: String) -> RpcError {
        use std::io::ErrorKind::{NotFound, PermissionDenied, StorageFull};
        let error = RpcError::errno(source.raw_os_error().unwrap_or(EIO), message);
        match source.kind() {
            NotFound => error.hint("check the path: it is resolved by the daemon, not by the client"),
            PermissionDenied => error.hint("the daemon's user needs access to it"),
            StorageFull => error.hint("make room under it and try again"),
            _ => error,
        }
    }
}
