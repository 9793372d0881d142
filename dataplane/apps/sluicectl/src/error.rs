//! Why a verb failed.

use api::RpcError;
use api::client::ClientError;

/// The error of a verb.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerbError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Call(#[from] ClientError),
}

impl VerbError {
    /// What a daemon's report says that it failed with.
    pub(crate) fn reported(error: RpcError) -> VerbError {
        ClientError::Refused(error).into()
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            VerbError::Call(ClientError::Refused(_)) => 1,
            VerbError::Usage(_) => 2,
            VerbError::Call(ClientError::Connect { .. } | ClientError::Lost(_)) => 3,
        }
    }
}
