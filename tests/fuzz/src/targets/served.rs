//! The heads of requests to `abd serve`, behind what hyper makes of their bytes.

use ads::Call;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};

/// Largest object (SERVE.md).
const MAX_OBJECT: u64 = 64 << 20;

/// A request as `METHOD PATH`, and a header in each further line. What is understood stays within its bounds; what is not is
/// refused with a status of a client's mistake.
pub fn served_requests(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let Some(at) = first.iter().position(|byte| *byte == b' ') else { return };
    let (method, path) = (&first[..at], &first[at + 1..]);
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method), Uri::try_from(path)) else { return };
    let mut headers = HeaderMap::new();
    for line in lines.take(32) {
        let Some(at) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..at]);
        let value = HeaderValue::from_bytes(line[at + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    match Call::decode(&method, path, &headers) {
        Ok(call) => check(&call),
        Err(denied) => {
            assert!((400..500).contains(&denied.status) && !denied.message.is_empty(), "{denied:?}")
        }
    }
}

fn check(call: &Call) {
    match call {
        Call::About => {}
        Call::List { prefix } => {
            if let Some(key) = prefix.strip_suffix('/') {
                check_key(key);
            } else {
                assert!(prefix.is_empty());
            }
        }
        Call::Size { key } | Call::Delete { key } => check_key(key),
        Call::Get { key, range } => {
            check_key(key);
            if let Some((first, last)) = range {
                assert!(first <= last && last - first < MAX_OBJECT);
            }
        }
        Call::Put { key, size, .. } => {
            check_key(key);
            assert!(*size <= MAX_OBJECT);
        }
    }
}

/// A key stays below the store, wherever it is joined to.
fn check_key(key: &str) {
    assert!(!key.is_empty() && key.len() <= ads::MAX_KEY);
    assert!(
        key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-./".contains(&byte))
    );
    assert!(key.split('/').all(|part| !part.is_empty() && !part.starts_with('.')));
    let place = std::path::Path::new("/store").join(key);
    assert!(place.starts_with("/store") && place.components().count() == 2 + key.matches('/').count() + 1);
}
