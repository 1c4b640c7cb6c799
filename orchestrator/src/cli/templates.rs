//! `abd template`: the appliance's template as a file and in pools.

use super::{Session, connect, find_sr};
use crate::error::{Context, Error, Kind, Result, file_error};
use crate::pool::Pool;
use crate::removal::Removed;
use crate::report::{Event, table};
use crate::signing::{self, Protection, PublicKey};
use crate::template::{Imported, State};
use crate::{image, kept, template};
use clap::Subcommand;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use xapi::{Ref, Sr};

/// How much of a disk's digest people see: enough to tell two builds apart.
const SHOWN_DIGEST: usize = 12;

#[derive(Debug, Subcommand)]
pub(super) enum TemplateCommand {
    /// Pack a disk image into a template file (XVA).
    #[command(
        after_help = "Example:\n  abd template build --disk out/abd.img --out out/abd.xva\n  abd template build --disk out/abd.img --out out/abd.xva --sign abd.key"
    )]
    Build {
        /// The disk image, as made by scripts/image.
        #[arg(long, value_name = "FILE")]
        disk: PathBuf,
        /// The XVA to write.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Sign it with this secret key; the signature goes into OUT.minisig.
        #[arg(long, value_name = "KEY")]
        sign: Option<PathBuf>,
        /// File whose first line is the key's password, where it has one. Without it: asked for at the terminal.
        #[arg(long, value_name = "FILE", requires = "sign")]
        password_file: Option<PathBuf>,
    },
    /// Make a pair of keys to sign templates with.
    ///
    /// Whoever builds `abd` with ABD_TEMPLATE_PUBLIC_KEY=<the public key's text> makes an `abd` that imports no
    /// other templates.
    #[command(after_help = "Example:\n  abd template key --out abd        # abd.key and abd.pub")]
    Key {
        /// The files' name: NAME.key is secret, NAME.pub is for everybody.
        #[arg(long, value_name = "NAME")]
        out: PathBuf,
        /// File whose first line becomes the secret key's password. Without it: asked for at the terminal.
        #[arg(long, value_name = "FILE", conflicts_with = "no_password")]
        password_file: Option<PathBuf>,
        /// Do not encrypt the secret key.
        #[arg(long)]
        no_password: bool,
    },
    /// Sign a file that was built here: a template, or the description of an image (image.json).
    #[command(after_help = "Example:\n  abd template sign out/image.json --key abd.key")]
    Sign {
        /// The file.
        file: PathBuf,
        /// The secret key.
        #[arg(long, value_name = "KEY")]
        key: PathBuf,
        /// File whose first line is the key's password, where it has one. Without it: asked for at the terminal.
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Check a template, or an image by its description, from the first byte to the last, and who signed it.
    #[command(
        after_help = "Example:\n  abd template verify out/abd.xva --public-key abd.pub\n  abd template verify out/image.json --public-key abd.pub"
    )]
    Verify {
        /// The XVA, or the image.json beside an image's files.
        file: PathBuf,
        /// The public key: a file, or its text [default: the one that is built in].
        #[arg(long, value_name = "KEY")]
        public_key: Option<String>,
        /// The signature [default: FILE.minisig].
        #[arg(long, value_name = "FILE")]
        signature: Option<PathBuf>,
    },
    /// Bring a template file into a pool.
    ///
    /// Where a public key is built in or given, only a template that was signed with it is taken. A template that it
    /// replaces stays until the last delegate that was made of it has ended; jobs that start now take this one.
    #[command(
        after_help = "Example:\n  abd template import out/abd.xva\n  abd template import out/abd.xva --public-key abd.pub"
    )]
    Import {
        /// The XVA.
        file: PathBuf,
        /// The public key: a file, or its text [default: the one that is built in].
        #[arg(long, value_name = "KEY")]
        public_key: Option<String>,
        /// Take a template without looking at its signature.
        #[arg(long, conflicts_with = "public_key")]
        unsigned: bool,
        /// The pool, where more than one is known.
        #[arg(long)]
        pool: Option<String>,
        /// Storage repository, by name or uuid [default: the pool's default one; where that cannot take it, the one that
        /// most hosts see].
        #[arg(long)]
        sr: Option<String>,
    },
    /// List the appliance's templates in a pool: version, state, storage, and how many delegates were made of each.
    #[command(after_help = "Example:\n  abd template list")]
    List {
        /// The pool, where more than one is known.
        #[arg(long)]
        pool: Option<String>,
    },
    /// Say whether jobs of this abd have their template in a pool; exit code 7 where not.
    #[command(after_help = "Example:\n  abd template status\n  abd --json template status | jq .ready")]
    Status {
        /// The pool, where more than one is known.
        #[arg(long)]
        pool: Option<String>,
    },
    /// Remove the appliance's templates from a pool, or one of them.
    ///
    /// One that delegates were made of stays until the last of them has ended; no job takes it any more.
    #[command(after_help = "Example:\n  abd template remove")]
    Remove {
        /// Only the one with this uuid.
        uuid: Option<String>,
        /// The pool, where more than one is known.
        #[arg(long)]
        pool: Option<String>,
    },
}

