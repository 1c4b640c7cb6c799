//! Where the key of an encrypted store comes from: never from the command line itself, which everybody on the machine can
//! read, but from what it names.
//!
//! In this order: `--recovery-kit`, `--store-identity`, `--store-passphrase-file`, `$ABD_STORE_PASSPHRASE`, systemd's
//! credential `abd-store`, and somebody at a terminal. The first that is there is tried, and no other.

use crate::error::{Error, Kind, Result, file_error};
use ads::{Access, Passphrase, Store};
use clap::Args;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use zeroize::Zeroizing;

/// Holds the passphrase of the store.
pub const PASSPHRASE_VARIABLE: &str = "ABD_STORE_PASSPHRASE";
/// Name of systemd's credential with it.
const CREDENTIAL: &str = "abd-store";
/// Largest file with a key that is read.
const MAX_KEY_FILE: u64 = 64 << 10;

/// What the command line says about the key.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "The key of an encrypted store")]
pub struct KeyArgs {
    /// File whose first line is the passphrase. Without it: $ABD_STORE_PASSPHRASE or systemd's credential abd-store.
    #[arg(long, global = true, value_name = "FILE")]
    pub store_passphrase_file: Option<PathBuf>,
    /// File with an identity of age (AGE-SECRET-KEY-1...), as `age-keygen` writes it.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "store_passphrase_file")]
    pub store_identity: Option<PathBuf>,
    /// File with a recovery kit, as `abd store key export` printed it.
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["store_passphrase_file", "store_identity"])]
    pub recovery_kit: Option<PathBuf>,
}

/// What this process was told. Stores are opened in many places, and none of them has a say in this.
static TOLD: OnceLock<KeyArgs> = OnceLock::new();

/// Remembers what the command line says, once.
pub fn tell(args: KeyArgs) {
    // Said twice only where tests run in one process.
    let _ = TOLD.set(args);
}

/// Opens an encrypted store with what was told, if anything was; another one stays as it is. Asks at a terminal only where
/// `ask` is set.
///
/// # Errors
/// [`Kind::Auth`] where it does not open the store, or a file cannot be read.
pub fn unlock(store: &mut Store, ask: bool) -> Result<()> {
    if !store.is_locked() {
        return Ok(());
    }
    let access = match told(TOLD.get().unwrap_or(&KeyArgs::default()))? {
        None if ask && std::io::stdin().is_terminal() => {
            Some(Access::Passphrase(prompt(&format!("Passphrase of {}: ", store.dir().display()))?))
        }
        access => access,
    };
    access.map_or(Ok(()), |access| store.unlock(&access).map_err(crate::catalog::store_error))
}

fn told(args: &KeyArgs) -> Result<Option<Access>> {
    let refused = |error: ads::Error| Error::new(Kind::Auth, error.to_string());
    if let Some(file) = &args.recovery_kit {
        return Access::kit(&read(file)?).map(Some).map_err(refused);
    }
    if let Some(file) = &args.store_identity {
        return Access::identities(&read(file)?).map(Some).map_err(refused);
    }
    Ok(told_passphrase(args)?.map(Access::Passphrase))
}

/// The passphrase that was told, without asking.
fn told_passphrase(args: &KeyArgs) -> Result<Option<Passphrase>> {
    if let Some(file) = &args.store_passphrase_file {
        return first_line(file).map(Some);
    }
    if let Ok(text) = std::env::var(PASSPHRASE_VARIABLE) {
        return Ok(Some(Passphrase::new(text)));
    }
    let credential = std::env::var_os("CREDENTIALS_DIRECTORY")
        .map(|directory| PathBuf::from(directory).join(CREDENTIAL))
        .filter(|path| path.exists());
    credential.as_deref().map(first_line).transpose()
}

/// A passphrase that is new: out of `file`, else, for a store that is being made, what was told, else asked twice.
///
/// # Errors
/// [`Kind::Usage`] where there is none, or somebody typed two.
pub fn new_passphrase(file: Option<&Path>, from_told: bool) -> Result<Passphrase> {
    if let Some(file) = file {
        return first_line(file);
    }
    if from_told && let Some(told) = told_passphrase(TOLD.get().unwrap_or(&KeyArgs::default()))? {
        return Ok(told);
    }
    if !std::io::stdin().is_terminal() {
        let (option, variable) = match from_told {
            true => ("--store-passphrase-file", " or set ABD_STORE_PASSPHRASE"),
            false => ("--new-passphrase-file", ""),
        };
        return Err(Error::new(Kind::Usage, "there is no new passphrase, and nobody to ask")
            .remedy(format!("name a file with {option}{variable}, or name a --recipient")));
    }
    let first = read_hidden("New passphrase: ")?;
    match first == read_hidden("Once more: ")? {
        true => Ok(Passphrase::new(first.to_string())),
        false => Err(Error::new(Kind::Usage, "these were two different passphrases; nothing was changed")),
    }
}

fn prompt(text: &str) -> Result<Passphrase> {
    Ok(Passphrase::new(read_hidden(text)?.to_string()))
}

fn read_hidden(text: &str) -> Result<Zeroizing<String>> {
    let typed = rpassword::prompt_password(text)
        .map_err(|error| Error::new(Kind::Usage, "cannot ask for the passphrase").because(error))?;
    Ok(Zeroizing::new(typed))
}

fn first_line(path: &Path) -> Result<Passphrase> {
    Ok(Passphrase::new(read(path)?.lines().next().unwrap_or_default().to_owned()))
}

fn read(path: &Path) -> Result<Zeroizing<String>> {
    let failed = |error| file_error(Kind::Auth, path, "read", error);
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > MAX_KEY_FILE {
        let text = format!("{} has {size} bytes, which is no key", path.display());
        return Err(Error::new(Kind::Auth, text));
    }
    fs::read_to_string(path).map(Zeroizing::new).map_err(failed)
}
