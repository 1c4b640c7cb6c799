//! What a request asks for. Pure: a request is understood, or refused, before anything is touched.

use super::denied::Denied;
use super::protocol::{ABOUT, LISTS, MAX_OBJECT, OBJECTS, ROOT, SIZES};
use crate::backend::MAX_KEY;
use hyper::header::{CONTENT_LENGTH, HeaderName, IF_NONE_MATCH, RANGE};
use hyper::{HeaderMap, Method};

/// A request that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Who am I?
    About,
    /// The objects below a prefix, which is empty or ends in a slash.
    List {
        /// The prefix.
        prefix: String,
    },
    /// An object's size.
    Size {
        /// Its key.
        key: String,
    },
    /// An object, or a part of it.
    Get {
        /// Its key.
        key: String,
        /// First and last byte; the last may lie past the end.
        range: Option<(u64, u64)>,
    },
    /// An object to be written.
    Put {
        /// Its key.
        key: String,
        /// Bytes that follow.
        size: u64,
        /// Only where there is none of its key.
        only_new: bool,
    },
    /// An object to be removed.
    Delete {
        /// Its key.
        key: String,
    },
}

impl Call {
    /// Understands the head of a request. `path` is what stands in the request's line, with everything after a `?`.
    ///
    /// # Errors
    /// Which part is not understood, or over its limit.
    pub fn decode(method: &Method, path: &str, headers: &HeaderMap) -> Result<Self, Denied> {
        let no_such = || {
            let path: String = path.chars().take(80).collect();
            Denied::new(404, "no-such-call", format!("there is no call {method} {path}"))
        };
        let rest = path.strip_prefix(ROOT).ok_or_else(no_such)?;
        let wants_get = || match *method {
            Method::GET => Ok(()),
            _ => Err(Denied::new(405, "bad-request", "this call is made with GET")),
        };
        if rest == ABOUT {
            wants_get()?;
            return Ok(Self::About);
        }
        if let Some(prefix) = rest.strip_prefix(LISTS) {
            wants_get()?;
            return Ok(Self::List { prefix: checked_prefix(prefix)? });
        }
        if let Some(key) = rest.strip_prefix(SIZES) {
            wants_get()?;
            return Ok(Self::Size { key: checked_key(key)? });
        }
        let key = checked_key(rest.strip_prefix(OBJECTS).ok_or_else(no_such)?)?;
        match *method {
            Method::GET => Ok(Self::Get { key, range: range(headers)? }),
            Method::DELETE => Ok(Self::Delete { key }),
            Method::PUT => {
                let size = size(headers)?;
                let only_new = match single(headers, &IF_NONE_MATCH)? {
                    None => false,
                    Some("*") => true,
                    Some(_) => return Err(Denied::bad("If-None-Match is only understood as *")),
                };
                Ok(Self::Put { key, size, only_new })
            }
            _ => Err(Denied::new(405, "bad-request", "objects are called for with GET, PUT and DELETE")),
        }
    }
}

/// A key as stores have it. What is encoded, climbs, or has upper case is none.
fn checked_key(key: &str) -> Result<String, Denied> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let part_fits = |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain);
    if key.len() <= MAX_KEY && key.split('/').all(part_fits) {
        return Ok(key.to_owned());
    }
    let shown: String = key.chars().take(80).collect();
    Err(Denied::new(400, "bad-key", format!("'{shown}' is no key of a store")))
}

fn checked_prefix(prefix: &str) -> Result<String, Denied> {
    match prefix.strip_suffix('/') {
        None if prefix.is_empty() => Ok(String::new()),
        None => Err(Denied::new(400, "bad-key", "a prefix is empty or ends in a slash")),
        Some(key) => checked_key(key).map(|key| format!("{key}/")),
    }
}

/// A header that stands there at most once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Denied> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            value.to_str().map(Some).map_err(|_| Denied::bad(format!("the header {name} is no text")))
        }
        (Some(_), Some(_)) => Err(Denied::bad(format!("the header {name} stands there twice"))),
    }
}

/// Decimal digits and nothing else: `parse` takes a plus sign too.
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

fn range(headers: &HeaderMap) -> Result<Option<(u64, u64)>, Denied> {
    let Some(text) = single(headers, &RANGE)? else { return Ok(None) };
    let numbers = text.strip_prefix("bytes=").and_then(|text| text.split_once('-'));
    let bounds = numbers.and_then(|(first, last)| Some((number(first)?, number(last)?)));
    match bounds.filter(|(first, last)| first <= last) {
        None => Err(Denied::bad("a Range is only understood as bytes=FIRST-LAST")),
        Some((first, last)) if last - first >= MAX_OBJECT => {
            Err(Denied::bad(format!("a Range of more than {MAX_OBJECT} bytes is not given")))
        }
        Some(bounds) => Ok(Some(bounds)),
    }
}