pub(super) async fn run(session: &Session, command: TemplateCommand) -> Result<()> {
    match command {
        TemplateCommand::Build { disk, out, sign, password_file } => {
            // What would fail, before anything is built.
            let password = password_file.as_deref().map(password).transpose()?;
            let built = template::build(&disk, &out)?;
            let signature = match &sign {
                Some(key) => Some(sign_file(&out, key, password)?),
                None => None,
            };
            let answer = json!({
                "path": built.path, "size": built.size, "version": built.version, "digest": built.digest,
                "signature": signature,
            });
            session.report.answer(&answer, || {
                let size = blocks::ByteCount::new(built.size);
                let signed =
                    signature.map(|path| format!(", signed in {}", path.display())).unwrap_or_default();
                format!(
                    "{}: {size}, version {}, disk {}{signed}",
                    built.path.display(),
                    built.version,
                    built.digest
                )
            });
            Ok(())
        }
        TemplateCommand::Key { out, password_file, no_password } => {
            let protection = match (password_file, no_password) {
                (Some(file), _) => Protection::Password(password(&file)?),
                (None, true) => Protection::None,
                (None, false) => Protection::Ask,
            };
            let named = |ending: &str| {
                let mut name = out.as_os_str().to_owned();
                name.push(ending);
                PathBuf::from(name)
            };
            let (secret, public) = (named(".key"), named(".pub"));
            let key = signing::generate(&secret, &public, protection)?;
            session.report.answer(
                &json!({"key_id": key.id(), "secret": secret, "public": public, "text": key.text()}),
                || {
                    format!(
                        "key {}: keep {} to yourself, give {} to everybody\npublic key: {}",
                        key.id(),
                        secret.display(),
                        public.display(),
                        key.text()
                    )
                },
            );
            Ok(())
        }
        TemplateCommand::Sign { file, key, password_file } => {
            let password = password_file.as_deref().map(password).transpose()?;
            let signature = sign_file(&file, &key, password)?;
            session
                .report
                .answer(&json!({"signature": signature}), || format!("signed in {}", signature.display()));
            Ok(())
        }
        TemplateCommand::Verify { file, public_key, signature } => {
            let key = known_key(public_key.as_deref())?;
            if key.is_none() && signature.is_some() {
                return Err(Error::new(Kind::Usage, "there is no public key to check the signature with")
                    .remedy("give it with --public-key"));
            }
            // First who made it: an answer about its content is worth nothing from somebody else.
            let signed = key.map(|key| key.verify(&file, signature.as_deref())).transpose()?;
            let what = inspect(&file)?;
            session.report.answer(&json!({"whole": true, "what": what, "signed": signed}), || match signed {
                Some(signed) => format!("{what}; signed with the key {}: {}", signed.key_id, signed.comment),
                None => format!("{what}; who made it was not checked, because no public key is known"),
            });
            Ok(())
        }
        TemplateCommand::Import { file, public_key, unsigned, pool, sr } => {
            let key = if unsigned { None } else { known_key(public_key.as_deref())? };
            if let Some(key) = key {
                key.verify(&file, None)?;
            }
            let pool = connect(session, pool.as_deref()).await?;
            let result = async {
                let sr = match sr.as_deref() {
                    Some(wanted) => find_sr(&pool, Some(wanted)).await?,
                    None => {
                        let size = std::fs::metadata(&file)
                            .map_err(|error| file_error(Kind::Template, &file, "read", error))?
                            .len();
                        template::storage_by_rule(&pool, size).await?
                    }
                };
                let imported = template::import(&pool, &file, &sr, &session.report).await?;
                drop_kept(session, &pool).await?;
                Ok(imported)
            };
            let result: Result<_> = result.await;
            pool.close().await;
            imported(session, &result?);
            Ok(())
        }
        TemplateCommand::List { pool } => {
            let pool = connect(session, pool.as_deref()).await?;
            let rows = Rows::of(&pool).await;
            pool.close().await;
            let rows = rows?;
            session.report.answer(&json!({"templates": rows.values()}), || rows.text());
            Ok(())
        }
        TemplateCommand::Status { pool } => {
            let pool = connect(session, pool.as_deref()).await?;
            let (rows, usable) = (Rows::of(&pool).await, template::usable(&pool).await);
            pool.close().await;
            let rows = rows?;
            let ready = usable.is_ok();
            let value = json!({"ready": ready, "version": template::VERSION, "templates": rows.values()});
            session.report.answer(&value, || match ready {
                true => {
                    format!("jobs of this abd ({}) have their template\n{}", template::VERSION, rows.text())
                }
                false => rows.text(),
            });
            usable.map(|_| ())
        }
        TemplateCommand::Remove { uuid, pool } => {
            let pool = connect(session, pool.as_deref()).await?;
            let result = async {
                let removed = remove_templates(&pool, uuid.as_deref()).await?;
                drop_kept(session, &pool).await?;
                Ok(removed)
            };
            let result: Result<_> = result.await;
            pool.close().await;
            let (removed, waiting) = result?;
            session.report.answer(&json!({"removed": removed, "waiting": waiting_value(&waiting)}), || {
                let mut text = format!("{} templates removed", removed.len());
                for (uuid, users) in &waiting {
                    text.push_str(&format!("\n{}", waits(uuid, *users)));
                }
                text
            });
            Ok(())
        }
    }
}

