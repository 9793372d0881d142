//! The committed reference is that of today's method table.

use std::path::Path;

#[test]
fn the_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("RPC.md");
    let page = api::reference(&api::table());
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(committed == page, "RPC.md is not up to date: run this test with UPDATE_REFERENCE=1");
}
