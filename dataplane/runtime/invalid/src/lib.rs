//! The error of a value that is not accepted: which field, which value, and what is accepted instead.
//!
//! Crates embed [`Invalid`] in their own error enum with `#[error(transparent)] Invalid(#[from] Invalid)`, so that the control
//! plane reports every refused value in one form.

use std::borrow::Cow;
use std::fmt::Display;

/// A value that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: got {got}, expected {expected}")]
pub struct Invalid {
    /// The field or parameter that has the value.
    pub field: Cow<'static, str>,
    /// The value as it was given.
    pub got: String,
    /// The accepted values, with a hint where one helps.
    pub expected: String,
}

impl Invalid {
    /// Refuses the value `got` of `field`, for which `expected` says what is accepted.
    pub fn new(field: impl Into<Cow<'static, str>>, got: impl Display, expected: impl Display) -> Invalid {
        Invalid { field: field.into(), got: got.to_string(), expected: expected.to_string() }
    }
}