/// The length that a body announces: without one it could not be weighed before it is read.
fn size(headers: &HeaderMap) -> Result<u64, Denied> {
    let Some(text) = single(headers, &CONTENT_LENGTH)? else {
        return Err(Denied::new(411, "bad-request", "an object needs a Content-Length"));
    };
    match number(text) {
        None => Err(Denied::bad("the Content-Length is no number")),
        Some(size) if size > MAX_OBJECT => Err(Denied::too_large(size, MAX_OBJECT)),
        Some(size) => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(method: &str, path: &str, headers: &[(&'static str, &str)]) -> Result<Call, u16> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a value"));
        }
        Call::decode(&method, path, &map).map_err(|denied| denied.status)
    }

    #[test]
    fn every_call_is_understood() {
        let key = || "packs/ab/cd".to_owned();
        assert_eq!(decode("GET", "/abd/1/about", &[]), Ok(Call::About));
        assert_eq!(decode("GET", "/abd/1/lists/", &[]), Ok(Call::List { prefix: String::new() }));
        assert_eq!(decode("GET", "/abd/1/lists/packs/", &[]), Ok(Call::List { prefix: "packs/".into() }));
        assert_eq!(decode("GET", "/abd/1/sizes/packs/ab/cd", &[]), Ok(Call::Size { key: key() }));
        let whole = Call::Get { key: key(), range: None };
        assert_eq!(decode("GET", "/abd/1/objects/packs/ab/cd", &[]), Ok(whole));
        let part = Call::Get { key: key(), range: Some((7, 7)) };
        assert_eq!(decode("GET", "/abd/1/objects/packs/ab/cd", &[("range", "bytes=7-7")]), Ok(part));
        let put = Call::Put { key: key(), size: 9, only_new: true };
        let headers = [("content-length", "9"), ("if-none-match", "*")];
        assert_eq!(decode("PUT", "/abd/1/objects/packs/ab/cd", &headers), Ok(put));
        assert_eq!(decode("DELETE", "/abd/1/objects/packs/ab/cd", &[]), Ok(Call::Delete { key: key() }));
    }

    #[test]
    fn tricks_with_paths_are_refused() {
        let long = "a/".repeat(64) + "a";
        let bad = [
            "",
            "/",
            "..",
            "../config.json",
            "packs/../config.json",
            "packs//x",
            "/config.json",
            "packs/",
            "./x",
            ".hidden",
            "points/.x",
            "points/A.json",
            "points/%2e%2e",
            "points/a%2fb",
            "a\\b",
            "a b",
            "a?b",
            "a#b",
            "a\0b",
            "packs/ä",
            "config.json?x",
            &long,
        ];
        for key in bad {
            for method in ["GET", "PUT", "DELETE"] {
                let outcome = decode(method, &format!("/abd/1/objects/{key}"), &[("content-length", "0")]);
                assert_eq!(outcome, Err(400), "{method} {key:?}");
            }
            assert_eq!(decode("GET", &format!("/abd/1/sizes/{key}"), &[]), Err(400), "{key:?}");
        }
        for prefix in ["packs", "/", "../", "packs//", "packs/../", "P/"] {
            assert_eq!(decode("GET", &format!("/abd/1/lists/{prefix}"), &[]), Err(400), "{prefix}");
        }
        for path in
            ["/", "", "/abd/2/about", "/abd/1", "/abd/1/gc", "about", "/abd/1/aboutx", "//abd/1/about"]
        {
            assert_eq!(decode("GET", path, &[]), Err(404), "{path}");
        }
    }

    #[test]
    fn headers_that_are_not_exact_are_refused() {
        let path = "/abd/1/objects/a";
        for range in
            ["bytes=1", "bytes=-5", "bytes=5-", "bytes=2-1", "bytes=0-1,3-4", "items=0-1", "bytes=+1-2"]
        {
            assert_eq!(decode("GET", path, &[("range", range)]), Err(400), "{range}");
        }
        assert_eq!(decode("GET", path, &[("range", "bytes=0-99999999999")]), Err(400));
        assert_eq!(decode("GET", path, &[("range", "bytes=0-1"), ("range", "bytes=0-1")]), Err(400));
        assert_eq!(decode("PUT", path, &[]), Err(411));
        for length in ["-1", "x", "99999999999999999999"] {
            assert_eq!(decode("PUT", path, &[("content-length", length)]), Err(400), "{length}");
        }
        assert_eq!(decode("PUT", path, &[("content-length", "67108865")]), Err(413));
        assert_eq!(decode("PUT", path, &[("content-length", "1"), ("if-none-match", "x")]), Err(400));
        for method in ["POST", "HEAD", "PATCH", "OPTIONS", "put"] {
            assert_eq!(decode(method, path, &[("content-length", "1")]), Err(405), "{method}");
        }
        assert_eq!(decode("PUT", "/abd/1/about", &[]), Err(405));
        assert_eq!(decode("DELETE", "/abd/1/lists/packs/", &[]), Err(405));
    }
}
