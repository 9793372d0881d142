//! Carrying actions out.

use crate::action::Action;

/// An action that nothing carries out yet.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the action `{0}` is not supported")]
pub struct Unsupported(pub &'static str);

/// Whether every action, however deep, can be carried out.
pub fn supported(actions: &[Action]) -> Result<(), Unsupported> {
    actions.iter().try_for_each(|action| match action {
        Action::Ct(_) => Err(Unsupported("ct")),
        Action::CtClear => Err(Unsupported("ct_clear")),
        Action::TnlPush(_) => Err(Unsupported("tnl_push")),
        Action::TnlPop(_) => Err(Unsupported("tnl_pop")),
        Action::LbOutput(_) => Err(Unsupported("lb_output")),
        Action::Sample { actions, .. } | Action::Clone(actions) => supported(actions),
        Action::DecTtl { exceeded } => supported(exceeded),
        Action::CheckPktLen { greater, less_equal, .. } => supported(greater).and_then(|()| supported(less_equal)),
        _ => Ok(()),
    })
}
