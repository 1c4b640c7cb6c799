//! The crates that ship in the image. The list is short on purpose: adding a line here is the review.

use std::collections::BTreeSet;
use std::process::Command;

/// Ours, and what they stand on.
const SHIPPED: &str = "
    abd-appliance blocks diskio pin seal wire
    hyper atomic-waker bytes futures-core futures-task futures-util http http-body httparse itoa
    pin-project-lite smallvec try-lock want
    tokio mio socket2 tokio-rustls tokio-uring slab
    rustls rustls-pki-types rustls-webpki ring getrandom once_cell subtle untrusted zeroize
    blake3 arrayvec constant_time_eq cpufeatures zstd zstd-safe zstd-sys
    postcard cobs serde serde_bytes serde_core
    io-uring libc nix memoffset bitflags cfg-if thiserror
";

/// They run while the image is built and leave nothing in it.
const BUILD_ONLY: &str = "proc-macro2 quote serde_derive syn thiserror-impl unicode-ident";

#[test]
fn the_image_holds_no_other_crates() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", "abd-appliance", "--edges", "normal", "--prefix", "none", "--offline"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--format", "{p}", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .expect("cargo is what runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("crate names");
    let found: BTreeSet<&str> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let listed: BTreeSet<&str> = SHIPPED.split_whitespace().chain(BUILD_ONLY.split_whitespace()).collect();
    let unlisted: Vec<_> = found.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(
        unlisted.is_empty() && gone.is_empty(),
        "not listed: {unlisted:?}; listed, but not used: {gone:?}"
    );
}
