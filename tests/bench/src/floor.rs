//! A floor: what one thread needs to read a file and hash it, and nothing else.

use crate::machine::used;
use crate::{Error, io};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Hashed while it is in the processor's cache.
const PIECE: usize = 256 << 10;

pub(crate) fn blake3(path: &Path) -> Result<Value, Error> {
    let named = || format!("read {}", path.display());
    let mut file = File::open(path).map_err(io(named()))?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE];
    loop {
        let size = file.read(&mut piece).map_err(io(named()))?;
        if size == 0 {
            break;
        }
        hasher.update(&piece[..size]);
    }
    Ok(json!({ "blake3": hasher.finalize().to_hex().to_string(), "used": used() }))
}
