//! Keys, masks, actions and dumps, written and read to the letter as `ovs-appctl dpctl/dump-flows` and `dpctl/add-flow` do.

mod action;
mod ct;
mod cursor;
mod dump;
mod flow_match;
mod header;
mod tnl_push;
mod userspace;
mod value;

pub use action::{Actions, parse_actions};
pub use cursor::ParseError;
pub use dump::{DumpLine, Offloaded, parse_ufid};
pub use flow_match::FlowMatch;
