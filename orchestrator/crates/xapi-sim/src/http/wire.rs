//! Reading requests and writing answers.

use std::io::{Error, ErrorKind, Read, Result};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Request line and headers together.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How much of an unread request is taken in before closing, so that the peer sees the answer and not a reset.
const DRAIN_BYTES: u64 = 4 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Any connection.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A connection with a buffer for reading.
pub(crate) type Stream = BufReader<Box<dyn Io>>;

/// The head of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    /// Path and query as they came.
    pub(crate) target: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) keep_alive: bool,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A parameter of the query alone.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A parameter: from the cookie first, then from the query.
    pub(crate) fn param(&self, name: &str) -> Option<String> {
        let cookies = self.header("cookie").unwrap_or_default();
        let in_cookie = cookies.split(';').find_map(|pair| {
            let (key, value) = pair.trim().split_once('=')?;
            (key == name).then(|| decode_percent(value))
        });
        in_cookie.or_else(|| self.query(name).map(str::to_owned))
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.param(name).is_some_and(|v| v == "true" || v == "1")
    }

    pub(crate) fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|v| v.to_lowercase().contains("chunked"))
    }

    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }
}

/// Reads a request head; `None` when the peer has closed.
pub(crate) async fn read_head(stream: &mut Stream) -> Result<Option<Head>> {
    let mut bytes = Vec::new();
    loop {
        let mut limited = (&mut *stream).take((MAX_HEAD_BYTES - bytes.len()) as u64);
        let count = limited.read_until(b'\n', &mut bytes).await?;
        if count == 0 && bytes.is_empty() {
            return Ok(None);
        }
        if count == 0 || bytes.len() >= MAX_HEAD_BYTES {
            return Err(Error::new(ErrorKind::InvalidData, "the request head is cut short or too long"));
        }
        if bytes.ends_with(b"\r\n\r\n") || bytes.ends_with(b"\n\n") {
            break;
        }
    }
    let text =
        String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidData, "the head is not UTF-8"))?;
    let head =
        parse_head(&text).ok_or_else(|| Error::new(ErrorKind::InvalidData, "malformed request head"))?;
    if head.header("expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue")) {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        stream.flush().await?;
    }
    Ok(Some(head))
}

fn parse_head(text: &str) -> Option<Head> {
    let mut lines = text.lines();
    let mut request = lines.next()?.split_whitespace();
    let (method, target, version) = (request.next()?, request.next()?, request.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: Vec<(String, String)> = lines
        .take_while(|l| !l.is_empty())
        .map(|line| line.split_once(':').map(|(n, v)| (n.trim().to_lowercase(), v.trim().to_owned())))
        .collect::<Option<_>>()?;
    let connection = headers.iter().find(|(n, _)| n == "connection").map(|(_, v)| v.to_lowercase());
    let keep_alive = match connection.as_deref() {
        Some(value) => !value.contains("close") && (version != "HTTP/1.0" || value.contains("keep-alive")),
        None => version != "HTTP/1.0",
    };
    Some(Head {
        method: method.to_owned(),
        path: decode_percent(path),
        query: decode_query(query),
        target: target.to_owned(),
        headers,
        keep_alive,
    })
}

fn decode_query(query: &str) -> Vec<(String, String)> {
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decode_percent(name), decode_percent(value))
    };
    query.split('&').filter(|p| !p.is_empty()).map(pair).collect()
}

fn decode_percent(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex = bytes.get(index + 1..index + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[index], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                index += 3;
            }
            (byte, _) => {
                out.push(byte);
                index += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The words behind a status code.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        302 => "Found",
        400 => "Bad Request",
        401 => "Unauthorised",
        403 => "Forbidden",
        404 => "Not Found",
        411 => "Length Required",
        413 => "Request entity too large",
        _ => "Internal Server Error",
    }
}

/// Writes a whole answer.
pub(crate) async fn respond(
    stream: &mut Stream,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
    keep_alive: bool,
) -> Result<()> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut head = format!(
        "HTTP/1.1 {status} {}\r\nconnection: {connection}\r\ncontent-length: {}\r\n\
         cache-control: no-cache, no-store\r\n",
        reason(status),
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    stream.flush().await
}

/// Writes the head of an answer whose body ends with the connection.
pub(crate) async fn respond_open(stream: &mut Stream, headers: &[(&str, &str)]) -> Result<()> {
    let mut head =
        String::from("HTTP/1.1 200 OK\r\nconnection: close\r\ncache-control: no-cache, no-store\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await
}

/// An error page as the servers write them.
pub(crate) fn page(status: u16, text: &str) -> Vec<u8> {
    let title = reason(status);
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!("<html><body><h1>HTTP {status} {title}</h1>{text}</body></html>").into_bytes()
}

/// Ends a connection so that the peer gets all of the answer: what it still sends is taken in for a moment.
pub(crate) async fn close(mut stream: Stream) {
    // The peer may be gone already; there is nobody left to tell.
    let _ = stream.shutdown().await;
    let mut rest = stream.take(DRAIN_BYTES);
    let _ = timeout(DRAIN_TIME, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
}

/// Answers nothing until the peer has closed; what it still sends is thrown away.
pub(crate) async fn hold(mut stream: Stream) {
    // However it ends, the peer is gone.
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

/// A request body for code that reads from a blocking thread.
pub(crate) struct BlockingBody {
    stream: Stream,
    handle: Handle,
    left: u64,
}

impl BlockingBody {
    /// Must be made inside the runtime and read outside of it.
    pub(crate) fn new(stream: Stream, length: u64) -> Self {
        Self { stream, handle: Handle::current(), left: length }
    }

    pub(crate) fn into_stream(self) -> Stream {
        self.stream
    }
}

impl Read for BlockingBody {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.handle.block_on(self.stream.read(&mut buffer[..wanted]))?;
        self.left -= count as u64;
        Ok(count)
    }
}

/// An answer's body for code that writes from a blocking thread.
pub(crate) struct BlockingWriter {
    stream: Stream,
    handle: Handle,
    /// Bytes after which the connection is cut, where a fault wants that.
    left: Option<u64>,
}

impl BlockingWriter {
    /// Must be made inside the runtime and written to outside of it.
    pub(crate) fn new(stream: Stream, cut_after: Option<u64>) -> Self {
        Self { stream, handle: Handle::current(), left: cut_after }
    }

    pub(crate) fn into_stream(self) -> Stream {
        self.stream
    }
}

impl std::io::Write for BlockingWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = match self.left {
            Some(0) => return Err(Error::new(ErrorKind::ConnectionAborted, "cut by a planned fault")),
            Some(left) => usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()),
            None => bytes.len(),
        };
        let written = self.handle.block_on(self.stream.write(&bytes[..count]))?;
        self.left = self.left.map(|left| left - written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> Result<()> {
        self.handle.block_on(self.stream.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_with_query_and_cookies() {
        let head = parse_head(
            "PUT /import?sr_id=OpaqueRef%3Aa&force=true HTTP/1.1\r\nHost: x\r\nCookie: session_id=OpaqueRef:s;task_id=t\r\n\
             Content-Length: 12\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
        assert_eq!((head.method.as_str(), head.path.as_str()), ("PUT", "/import"));
        assert_eq!(head.param("sr_id").as_deref(), Some("OpaqueRef:a"));
        assert_eq!(head.param("session_id").as_deref(), Some("OpaqueRef:s"));
        assert!(head.flag("force") && !head.keep_alive);
        assert_eq!(head.content_length(), Some(12));
        assert!(parse_head("nonsense\r\n\r\n").is_none());
    }
}
