//! An EAL that does not start says why, and cannot be tried again.

use dpdk::{Eal, EalConfig, EalError, EalMemory};

#[test]
fn an_unknown_option_is_refused_and_the_process_goes_on() {
    let options = vec!["--no-such-option".to_owned()];
    let config = EalConfig { memory: EalMemory::NoHuge { mib: 64 }, options, ..EalConfig::default() };
    let error = Eal::init(&config).unwrap_err();
    assert!(
        matches!(&error, EalError::Options { options, .. } if options.contains(&"--no-such-option".into())),
        "{error}"
    );
    assert!(Eal::running().is_none());
    assert!(matches!(Eal::init(&EalConfig::default()), Err(EalError::AlreadyInitialised)));
}
