//! The contract of the RPC: method names, parameters, answers, errors and their JSON schema, and a client.
//!
//! A client (the CLI, a test, an agent) depends on this crate and on nothing below it. The daemon implements it: `control` has a
//! handler for each [`Method`]. A method's type is the single source of validation, of documentation, of the CLI's flags and of
//! OpenRPC.
//!
//! ```
//! use api::{Method, bdev::NullCreate};
//!
//! let params = serde_json::json!({"name": "n", "block_size": 512, "num_blocks": 8, "md_size": 8});
//! let table = api::table();
//! let refused = api::schema::parse::<NullCreate>(params, &table.get(NullCreate::NAME)?.params).unwrap_err();
//! assert_eq!(refused.message, "md_size: got 8, expected 0: other values are not supported");
//! # Ok::<(), api::RpcError>(())
//! ```
//!
//! # Extensions of the schema
//!
//! - `x-sluice-unsupported`: true on a parameter of SPDK's that is not supported. The one value that is accepted is the schema's
//!   `const`; without it the parameter must not be given.
//! - `x-sluice-deprecated`: on a method that stays for old documents: the method that replaces it.
//! - `x-sluice-hidden`: true on a parameter that is accepted for SPDK's clients and changes nothing; a CLI need not show it.

#[macro_use]
mod method;

pub mod bdev;
pub mod boot;
pub mod bridge;
pub mod capture;
pub mod client;
pub mod config;
mod error;
pub mod flow;
pub mod framework;
pub mod image;
pub mod iostat;
pub mod iscsi;
pub mod log;
pub mod metrics;
pub mod notify;
pub mod nvme;
mod openrpc;
pub mod port;
mod reference;
pub mod rpc;
pub mod scheduler;
pub mod schema;
pub mod vhost;

pub use error::{ErrorData, INVALID_REQUEST, RpcError};
pub use method::{Entry, Method, Phase, Table};
pub use openrpc::document as openrpc;
pub use reference::reference;

use std::path::PathBuf;

/// All methods.
pub fn table() -> Table {
    let subjects = [
        bdev::entries(),
        boot::entries(),
        bridge::entries(),
        capture::entries(),
        config::entries(),
        flow::entries(),
        framework::entries(),
        image::entries(),
        iostat::entries(),
        iscsi::entries(),
        log::entries(),
        metrics::entries(),
        notify::entries(),
        nvme::entries(),
        port::entries(),
        rpc::entries(),
        scheduler::entries(),
        vhost::entries(),
    ];
    Table::new(subjects.into_iter().flatten().collect())
}

/// Paths of the RPC socket where none is configured: the daemon listens at the first one that it can create.
pub fn default_sockets() -> Vec<PathBuf> {
    let user = std::env::var_os("XDG_RUNTIME_DIR").map(|dir| PathBuf::from(dir).join("sluice.sock"));
    [PathBuf::from("/run/sluice/sluice.sock")].into_iter().chain(user).collect()
}