/// Removes the kept delegates of templates that jobs do not clone any more.
async fn drop_kept(session: &Session, pool: &Pool) -> Result<()> {
    let mut removed = Removed::default();
    kept::trim(pool, &session.state.journal_directory(), false, &mut removed).await?;
    for leftover in removed.leftovers {
        let message = format!("a kept delegate stays, run `abd reconcile`: {leftover}");
        session.report.event(&Event::Warning { job: None, message });
    }
    Ok(())
}

/// Tells what an import came to.
fn imported(session: &Session, done: &Imported) {
    let Imported { template, is_new, removed, waiting } = done;
    let value = json!({
        "uuid": template.uuid, "version": template.version, "digest": template.digest, "imported": is_new,
        "removed": removed, "waiting": waiting_value(waiting),
    });
    session.report.answer(&value, || {
        let what = if *is_new { "imported" } else { "was there already" };
        let mut text = format!("template {} {what}: {}", template.version, template.uuid);
        for uuid in removed {
            text.push_str(&format!("\nremoved the one that it replaces: {uuid}"));
        }
        for (uuid, users) in waiting {
            text.push_str(&format!("\n{}", waits(uuid, *users)));
        }
        text
    });
}

/// That a template stays for now, and why.
fn waits(uuid: &str, users: usize) -> String {
    format!("{uuid} is removed when the last of {users} delegates that were made of it has ended")
}

fn waiting_value(waiting: &[(String, usize)]) -> Vec<Value> {
    waiting.iter().map(|(uuid, users)| json!({"uuid": uuid, "delegates": users})).collect()
}

/// The templates of a pool with the names of their storage.
struct Rows {
    found: Vec<template::Found>,
    names: BTreeMap<Ref<Sr>, String>,
}

impl Rows {
    async fn of(pool: &Pool) -> Result<Self> {
        let found = template::survey(pool).await?;
        let srs = pool.client.get_all_records::<Sr>().await.context(|| "list storage".into())?;
        let names = srs.into_iter().map(|(reference, sr)| (reference, sr.name_label)).collect();
        Ok(Self { found, names })
    }

