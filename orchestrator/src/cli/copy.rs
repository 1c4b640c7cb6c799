//! `abd store copy`.

use crate::catalog::{self, store_error};
use crate::copying;
use crate::error::Result;
use crate::report::Report;
use crate::spec;
use ads::CopyOptions;
use blocks::ByteCount;
use clap::Args;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Args)]
pub(super) struct CopyArgs {
    /// Where to: a directory, or s3://BUCKET/PREFIX?OPTIONS.
    #[arg(value_name = "PLACE")]
    to: PathBuf,
    /// Ids of restore points, or the beginnings of them: these and no others, however old.
    #[arg(value_name = "POINT", conflicts_with_all = ["vm", "last", "all"])]
    points: Vec<String>,
    /// Only of this VM, by name or uuid.
    #[arg(long, value_name = "NAME")]
    vm: Vec<String>,
    /// Of each VM only so many of the newest.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    last: Option<u32>,
    /// Also points that are older than what their VM has there.
    #[arg(long)]
    all: bool,
    /// Copy pins too.
    #[arg(long)]
    pins: bool,
    /// Most bytes in a second, such as 50M or 400KiB/s; on the average, a pack (16 MiB) at a time.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    limit: Option<ByteCount>,
    /// Say which points would be copied and about how many bytes that is, and write nothing.
    #[arg(long)]
    dry_run: bool,
}

/// A rate as in job files, or with a single letter as other programs take it.
fn rate(text: &str) -> std::result::Result<ByteCount, String> {
    match text.trim_end().ends_with(['k', 'K', 'M', 'G']) {
        true => spec::parse_rate(&format!("{}iB", text.trim_end().replace('k', "K"))),
        false => spec::parse_rate(text),
    }
}

/// Blocks; ends soon after `stop` turns true.
pub(super) fn run(path: &Path, args: &CopyArgs, report: &Report, stop: &dyn Fn() -> bool) -> Result<()> {
    let store = catalog::open_locked(path)?;
    let find = |name: &String| store.find_point(name).map(|stored| stored.id).map_err(store_error);
    let options = CopyOptions {
        points: args.points.iter().map(find).collect::<Result<_>>()?,
        vms: args.vm.clone(),
        last: args.last.map(|last| usize::try_from(last).unwrap_or(usize::MAX)),
        all: args.all,
        pins: args.pins,
        limit: args.limit,
    };
    let copied = copying::copy(&store, &args.to, &options, args.dry_run, report, stop)?;
    report.answer(&copied.value(), || copied.text());
    copied.verdict()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_rates_with_a_unit_of_one_letter_or_more() {
        for (text, bytes) in [
            ("50M", 50 << 20),
            ("400K", 400 << 10),
            ("64k", 64 << 10),
            ("1 GiB/s", 1 << 30),
            ("2MB", 2_000_000),
        ] {
            assert_eq!(rate(text), Ok(ByteCount::new(bytes)), "{text}");
        }
        for text in ["50", "M", "1K", "", "50 M M"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
