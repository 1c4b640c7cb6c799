//! `abd store key`: who can open an encrypted store.

use crate::catalog;
use crate::error::{Error, Kind, Result, file_error};
use crate::report::{Report, table};
use crate::store_key;
use ads::{KdfCost, KeySlot, NewAccess, SlotKind, Store};
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// What there is to do with keys.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// List who can open the store. Needs no key.
    #[command(after_help = "Example:\n  abd store key list\n  abd --json store key list | jq '.slots[]'")]
    List,
    /// Let somebody else open the store: with a passphrase, which is asked for, or with an identity of age.
    #[command(
        after_help = "Example:\n  abd store key add --label 'second admin'\n  abd store key add --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    )]
    Add(NewArgs),
    /// Change the passphrase that opens the store now. The former is removed after the new one was opened.
    ///
    /// Who copied the former key slot before can still use it with the former passphrase: the key of the blocks stays.
    #[command(
        after_help = "Example:\n  abd store key change\n  abd store key change --store-passphrase-file old --new-passphrase-file new"
    )]
    Change {
        /// The slot to take away, where another one opens the store; from `abd store key list`.
        #[arg(long, value_name = "SLOT")]
        slot: Option<Uuid>,
        #[command(flatten)]
        new: NewArgs,
    },
    /// Take a passphrase or a recipient away. The last one stays.
    #[command(after_help = "Example:\n  abd store key remove 0f3c2c9e-75a4-4a6f-9a52-0c1d5c2b7e11")]
    Remove {
        /// The slot, from `abd store key list`.
        slot: Uuid,
    },
    /// Print a recovery kit: the key itself, for paper. It opens the store when all else is lost.
    #[command(
        after_help = "Example:\n  abd store key export | lpr\n  abd store key export --output /media/usb/abd-recovery-kit.txt"
    )]
    Export {
        /// Write it to this file, readable by its owner only, and not to the screen.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// What shall open the store.
#[derive(Clone, Debug, Args)]
pub(super) struct NewArgs {
    /// A public key of age in place of a passphrase.
    #[arg(long, value_name = "age1...")]
    recipient: Option<String>,
    /// File whose first line is the new passphrase.
    #[arg(long, value_name = "FILE", conflicts_with = "recipient")]
    new_passphrase_file: Option<PathBuf>,
    /// Whose it is, in a few words.
    #[arg(long, default_value = "")]
    label: String,
    #[command(flatten)]
    cost: CostArgs,
}

/// What each guess of a passphrase costs.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct CostArgs {
    /// Memory that opening with the passphrase takes, in MiB: so much for each guess of a stranger, too.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    kdf_memory: u32,
}

impl CostArgs {
    fn cost(self) -> KdfCost {
        KdfCost { memory_kib: self.kdf_memory << 10, ..KdfCost::default() }
    }
}

/// How a store is made.
#[derive(Clone, Debug, Args)]
pub(super) struct InitArgs {
    /// Encrypt all that is stored, on the delegates. A passphrase is asked for, or taken from where the key comes from.
    #[arg(long)]
    encrypt: bool,
    /// Let the owner of this public key of age open it; once for each. Then it needs no passphrase.
    #[arg(long, value_name = "age1...", requires = "encrypt")]
    recipient: Vec<String>,
    #[command(flatten)]
    cost: CostArgs,
}

impl InitArgs {
    /// Makes the store.
    pub(super) fn make(&self, path: &Path) -> Result<(Arc<Store>, bool)> {
        if !self.encrypt {
            return catalog::open(path, true);
        }
        let mut access: Vec<NewAccess> = self.recipient.iter().cloned().map(NewAccess::Recipient).collect();
        if access.is_empty() {
            let passphrase = store_key::new_passphrase(None, true)?;
            access.push(NewAccess::Passphrase { passphrase, cost: self.cost.cost() });
        }
        catalog::make_encrypted(path, &access).map(|store| (Arc::new(store), true))
    }
}

