//! Finds libdpdk by pkg-config, generates the bindings with bindgen, and compiles the few functions that C only has inline.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The oldest DPDK whose layouts `ffi/dpdk` is checked against.
const OLDEST: &str = "22.11";

fn main() {
    println!("cargo:rerun-if-changed=wrapper.h");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let flags = find_libdpdk();
    let inline = out.join("inline.c");
    bindgen::builder()
        .header("wrapper.h")
        .clang_args(&flags)
        .clang_arg("-D_GNU_SOURCE")
        .allowlist_function("rte_(bus_name|eal|dev|devargs|eth|flow|lcore|log|mempool|mp|openlog|pktmbuf|strerror|thread|vdev|version)_?.*")
        .allowlist_function("dpdk_.*|fopencookie|setvbuf")
        .allowlist_type("rte_(mbuf|mempool|pktmbuf|eth|flow|ether|ipv4|ipv6|tcp|udp|vlan|vxlan)_?.*|dpdk_.*")
        .allowlist_var("rte_eth_fp_ops|rte_mempool_ops_table")
        .allowlist_var("RTE_(MAX|MBUF|MEMPOOL|PTYPE|PKTMBUF|ETH|ETHER|FLOW|LOG|PROC|VER|VERSION)_.*|E_RTE_.*|SOCKET_ID_ANY")
        .clang_macro_fallback()
        .clang_macro_fallback_build_dir(&out)
        .prepend_enum_name(false)
        .derive_debug(false)
        .derive_default(true)
        .generate_comments(false)
        .use_core()
        .wrap_static_fns(true)
        .wrap_static_fns_path(&inline)
        .generate()
        .expect("bindgen reads DPDK's headers: is libclang installed (Debian: libclang-dev)?")
        .write_to_file(out.join("bindings.rs"))
        .expect("OUT_DIR is writable");

    let mut compiler = cc::Build::new();
    compiler.file(&inline).include(".").define("_GNU_SOURCE", None).warnings(false);
    for flag in flags {
        compiler.flag(flag);
    }
    compiler.compile("dpdk_inline");
}

/// Tells cargo what to link and gives the compiler flags that the headers need.
fn find_libdpdk() -> Vec<String> {
    let hint = "is libdpdk-dev installed? Without it, build with `--no-default-features`";
    pkg_config::Config::new()
        .atleast_version(OLDEST)
        .probe("libdpdk")
        .unwrap_or_else(|error| panic!("libdpdk {OLDEST} or newer: {hint}\n{error}"));
    let pkg_config = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = Command::new(pkg_config).args(["--cflags", "libdpdk"]).output().expect("pkg-config just ran");
    let flags = String::from_utf8(output.stdout).expect("pkg-config prints flags in UTF-8");
    flags.split_whitespace().map(str::to_owned).collect()
}
