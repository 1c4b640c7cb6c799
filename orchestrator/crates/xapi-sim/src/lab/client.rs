//! A small blocking client of the control port, for the command line and for tests.

use crate::Error;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Hashing a large disk or waiting for a guest's end takes a while; longer than this is a hang.
const TIMEOUT: Duration = Duration::from_secs(600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Talks to one control port.
#[derive(Clone, Debug)]
pub struct LabClient {
    port: u16,
}

impl LabClient {
    /// A client of the control port on loopback.
    pub fn new(port: u16) -> Self {
        Self { port }
    }

    /// A request whose answer is JSON.
    pub fn json(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Error> {
        let sent = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let answer = self.bytes(method, path, &sent)?;
        serde_json::from_slice(&answer)
            .map_err(|e| self.wrong(method, path, format!("the answer is not JSON: {e}")))
    }

    /// A request whose answer is one JSON value per line.
    pub fn lines(&self, path: &str) -> Result<Vec<Value>, Error> {
        let answer = self.bytes("GET", path, &[])?;
        let parse = |line: &[u8]| {
            serde_json::from_slice(line)
                .map_err(|e| self.wrong("GET", path, format!("the answer is not JSON: {e}")))
        };
        answer.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(parse).collect()
    }

    /// A request with any body and any answer.
    pub fn bytes(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, Error> {
        let (status, answer) =
            self.exchange(method, path, body).map_err(|e| self.wrong(method, path, e.to_string()))?;
        if status != 200 {
            return Err(self.wrong(
                method,
                path,
                format!("HTTP {status}: {}", String::from_utf8_lossy(&answer)),
            ));
        }
        Ok(answer)
    }

    fn wrong(&self, method: &str, path: &str, detail: String) -> Error {
        Error::Control { request: format!("{method} http://127.0.0.1:{}{path}", self.port), detail }
    }

    fn exchange(&self, method: &str, path: &str, body: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = TcpStream::connect_timeout(&([127, 0, 0, 1], self.port).into(), CONNECT_TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let malformed = || std::io::Error::new(std::io::ErrorKind::InvalidData, "malformed answer");
        let status = line.split_whitespace().nth(1).and_then(|s| s.parse().ok()).ok_or_else(malformed)?;
        while line.trim_end() != "" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Err(malformed());
            }
        }
        let mut answer = Vec::new();
        reader.read_to_end(&mut answer)?;
        Ok((status, answer))
    }
}
