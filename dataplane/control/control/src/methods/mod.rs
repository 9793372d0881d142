//! The methods, one file a subject. A new kind of disk is one new file and one line here.

pub(crate) mod bdev;
mod boot;
mod bridge;
mod capture;
mod cidata;
mod config;
mod delay;
mod dpdk;
mod error;
mod file;
pub(crate) mod flow;
mod framework;
pub(crate) mod image;
pub(crate) mod iostat;
mod iscsi;
mod log;
mod malloc;
mod metrics;
mod notify;
mod null;
mod nvme;
pub(crate) mod port;
mod qos;
mod rpc;
mod scheduler;
mod tap;
mod vhost;
mod vhost_net;

use crate::rpc::method::Handlers;

/// The handlers of all methods.
pub(crate) fn handlers() -> Handlers {
    let groups = [
        bdev::methods(),
        boot::methods(),
        bridge::methods(),
        capture::methods(),
        cidata::methods(),
        config::methods(),
        delay::methods(),
        dpdk::methods(),
        error::methods(),
        file::methods(),
        flow::methods(),
        framework::methods(),
        image::methods(),
        iostat::methods(),
        iscsi::methods(),
        log::methods(),
        malloc::methods(),
        metrics::methods(),
        notify::methods(),
        null::methods(),
        nvme::methods(),
        port::methods(),
        qos::methods(),
        rpc::methods(),
        scheduler::methods(),
        tap::methods(),
        vhost::methods(),
        vhost_net::methods(),
    ];
    Handlers::new(groups.into_iter().flatten().collect())
}
