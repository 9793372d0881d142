//! Errors of the data plane as the client is told them.

use api::RpcError;
use block::BlockError;
use invalid::Invalid;

/// An error that a call is refused with.
pub(crate) trait Refuse {
    /// The error as the client is told it.
    fn refuse(self) -> RpcError;
}

/// `?` over an error of the data plane: `From` cannot be implemented here, as neither type is of this crate.
pub(crate) trait OrRefuse<T> {
    /// The value, or the error as the client is told it.
    fn or_refuse(self) -> Result<T, RpcError>;
}

impl<T, E: Refuse> OrRefuse<T> for Result<T, E> {
    fn or_refuse(self) -> Result<T, RpcError> {
        self.map_err(Refuse::refuse)
    }
}

impl Refuse for RpcError {
    fn refuse(self) -> RpcError {
        self
    }
}

impl Refuse for Invalid {
    fn refuse(self) -> RpcError {
        RpcError::invalid(self.field, self.got, self.expected)
    }
}

impl Refuse for BlockError {
    fn refuse(self) -> RpcError {
        let hint = self.hint();
        let error = match self {
            BlockError::Invalid(error) => error.refuse(),
            BlockError::Io { ref source, .. } => RpcError::from_io(source, self.to_string()),
        };
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}
