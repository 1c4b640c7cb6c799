//! The HTTP handlers that carry contents: `/import`, `/import_raw_vdi`, `/export_raw_vdi`.
//!
//! A host answers 200 before it has looked at a body, so the outcome is the task's, never the status. A host
//! that cannot see the storage answers 302 at once; the body is held back for a moment to notice that before
//! megabytes are on their way to the wrong host. Bodies have a length: hosts refuse chunked ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reqwest::{Body, Method, Response, Url};
use tokio::time::timeout;

use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::http::{Http, redirect_of};
use crate::observer::Call;
use crate::record::{Ref, expect};
use crate::records::{Sr, Task, TaskStatus, Vdi, Vm};
use crate::upload::{StopOnDrop, Upload};
use crate::value::Value;
use crate::vhd::{Progress, VhdHead, parse};

/// Most redirects that are followed: from the master to a host with the storage it takes one.
const REDIRECT_LIMIT: usize = 3;

/// Most that is read of an answer to an upload; only its first bytes matter.
const ANSWER_LIMIT: usize = 1 << 20;

/// After a connection broke, the task may still tell why within this time.
const REASON_WAIT: Duration = Duration::from_secs(10);

impl Client {
    /// Imports an XVA into a storage repository, the pool's default one if none is given, and gives the VMs
    /// it made. `progress` gets the number of bytes sent. If the import fails the pool removes what it made.
    pub async fn import_xva(
        &self,
        upload: Upload,
        sr: Option<&Ref<Sr>>,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<Vec<Ref<Vm>>> {
        let query: Vec<(&str, &str)> = sr.map(|sr| ("sr_id", sr.as_str())).into_iter().collect();
        let result = self.upload("/import", &query, upload, Arc::new(progress)).await?;
        expect("/import", &result)
    }

    /// Writes a raw image into an existing VDI of the same size.
    pub async fn import_raw_vdi(
        &self,
        upload: Upload,
        vdi: &Ref<Vdi>,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<()> {
        let query = [("vdi", vdi.as_str()), ("format", "raw")];
        self.upload("/import_raw_vdi", &query, upload, Arc::new(progress)).await.map(drop)
    }

    /// Which blocks a VHD export would hold; with `base` only those that may differ from it. Both are
    /// snapshots that still have their data. The export is cut off after its head, so its disks may stay in
    /// use for some seconds.
    pub async fn export_vdi_vhd_head(&self, vdi: &Ref<Vdi>, base: Option<&Ref<Vdi>>) -> Result<VhdHead> {
        const PATH: &str = "/export_raw_vdi";
        let mut query = vec![("vdi", vdi.as_str()), ("format", "vhd")];
        query.extend(base.map(|base| ("base", base.as_str())));
        let params = [Value::from(vdi.as_str()), Value::from(base.map_or("", Ref::as_str))];
        let call = Call { method: "GET /export_raw_vdi", params: &params, mutating: false };
        let mut head = None;
        let work = async {
            let task = self.task_create("read the head of a VHD export", "").await?;
            let outcome = self.download_head(PATH, &query, &task).await;
            let outcome = match outcome {
                Ok(found) => {
                    // The host notices the end of the connection; its task then fails, as it must.
                    let _ = self.wait_task(&task, REASON_WAIT).await;
                    Ok(found)
                }
                Err(error) => match self.verdict(&task, &error).await {
                    Some(Err(reason)) => Err(reason.with_method(PATH)),
                    _ => Err(error),
                },
            };
            self.leave(&task, outcome.as_ref().err()).await;
            head = Some(outcome?);
            Ok(Value::Nil)
        };
        self.observed(&call, work).await?;
        Ok(head.expect("a download that succeeds gives a head"))
    }

    /// Reads a disk from its first to its last byte; `take` gets it piece by piece.
    pub async fn export_vdi_raw(&self, vdi: &Ref<Vdi>, mut take: impl FnMut(&[u8])) -> Result<()> {
        const PATH: &str = "/export_raw_vdi";
        let query = [("vdi", vdi.as_str()), ("format", "raw")];
        let params = [Value::from(vdi.as_str())];
        let call = Call { method: "GET /export_raw_vdi", params: &params, mutating: false };
        let work = async {
            let task = self.task_create("read a disk", "").await?;
            let outcome = match self.download(PATH, &query, &task, &mut take).await {
                Ok(()) => self.wait_task(&task, self.timeouts().operation).await,
                Err(error) => match self.verdict(&task, &error).await {
                    Some(Err(reason)) => Err(reason),
                    _ => Err(error),
                },
            };
            let outcome = outcome.map_err(|error| error.with_method(PATH));
            self.leave(&task, outcome.as_ref().err()).await;
            outcome
        };
        self.observed(&call, work).await.map(drop)
    }

    async fn download(
        &self,
        path: &str,
        query: &[(&str, &str)],
        task: &Ref<Task>,
        take: &mut impl FnMut(&[u8]),
    ) -> Result<()> {
        let (http, mut response, _stop) = self.request(path, Method::GET, query, task, |_| Ok(None)).await?;
        if !response.status().is_success() {
            let answer = http.read_up_to(path, &mut response, ANSWER_LIMIT).await?;
            return refused(path, response.status().as_u16(), &answer);
        }
        loop {
            let chunk = timeout(self.timeouts().stall, response.chunk()).await;
            let chunk = chunk.map_err(|_| Error::new(Kind::Timeout, path, "the pool sends nothing"))?;
            match chunk.map_err(|error| http.failed(path, error))? {
                Some(chunk) => take(&chunk),
                None => return Ok(()),
            }
        }
    }

    async fn upload(
        &self,
        path: &str,
        query: &[(&str, &str)],
        upload: Upload,
        progress: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Value> {
        let method = format!("PUT {path}");
        let params: Vec<Value> = query.iter().map(|(_, value)| Value::from(*value)).collect();
        let call = Call { method: &method, params: &params, mutating: true };
        self.observed(&call, async {
            let task = self.task_create(path.trim_start_matches('/'), "").await?;
            let outcome = match self.send(path, query, &upload, &progress, &task).await {
                Ok(()) => self.wait_task(&task, self.timeouts().operation).await,
                Err(error) => self.verdict(&task, &error).await.unwrap_or(Err(error)),
            };
            let outcome = outcome.map_err(|error| error.with_method(path));
            self.leave(&task, outcome.as_ref().err()).await;
            outcome
        })
        .await
    }

    /// Sends the body and reads the answer, redirects included.
    async fn send(
        &self,
        path: &str,
        query: &[(&str, &str)],
        upload: &Upload,
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
        task: &Ref<Task>,
    ) -> Result<()> {
        let sent = Arc::new(AtomicU64::new(0));
        let body = |stopped: &Arc<AtomicBool>| {
            sent.store(0, Ordering::Relaxed);
            let contents = upload.contents(stopped.clone(), sent.clone(), progress.clone());
            let contents = contents.map_err(|error| {
                Error::new(Kind::Input, path, "the contents cannot be opened").with_source(error)
            })?;
            Ok(Some(Body::wrap(contents)))
        };
        let work = async {
            let (http, mut response, _stop) = self.request(path, Method::PUT, query, task, body).await?;
            let status = response.status();
            // The host closes the connection when it is done with the body.
            let answer = http.read_up_to(path, &mut response, ANSWER_LIMIT).await?;
            refused(path, status.as_u16(), &answer)
        };
        let mut work = std::pin::pin!(work);
        let mut before = 0;
        loop {
            if let Ok(done) = timeout(self.timeouts().stall, &mut work).await {
                return done;
            }
            let now = sent.load(Ordering::Relaxed);
            if now == before && now < upload.length() {
                let detail = format!("the pool took no more bytes after {now} of {}", upload.length());
                return Err(Error::new(Kind::Timeout, path, detail));
            }
            before = now;
        }
    }

    async fn download_head(&self, path: &str, query: &[(&str, &str)], task: &Ref<Task>) -> Result<VhdHead> {
        let (http, mut response, _stop) = self.request(path, Method::GET, query, task, |_| Ok(None)).await?;
        let mut bytes = Vec::new();
        let bad =
            |why: String| Error::new(Kind::Protocol, path, format!("the pool sends no usable VHD: {why}"));
        if !response.status().is_success() {
            let answer = http.read_up_to(path, &mut response, ANSWER_LIMIT).await?;
            return refused(path, response.status().as_u16(), &answer)
                .map(|()| unreachable!("no success status"));
        }
        loop {
            // The parser asks for a bounded number of bytes.
            let need = match parse(&bytes) {
                Ok(Progress::Done(head)) => return Ok(head),
                Ok(Progress::Need(need)) => need,
                Err(why) => {
                    refused(path, 200, &bytes)?;
                    return Err(bad(why));
                }
            };
            while bytes.len() < need {
                let chunk = timeout(self.timeouts().stall, response.chunk()).await;
                let chunk = chunk.map_err(|_| Error::new(Kind::Timeout, path, "the pool sends nothing"))?;
                match chunk.map_err(|error| http.failed(path, error))? {
                    Some(chunk) => bytes.extend_from_slice(&chunk),
                    None => {
                        refused(path, 200, &bytes)?;
                        return Err(bad(format!("it ends after {} bytes", bytes.len())));
                    }
                }
            }
        }
    }

    /// Sends a request to the master and wherever it leads.
    async fn request(
        &self,
        path: &str,
        method: Method,
        query: &[(&str, &str)],
        task: &Ref<Task>,
        body: impl Fn(&Arc<AtomicBool>) -> Result<Option<Body>>,
    ) -> Result<(Http, Response, StopOnDrop)> {
        let link = self.link().await?;
        // A connection of its own: one from the pool may be about to close, and a body cannot be sent twice.
        let mut http = self.fresh(link.http.endpoint().clone())?;
        let mut all = query.to_vec();
        all.push(("task_id", task.as_str()));
        let mut url: Url = http.url(path, &all)?;
        for _ in 0..=REDIRECT_LIMIT {
            let timeout = self.timeouts().transfer;
            let stop = StopOnDrop(Arc::default());
            let body = body(&stop.0)?;
            let response = http.handler(path, method.clone(), url, &link.session, body, timeout).await;
            let response = response.map_err(|error| error.without(&link.session))?;
            let (endpoint, next) = match redirect_of(&response) {
                None => return Ok((http, response, stop)),
                Some(Ok(found)) => found,
                Some(Err(location)) => {
                    let detail = format!("{} leads to {location:?}, which is no address", http.endpoint());
                    return Err(Error::new(Kind::Protocol, path, detail));
                }
            };
            http = self.fresh(endpoint)?;
            url = next;
        }
        Err(Error::new(Kind::Protocol, path, "the hosts of the pool lead to each other in a circle"))
    }

    fn fresh(&self, endpoint: Endpoint) -> Result<Http> {
        let pin = self.options().pins.pin(&endpoint.address());
        Http::new(endpoint, pin, self.timeouts().connect)
    }

    /// How a transfer ended whose connection failed: the task knows better, if it says so soon.
    async fn verdict(&self, task: &Ref<Task>, error: &Error) -> Option<Result<Value>> {
        if matches!(error.kind(), Kind::Input | Kind::TlsUntrusted { .. } | Kind::TlsChanged { .. }) {
            return None;
        }
        match self.wait_task(task, REASON_WAIT).await {
            Err(reason) if reason.code().is_empty() => None,
            ended => Some(ended),
        }
    }

    /// Leaves no task behind. One that no handler took up would be pending for ever: nobody but us ends it.
    async fn leave(&self, task: &Ref<Task>, error: Option<&Error>) {
        let pending = error.is_some_and(|error| error.code().is_empty());
        let forsaken = pending && error.is_some_and(|error| *error.kind() != Kind::Timeout);
        // Hosts before XenServer 7.2 cannot end it and keep it until they clear their list.
        let ended = forsaken && self.task_set_status(task, &TaskStatus::Cancelled).await.is_ok();
        self.retire(task, pending && !ended).await;
    }
}

/// An answer that refuses the transfer. Some hosts send an error page as the body of a 200.
fn refused(path: &str, status: u16, body: &[u8]) -> Result<()> {
    let second_page = body.starts_with(b"HTTP/");
    if status == 200 && !second_page {
        return Ok(());
    }
    let shown = if second_page { body } else { &[] };
    let line = String::from_utf8_lossy(
        shown.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default(),
    );
    let detail = match second_page {
        true => format!("the pool breaks off: {}", line.chars().take(80).collect::<String>().escape_debug()),
        false => format!("the pool answers HTTP {status}"),
    };
    let kind = match status {
        401 | 403 => Kind::Auth,
        404 => Kind::NotSupported,
        _ => Kind::Other,
    };
    Err(Error::new(kind, path, detail))
}