impl NewArgs {
    fn access(&self) -> Result<NewAccess> {
        Ok(match &self.recipient {
            Some(recipient) => NewAccess::Recipient(recipient.clone()),
            None => NewAccess::Passphrase {
                passphrase: store_key::new_passphrase(self.new_passphrase_file.as_deref(), false)?,
                cost: self.cost.cost(),
            },
        })
    }
}

pub(super) fn run(path: &Path, command: &KeyCommand, report: &Report) -> Result<()> {
    if let KeyCommand::List = command {
        return list(&*catalog::open_locked(path)?, report);
    }
    let (store, _) = catalog::open(path, false)?;
    if !store.is_encrypted() {
        let text = format!("store {} is not encrypted", store.dir().display());
        return Err(Error::new(Kind::Usage, text)
            .remedy("make an encrypted one in another place with `abd store init --encrypt`"));
    }
    match command {
        KeyCommand::List => Ok(()),
        KeyCommand::Add(new) => {
            let id = store.add_key(&new.access()?, &new.label).map_err(catalog::store_error)?;
            report.answer(&json!({"added": id}), || format!("added key slot {id}"));
            Ok(())
        }
        KeyCommand::Change { slot, new } => {
            let old = match slot.or(store.opened_by()) {
                Some(old) => old,
                None => {
                    return Err(Error::new(
                        Kind::Usage,
                        "a recovery kit has no key slot that could be changed",
                    )
                    .remedy("name the slot with --slot, or use `abd store key add`"));
                }
            };
            let id = store.replace_key(old, &new.access()?, &new.label).map_err(catalog::store_error)?;
            report
                .answer(&json!({"added": id, "removed": old}), || format!("key slot {id} in place of {old}"));
            Ok(())
        }
        KeyCommand::Remove { slot } => {
            store.remove_key(*slot).map_err(catalog::store_error)?;
            report.answer(&json!({"removed": slot}), || format!("removed key slot {slot}"));
            Ok(())
        }
        KeyCommand::Export { output } => export(&store, output.as_deref(), report),
    }
}

fn list(store: &Store, report: &Report) -> Result<()> {
    let found = store.key_slots().map_err(catalog::store_error)?;
    let describe = |slot: &KeySlot| match &slot.kind {
        SlotKind::Passphrase { cost } => ("passphrase", format!("{} MiB", cost.memory_kib >> 10)),
        SlotKind::Recipient { recipient } => ("recipient", recipient.clone()),
    };
    let value = json!({
        "encrypted": store.is_encrypted(),
        "slots": found.slots.iter().map(|slot| {
            let (kind, what) = describe(slot);
            json!({"id": slot.id, "kind": kind, "what": what, "label": slot.label, "created": slot.created})
        }).collect::<Vec<_>>(),
        "damaged": found.damaged.iter().map(|slot| json!({"path": slot.path, "reason": slot.reason})).collect::<Vec<_>>(),
    });
    report.answer(&value, || {
        if !store.is_encrypted() {
            return "the store is not encrypted".to_owned();
        }
        let row = |slot: &KeySlot| {
            let (kind, what) = describe(slot);
            vec![slot.id.to_string(), kind.to_owned(), what, slot.created.clone(), slot.label.clone()]
        };
        let mut text = table(
            &["SLOT", "KIND", "WHAT", "MADE", "LABEL"],
            &found.slots.iter().map(row).collect::<Vec<_>>(),
        );
        for slot in &found.damaged {
            text.push_str(&format!("\nDAMAGED  {}: {}", slot.path.display(), slot.reason));
        }
        text
    });
    Ok(())
}

fn export(store: &Store, output: Option<&Path>, report: &Report) -> Result<()> {
    let kit = store.recovery_kit().map_err(catalog::store_error)?;
    let Some(path) = output else {
        report.answer(&json!({"store": store.id(), "kit": &**kit}), || kit.to_string());
        return Ok(());
    };
    let failed = |error| file_error(Kind::Failed, path, "write", error);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(kit.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    report.answer(&json!({"store": store.id(), "file": path}), || format!("wrote {}", path.display()));
    Ok(())
}