    fn storage(&self, found: &template::Found) -> Vec<&str> {
        found.storage.iter().map(|sr| self.names.get(sr).map_or("?", String::as_str)).collect()
    }

    fn values(&self) -> Vec<Value> {
        let one = |found: &template::Found| {
            let why = match &found.state {
                State::Broken(why) => Some(why),
                _ => None,
            };
            json!({
                "uuid": found.template.uuid, "version": found.template.version,
                "digest": found.template.digest, "state": found.state.word(), "why": why,
                "storage": self.storage(found), "delegates": found.users,
            })
        };
        self.found.iter().map(one).collect()
    }

    fn text(&self) -> String {
        let row = |found: &template::Found| {
            let state = match &found.state {
                State::Broken(why) => format!("broken: {why}"),
                state => state.word().to_owned(),
            };
            let digest = found.template.digest.chars().take(SHOWN_DIGEST).collect();
            let (uuid, version) = (found.template.uuid.clone(), found.template.version.clone());
            vec![uuid, version, state, self.storage(found).join(", "), found.users.to_string(), digest]
        };
        let rows: Vec<_> = self.found.iter().map(row).collect();
        table(&["UUID", "VERSION", "STATE", "STORAGE", "DELEGATES", "DISK"], &rows)
    }
}

/// The key that signatures are checked with: the one that was given, or the one that is built in.
fn known_key(given: Option<&str>) -> Result<Option<PublicKey>> {
    match given {
        Some(given) => PublicKey::read(given).map(Some),
        None => PublicKey::built_in(),
    }
}

/// The first line of a file.
fn password(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).map_err(|error| file_error(Kind::Usage, file, "read", error))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Signs a file that is whole; what it is goes into the signature.
fn sign_file(file: &Path, key: &Path, password: Option<String>) -> Result<PathBuf> {
    let what = inspect(file)?;
    signing::sign(file, key, password, &what)
}

/// Checks a file of ours from its first to its last byte, and gives what it is in one line.
fn inspect(file: &Path) -> Result<String> {
    if file.extension().is_some_and(|ending| ending == "json") {
        return image::check(file).map(|image| image.to_string());
    }
    let description = template::check(file)?;
    Ok(format!(
        "appliance template, version {}, disk {}",
        description.template_version.unwrap_or_default(),
        description.digest.unwrap_or_default()
    ))
}

/// Lets go of one template, or of all. Gives those that are removed, and those that wait for delegates.
async fn remove_templates(pool: &Pool, uuid: Option<&str>) -> Result<(Vec<String>, Vec<(String, usize)>)> {
    let mut found = template::survey(pool).await?;
    found.retain(|one| uuid.is_none_or(|uuid| one.template.uuid == uuid));
    if let (Some(uuid), true) = (uuid, found.is_empty()) {
        return Err(Error::new(Kind::NotFound, format!("no template of ours has the uuid {uuid}"))
            .remedy("see `abd template list`"));
    }
    if let Some(one) = found.iter().find(|one| one.state == State::Importing) {
        return Err(Error::new(Kind::Locked, format!("template {} is being imported", one.template.uuid))
            .remedy("wait for that, or end the import"));
    }
    template::let_go(pool, &found, None).await?;
    let mut swept = Removed::default();
    let mut waiting = template::sweep(pool, &mut swept).await?;
    if let Some(first) = swept.leftovers.first() {
        return Err(Error::new(Kind::Leftovers, format!("not removed: {first}"))
            .remedy("see what holds it in XenCenter, then run `abd reconcile`"));
    }
    waiting.retain(|stays| found.iter().any(|one| one.template.uuid == stays.template.uuid));
    let waiting: Vec<_> = waiting.into_iter().map(|one| (one.template.uuid, one.users)).collect();
    let stays = |uuid: &String| waiting.iter().any(|(waiting, _)| waiting == uuid);
    let removed = found.into_iter().map(|one| one.template.uuid).filter(|uuid| !stays(uuid)).collect();
    Ok((removed, waiting))
}
