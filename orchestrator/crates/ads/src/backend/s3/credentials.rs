//! Credentials from the usual places, in the usual order: the environment, the shared credentials file, and what a
//! machine of a cloud is given by its surroundings (which `object_store` asks).

use std::io;
use std::path::{Path, PathBuf};

/// Largest credentials file that is read.
const MAX_FILE: u64 = 1 << 20;

/// A key and its secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) id: String,
    pub(super) secret: String,
    pub(super) token: Option<String>,
}

/// Where credentials come from.
pub(super) enum Source {
    /// The environment, or the surroundings: `object_store` finds them.
    Ambient,
    /// The shared credentials file.
    File(Keys),
}

/// Looks for credentials. `file` and `profile` are what the address names; with one of them only a file will do.
pub(super) fn find(
    file: Option<&Path>,
    profile: Option<&str>,
    env: &dyn Fn(&str) -> Option<String>,
) -> io::Result<Source> {
    let has = |name: &str| env(name).is_some_and(|value| !value.is_empty());
    if profile.is_none() && file.is_none() {
        let given = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE"];
        let container = ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];
        if given.iter().chain(&container).any(|name| has(name)) {
            return Ok(Source::Ambient);
        }
    }
    let named = profile.map(ToOwned::to_owned).or_else(|| env("AWS_PROFILE"));
    let path = file
        .map(Path::to_owned)
        .or_else(|| env("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from))
        .or_else(|| env("HOME").map(|home| Path::new(&home).join(".aws/credentials")));
    let section = named.as_deref().unwrap_or("default");
    if let Some(path) = &path
        && let Some(keys) = from_file(path, section)?
    {
        return Ok(Source::File(keys));
    }
    let looked = path.map(|path| path.display().to_string()).unwrap_or_else(|| "~/.aws/credentials".into());
    if named.is_some() || file.is_some() {
        let text = format!("{looked} has no keys in a section [{section}]");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    if env("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        let text = format!(
            "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write {looked}"
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(Source::Ambient)
}

fn from_file(path: &Path, section: &str) -> io::Result<Option<Keys>> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("read {}: {error}", path.display()));
    match std::fs::metadata(path) {
        Ok(about) if about.len() > MAX_FILE => Err(named(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => Ok(in_section(&std::fs::read_to_string(path).map_err(named)?, section)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(error)),
    }
}

/// The keys of one section of a credentials file.
fn in_section(text: &str, section: &str) -> Option<Keys> {
    let (mut inside, mut id, mut secret, mut token) = (false, None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let name = name.trim();
            inside =
                name == section || name.strip_prefix("profile ").is_some_and(|name| name.trim() == section);
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| inside && !line.starts_with(['#', ';']))
        else {
            continue;
        };
        let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        match name.trim() {
            "aws_access_key_id" => id = value,
            "aws_secret_access_key" => secret = value,
            "aws_session_token" => token = value,
            _ => {}
        }
    }
    Some(Keys { id: id?, secret: secret?, token })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# ours\n[default]\naws_access_key_id = AK1\naws_secret_access_key=SE=1\n\n\
                        [profile other]\naws_access_key_id=AK2\naws_secret_access_key=SE2\naws_session_token = T\n[half]\naws_access_key_id=AK3\n";

    fn describe(found: io::Result<Source>) -> String {
        match found {
            Ok(Source::Ambient) => "ambient".into(),
            Ok(Source::File(keys)) => format!("{} {} {:?}", keys.id, keys.secret, keys.token),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_environment_goes_before_the_file_and_a_named_profile_before_both() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("credentials");
        std::fs::write(&path, FILE).expect("written");
        let file = path.display().to_string();
        let look = |profile: Option<&str>, more: &[(&str, &str)]| {
            let more: Vec<(String, String)> =
                more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let env = |name: &str| match name {
                "AWS_SHARED_CREDENTIALS_FILE" => Some(file.clone()),
                _ => more.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()),
            };
            describe(find(None, profile, &env))
        };
        assert_eq!(look(None, &[]), "AK1 SE=1 None");
        assert_eq!(look(None, &[("AWS_ACCESS_KEY_ID", "x")]), "ambient");
        assert_eq!(look(None, &[("AWS_PROFILE", "other")]), "AK2 SE2 Some(\"T\")");
        assert_eq!(look(Some("other"), &[("AWS_ACCESS_KEY_ID", "x")]), "AK2 SE2 Some(\"T\")");
        let other =
            describe(find(Some(&path), None, &|name| (name == "AWS_ACCESS_KEY_ID").then(|| "x".to_owned())));
        assert_eq!(other, "AK1 SE=1 None", "a file that the address names");
        assert!(look(Some("half"), &[]).contains("no keys in a section [half]"));
    }

    #[test]
    fn without_any_the_error_says_what_to_set() {
        let nowhere = |disabled: bool| {
            describe(find(None, None, &|name| match name {
                "HOME" => Some("/nonexistent".into()),
                "AWS_EC2_METADATA_DISABLED" if disabled => Some("true".into()),
                _ => None,
            }))
        };
        assert!(nowhere(true).contains("set AWS_ACCESS_KEY_ID"), "{}", nowhere(true));
        assert_eq!(nowhere(false), "ambient", "the machine's surroundings are asked");
    }
}
