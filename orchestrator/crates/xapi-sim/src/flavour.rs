//! Which product and release the simulator pretends to be: its version strings and the calls it knows.

use crate::{Error, rpc::value::Value};
use std::{fmt, str::FromStr};

/// An API version, ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// Always 2 for the releases known here.
    pub major: u32,
    /// Grows with every release.
    pub minor: u32,
}

impl ApiVersion {
    /// `2.<minor>`.
    pub const fn v2(minor: u32) -> Self {
        Self { major: 2, minor }
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ApiVersion {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let parsed = s.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        parsed.map(|(major, minor)| Self { major, minor }).ok_or_else(|| format!("bad API version {s:?}"))
    }
}

/// One release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flavour {
    /// The name on the command line.
    pub name: &'static str,
    brand: &'static str,
    version: &'static str,
    platform_version: &'static str,
    /// The API version, which decides about calls and fields.
    pub api: ApiVersion,
    /// Whether `/jsonrpc` exists.
    pub json: bool,
}

const XS: &str = "XenServer";
const XCP: &str = "XCP-ng";

const FLAVOURS: &[Flavour] = &[
    release("xs-6.5", XS, "6.5.0", "1.9.0", 3, false),
    release("xs-7.0", XS, "7.0.0", "2.1.0", 5, true),
    release("xs-7.1", XS, "7.1.0", "2.2.0", 6, true),
    release("xs-7.2", XS, "7.2.0", "2.3.0", 7, true),
    release("xs-7.3", XS, "7.3.0", "2.4.0", 8, true),
    release("xs-7.6", XS, "7.6.0", "2.7.0", 11, true),
    release("ch-8.0", "Citrix Hypervisor", "8.0.0", "3.0.0", 12, true),
    release("ch-8.2", "Citrix Hypervisor", "8.2.0", "3.2.0", 15, true),
    release("xs-8", XS, "8.4.0", "3.4.0", 21, true),
    release("xcp-8.2", XCP, "8.2.1", "3.2.1", 15, true),
    release("xcp-8.3", XCP, "8.3.0", "3.4.0", 21, true),
];

const fn release(
    name: &'static str,
    brand: &'static str,
    version: &'static str,
    platform_version: &'static str,
    minor: u32,
    json: bool,
) -> Flavour {
    Flavour { name, brand, version, platform_version, api: ApiVersion::v2(minor), json }
}

impl Flavour {
    /// XCP-ng 8.3, the default.
    pub fn newest() -> Self {
        FLAVOURS[FLAVOURS.len() - 1]
    }

    /// Looks a release up by its command-line name.
    pub fn by_name(name: &str) -> Result<Self, Error> {
        FLAVOURS.iter().find(|f| f.name == name).copied().ok_or_else(|| Error::UnknownFlavour {
            name: name.to_owned(),
            known: FLAVOURS.iter().map(|f| f.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// Change tracking came with 7.3.
    pub(crate) fn tracks_changes(&self) -> bool {
        self.api >= ApiVersion::v2(8)
    }

    /// Whether everything is free: no feature needs a licence.
    pub(crate) fn is_free(&self) -> bool {
        self.brand == XCP
    }

    /// Quiesced snapshots are gone from 8.1 on.
    pub(crate) fn quiesces(api: ApiVersion) -> bool {
        api < ApiVersion::v2(14)
    }

    /// Version 2 errors were arrays before API 2.8.
    pub fn json2_error_array(&self) -> bool {
        self.api < ApiVersion::v2(8)
    }

    /// `host.software_version`.
    pub fn software_version(&self, hostname: &str) -> Value {
        let short = self.version.rsplit_once('.').map_or(self.version, |(head, _)| head);
        Value::text_map([
            ("product_version", self.version),
            ("product_version_text", self.version),
            ("product_version_text_short", short),
            ("platform_name", "XCP"),
            ("platform_version", self.platform_version),
            ("product_brand", self.brand),
            ("xapi", &self.api.to_string()),
            ("build_number", "simulated"),
            ("git_id", "0"),
            ("hostname", hostname),
            ("date", "2026-01-01"),
            ("xapi_build", &self.api.to_string()),
            ("xen", "4.17.5"),
            ("linux", "4.19.0+1"),
            ("xencenter_min", "2.21"),
            ("xencenter_max", "2.21"),
            ("network_backend", "openvswitch"),
            ("db_schema", "5.602"),
        ])
    }
}
