//! `xapi-sim ctl`: one control request per invocation.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::PathBuf;
use xapi_sim::{Error, LabClient, Ports, SrSpec};

/// Options of `ctl`.
#[derive(Debug, Args)]
pub(crate) struct CtlArgs {
    /// The file that `serve` wrote.
    #[arg(long, env = "XAPI_SIM_PORTS")]
    port_file: PathBuf,
    #[command(subcommand)]
    command: CtlCommand,
}

#[derive(Debug, Subcommand)]
enum CtlCommand {
    /// VMs.
    #[command(subcommand)]
    Vm(VmCommand),
    /// Disks.
    #[command(subcommand)]
    Vdi(VdiCommand),
    /// Storage repositories.
    #[command(subcommand)]
    Sr(SrCommand),
    /// Running guests.
    #[command(subcommand)]
    Guest(GuestCommand),
    /// Everything the pool holds.
    Inventory,
    /// The event log, one JSON object per line.
    Log {
        /// First entry to show.
        #[arg(long, default_value_t = 0)]
        since: u64,
    },
    /// Plan a fault: a JSON object such as '{"method":"VDI.snapshot","error":["SR_BACKEND_FAILURE_44","","",""]}'.
    Fault {
        /// The object.
        json: String,
    },
    /// Stop the pool and its guests.
    Shutdown,
}

#[derive(Debug, Subcommand)]
enum VmCommand {
    /// Make a VM with disks.
    Create {
        /// Its name.
        name: String,
        /// NAME=FILE (a raw image, copied) or NAME=SIZE in bytes; may be repeated.
        #[arg(long = "disk", value_name = "NAME=FILE|SIZE")]
        disks: Vec<String>,
        /// Track changed blocks of its disks.
        #[arg(long)]
        cbt: bool,
        /// Leave it running (without a process).
        #[arg(long)]
        running: bool,
        /// A tag; may be repeated.
        #[arg(long = "tag")]
        tags: Vec<String>,
        /// Name or uuid of the repository of its disks [default: the pool's default].
        #[arg(long)]
        sr: Option<String>,
        /// Name or uuid of the host it prefers and, with --running, runs on.
        #[arg(long)]
        host: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum SrCommand {
    /// Make a repository: name=NAME,type=TYPE[,shared=BOOL][,host=N][,capacity=SIZE][,default=BOOL].
    Create {
        /// As for `serve --sr`.
        spec: SrSpec,
    },
    /// Shorten its chains now, where the pool runs with --coalesce manual.
    Coalesce {
        /// The repository.
        uuid: String,
    },
    /// Make it smaller or larger.
    Capacity {
        /// The repository.
        uuid: String,
        /// Its size in bytes.
        bytes: u64,
    },
}

#[derive(Debug, Subcommand)]
enum VdiCommand {
    /// Write standard input into a disk.
    Write {
        /// The disk.
        uuid: String,
        /// Where to begin, in bytes.
        #[arg(long, default_value_t = 0)]
        offset: u64,
    },
    /// Make a range zeros.
    Zero {
        /// The disk.
        uuid: String,
        /// Where to begin, in bytes.
        #[arg(long)]
        offset: u64,
        /// How much, in bytes.
        #[arg(long)]
        length: u64,
    },
    /// Read a range to standard output.
    Read {
        /// The disk.
        uuid: String,
        /// Where to begin, in bytes.
        #[arg(long, default_value_t = 0)]
        offset: u64,
        /// How much, in bytes.
        #[arg(long)]
        length: u64,
    },
    /// Size and SHA-256 of a disk.
    Digest {
        /// The disk.
        uuid: String,
        /// Only the digest that leaves out zero blocks: fast on huge disks.
        #[arg(long)]
        sparse: bool,
    },
    /// Grow a disk.
    Resize {
        /// The disk.
        uuid: String,
        /// The new size in bytes.
        size: u64,
    },
    /// The raw file behind a disk.
    Path {
        /// The disk.
        uuid: String,
    },
}

#[derive(Debug, Subcommand)]
enum GuestCommand {
    /// Kill a guest's machine.
    Kill {
        /// The VM.
        uuid: String,
    },
    /// Pull (0) or plug (1) its network cable.
    Link {
        /// The VM.
        uuid: String,
        /// 0 or 1.
        up: u8,
    },
    /// What it printed.
    Console {
        /// The VM.
        uuid: String,
    },
}

/// Runs one control request and prints its answer.
pub(crate) fn run(args: CtlArgs) -> Result<(), Error> {
    let client = LabClient::new(ports(&args.port_file)?.lab);
    match args.command {
        CtlCommand::Vm(VmCommand::Create { name, disks, cbt, running, tags, sr, host }) => {
            let disks: Vec<Value> = disks.iter().map(|d| disk(d, sr.as_deref())).collect::<Result<_, _>>()?;
            let wanted = json!({"name": name, "disks": disks, "cbt": cbt, "running": running, "tags": tags,
                "host": host});
            print_json(&client.json("POST", "/lab/vm", Some(&wanted))?);
        }
        CtlCommand::Vdi(command) => vdi(&client, command)?,
        CtlCommand::Sr(command) => repository(&client, command)?,
        CtlCommand::Guest(command) => guest(&client, command)?,
        CtlCommand::Inventory => print_json(&client.json("GET", "/lab/inventory", None)?),
        CtlCommand::Log { since } => {
            for entry in client.lines(&format!("/lab/log?since={since}"))? {
                println!("{entry}");
            }
        }
        CtlCommand::Fault { json } => {
            let fault = serde_json::from_str(&json).map_err(|e| wrong("fault", format!("not JSON: {e}")))?;
            print_json(&client.json("POST", "/lab/faults", Some(&fault))?);
        }
        CtlCommand::Shutdown => print_json(&client.json("POST", "/lab/shutdown", None)?),
    }
    Ok(())
}

fn wrong(request: &str, detail: String) -> Error {
    Error::Control { request: request.to_owned(), detail }
}

fn ports(path: &PathBuf) -> Result<Ports, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::File {
        action: "read",
        path: path.clone(),
        source,
    })?;
    serde_json::from_str(&text).map_err(|e| wrong("ports file", format!("{}: {e}", path.display())))
}

