//! `s3://BUCKET[/PREFIX][?OPTION=VALUE&…]`: all there is to know about a store in object storage, but its secrets.

use crate::Error;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest prefix: with the longest key it stays far below the 1024 bytes that S3 allows.
const MAX_PREFIX: usize = 512;

/// How a bucket is named in requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// `https://endpoint/bucket/key`
    Path,
    /// `https://bucket.endpoint/key`
    Virtual,
}

/// A store in object storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Address {
    pub(super) bucket: String,
    /// Without a slash at either end; may be empty.
    pub(super) prefix: String,
    /// The server; Amazon's for the region where there is none.
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    /// Paths where an endpoint is named and nothing else is said, virtual hosts at Amazon.
    pub(super) style: Option<Style>,
    /// Certificates to trust beside those of the system.
    pub(super) ca: Option<PathBuf>,
    /// A credentials file instead of the shared one.
    pub(super) credentials: Option<PathBuf>,
    /// Section of the credentials file.
    pub(super) profile: Option<String>,
}

impl FromStr for S3Address {
    type Err = Error;

    /// What follows `s3://`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Address { text: format!("s3://{text}"), reason };
        let (place, options) = text.split_once('?').unwrap_or((text, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.trim_matches('/');
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(plain) {
            return Err(wrong(format!(
                "'{bucket}' is no bucket's name: 3 to 63 letters, digits, '-', '_', '.'"
            )));
        }
        let parts_fit = prefix.is_empty()
            || prefix
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain));
        if !parts_fit || prefix.len() > MAX_PREFIX {
            return Err(wrong(format!(
                "'{prefix}' is no prefix: letters, digits, '-', '_', '.' between slashes"
            )));
        }
        let mut address = Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: None,
            region: None,
            style: None,
            ca: None,
            credentials: None,
            profile: None,
        };
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            address.set(name, value).map_err(wrong)?;
        }
        Ok(address)
    }
}

impl S3Address {
    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        if value.is_empty() {
            return Err(format!("option '{name}' has no value"));
        }
        let again = match name {
            "endpoint" => {
                let host = value.strip_prefix("https://").or(value.strip_prefix("http://"));
                if host.is_none_or(|host| host.is_empty() || host.contains(['@', '?', '#', ' '])) {
                    return Err(format!(
                        "the endpoint '{value}' is not https://HOST[:PORT] or http://HOST[:PORT]"
                    ));
                }
                self.endpoint.replace(value.trim_end_matches('/').to_owned()).is_some()
            }
            "region" => self.region.replace(value.to_owned()).is_some(),
            "style" => {
                let style = match value {
                    "path" => Style::Path,
                    "virtual" => Style::Virtual,
                    _ => return Err(format!("the style '{value}' is not 'path' or 'virtual'")),
                };
                self.style.replace(style).is_some()
            }
            "ca" => self.ca.replace(value.into()).is_some(),
            "credentials" => self.credentials.replace(value.into()).is_some(),
            "profile" => self.profile.replace(value.to_owned()).is_some(),
            _ => {
                return Err(format!(
                    "there is no option '{name}'; there are endpoint, region, style, ca, credentials and profile"
                ));
            }
        };
        if again { Err(format!("option '{name}' stands there twice")) } else { Ok(()) }
    }

    /// The style, and the URL that requests go to where an endpoint is known.
    pub(super) fn target(&self, endpoint: Option<&str>) -> (Style, Option<String>) {
        let style = self.style.unwrap_or(if endpoint.is_some() { Style::Path } else { Style::Virtual });
        let url = endpoint.map(|endpoint| match (style, endpoint.split_once("://")) {
            (Style::Virtual, Some((scheme, host))) => format!("{scheme}://{}.{host}", self.bucket),
            _ => endpoint.to_owned(),
        });
        (style, url)
    }
}

/// Without the options.
impl fmt::Display for S3Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "s3://{}{slash}{}", self.bucket, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<S3Address, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }

    #[test]
    fn addresses_say_everything_but_secrets() {
        let text =
            "backups/pool/a?endpoint=https://minio:9000/&region=eu-1&style=virtual&ca=/etc/ca.pem&profile=p";
        let address = parse(text).expect("an address");
        assert_eq!((address.bucket.as_str(), address.prefix.as_str()), ("backups", "pool/a"));
        assert_eq!(address.to_string(), "s3://backups/pool/a");
        assert_eq!(address.endpoint.as_deref(), Some("https://minio:9000"));
        assert_eq!(
            address.target(Some("https://minio:9000")).1.as_deref(),
            Some("https://backups.minio:9000")
        );
        assert_eq!(parse("backups/").expect("an address").to_string(), "s3://backups");
        assert_eq!(parse("backups").expect("an address").target(None), (Style::Virtual, None));
        let (style, url) = parse("backups").expect("an address").target(Some("http://127.0.0.1:1"));
        assert_eq!((style, url.as_deref()), (Style::Path, Some("http://127.0.0.1:1")));
    }

    #[test]
    fn wrong_addresses_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "no bucket's name"),
            ("a", "no bucket's name"),
            ("user:secret@host/x", "no bucket's name"),
            ("bucket/a//b", "no prefix"),
            ("bucket/../b", "no prefix"),
            ("bucket/ä", "no prefix"),
            ("bucket?endpoint=minio:9000", "is not https://"),
            ("bucket?endpoint=https://user:secret@minio", "is not https://"),
            ("bucket?style=round", "'path' or 'virtual'"),
            ("bucket?speed=9", "no option 'speed'"),
            ("bucket?region", "has no value"),
            ("bucket?region=a&region=b", "twice"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
