//! Finds SPDK by pkg-config, links it whole, and generates the bindings with bindgen. Does nothing without the feature `spdk`.

fn main() {
    #[cfg(feature = "spdk")]
    spdk::bind();
}

#[cfg(feature = "spdk")]
mod spdk {
    use std::env;
    use std::path::{Path, PathBuf};

    /// The directory of headers to compile against where there is no SPDK. Nothing is linked then.
    const HEADERS: &str = "SLUICE_SPDK_HEADERS";
    /// SPDK's modules register themselves from constructors: what they are in is named, and linked whole.
    const LIBRARIES: [&str; 5] = ["spdk_bdev_modules", "spdk_event_bdev", "spdk_init", "spdk_thread", "spdk_env_dpdk"];

    pub(crate) fn bind() {
        println!("cargo:rerun-if-changed=wrapper.h");
        println!("cargo:rerun-if-env-changed={HEADERS}");
        let include_paths = match env::var_os(HEADERS) {
            Some(headers) => {
                println!("cargo:rerun-if-changed={}", Path::new(&headers).display());
                vec![headers.into()]
            }
            None => find_spdk(),
        };
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        bindgen::builder()
            .header("wrapper.h")
            .clang_args(include_paths.iter().map(|path| format!("-I{}", path.display())))
            .allowlist_function("spdk_bdev_(open_ext|close|desc_get_bdev|get_io_channel|free_io|io_type_supported)")
            .allowlist_function("spdk_bdev_(get_(block|physical_block|md|write_unit)_size|get_num_blocks|get_uuid)")
            .allowlist_function("spdk_bdev_(has_write_cache|(readv|writev|flush|unmap|write_zeroes)_blocks)")
            .allowlist_function(
                "spdk_(put_io_channel|get_thread|set_thread|thread_(create|poll|exit|is_exited|destroy))",
            )
            .allowlist_function("spdk_thread_lib_(init|fini)|spdk_subsystem_(init|load_config|fini)")
            .allowlist_function("spdk_(dma_(malloc|free)|env_(opts_init|init|fini|dpdk_post_(init|fini)))")
            .prepend_enum_name(false)
            .derive_default(true)
            .generate_comments(false)
            .use_core()
            .generate()
            .expect("bindgen reads SPDK's headers: is libclang installed (Debian: libclang-dev)?")
            .write_to_file(out.join("bindings.rs"))
            .expect("OUT_DIR is writable");
    }

    /// Tells cargo what to link; returns where the headers are.
    fn find_spdk() -> Vec<PathBuf> {
        let mut include_paths = Vec::new();
        for name in LIBRARIES {
            let library = pkg_config::Config::new().cargo_metadata(false).probe(name).unwrap_or_else(|error| {
                panic!("{name}: is PKG_CONFIG_PATH set to build/lib/pkgconfig of SPDK 24.09 or newer?\n{error}")
            });
            link(&library.libs, &library.link_paths);
            include_paths.extend(library.include_paths);
        }
        // The system's libraries that SPDK's static ones need.
        pkg_config::Config::new().statik(true).probe("spdk_syslibs").expect("it stands beside the others");
        include_paths
    }

    fn link(libraries: &[String], paths: &[PathBuf]) {
        for path in paths {
            println!("cargo:rustc-link-search=native={}", path.display());
        }
        for library in libraries {
            let is_static = |path: &PathBuf| Path::new(path).join(format!("lib{library}.a")).exists();
            let kind = if paths.iter().any(is_static) { "static:+whole-archive,-bundle" } else { "dylib" };
            println!("cargo:rustc-link-lib={kind}={library}");
        }
    }
}