fn repository(client: &LabClient, command: SrCommand) -> Result<(), Error> {
    let answer = match command {
        SrCommand::Create { spec } => {
            let wanted = serde_json::to_value(&spec).expect("a specification is plain members");
            client.json("POST", "/lab/sr", Some(&wanted))?
        }
        SrCommand::Coalesce { uuid } => client.json("POST", &format!("/lab/sr/{uuid}/coalesce"), None)?,
        SrCommand::Capacity { uuid, bytes } => {
            client.json("POST", &format!("/lab/sr/{uuid}/capacity?bytes={bytes}"), None)?
        }
    };
    print_json(&answer);
    Ok(())
}

fn disk(text: &str, sr: Option<&str>) -> Result<Value, Error> {
    let (name, source) =
        text.split_once('=').ok_or_else(|| wrong("--disk", format!("{text:?} is not NAME=...")))?;
    match source.parse::<u64>() {
        Ok(size) => Ok(json!({"name": name, "size": size, "sr": sr})),
        Err(_) => {
            let path = std::fs::canonicalize(source).map_err(|e| Error::File {
                action: "find",
                path: source.into(),
                source: e,
            })?;
            Ok(json!({"name": name, "file": path, "sr": sr}))
        }
    }
}

fn vdi(client: &LabClient, command: VdiCommand) -> Result<(), Error> {
    match command {
        VdiCommand::Write { uuid, offset } => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map_err(|source| Error::File {
                action: "read",
                path: "standard input".into(),
                source,
            })?;
            client.bytes("PUT", &format!("/lab/vdi/{uuid}?offset={offset}"), &bytes)?;
        }
        VdiCommand::Zero { uuid, offset, length } => {
            client.json("POST", &format!("/lab/vdi/{uuid}/zero?offset={offset}&length={length}"), None)?;
        }
        VdiCommand::Read { uuid, offset, length } => {
            print_bytes(&client.bytes(
                "GET",
                &format!("/lab/vdi/{uuid}?offset={offset}&length={length}"),
                &[],
            )?)?;
        }
        VdiCommand::Digest { uuid, sparse } => {
            let query = if sparse { "?sparse=1" } else { "" };
            print_json(&client.json("GET", &format!("/lab/vdi/{uuid}/digest{query}"), None)?);
        }
        VdiCommand::Resize { uuid, size } => {
            print_json(&client.json("POST", &format!("/lab/vdi/{uuid}/resize?size={size}"), None)?);
        }
        VdiCommand::Path { uuid } => {
            print_json(&client.json("GET", &format!("/lab/vdi/{uuid}/path"), None)?)
        }
    }
    Ok(())
}

fn guest(client: &LabClient, command: GuestCommand) -> Result<(), Error> {
    match command {
        GuestCommand::Kill { uuid } => {
            print_json(&client.json("POST", &format!("/lab/guest/{uuid}/kill"), None)?)
        }
        GuestCommand::Link { uuid, up } => {
            print_json(&client.json("POST", &format!("/lab/guest/{uuid}/link?up={up}"), None)?);
        }
        GuestCommand::Console { uuid } => {
            print_bytes(&client.bytes("GET", &format!("/lab/guest/{uuid}/console"), &[])?)?;
        }
    }
    Ok(())
}

fn print_json(value: &Value) {
    println!("{value:#}");
}

fn print_bytes(bytes: &[u8]) -> Result<(), Error> {
    std::io::stdout().write_all(bytes).map_err(|source| Error::File {
        action: "write",
        path: "standard output".into(),
        source,
    })
}
