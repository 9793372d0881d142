//! Disks as a frontend sees them.

#![allow(unsafe_code)] // mounts, filters and epoll sets around the disks under test

mod conformance;
mod delay;
mod error_injection;
mod file;
mod qos;
mod ram;
mod support;
