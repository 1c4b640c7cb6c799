//! The administrator of a simulated pool: calls its API and its control port behind `abd`'s back.

use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs;
use xapi_sim::{LabClient, Ports};

/// Null of the API.
pub(crate) const NULL: &str = "OpaqueRef:NULL";

/// One administrator with a session of their own, made again when the pool forgets it.
#[derive(Debug)]
pub struct Admin {
    api: LabClient,
    lab: LabClient,
    user: String,
    password: String,
    session: RefCell<Option<Value>>,
}

impl Admin {
    /// The administrator of the pool at these ports.
    pub fn new(ports: &Ports) -> Self {
        let password = fs::read_to_string(&ports.password_file).expect("the simulator's own file");
        Self {
            api: LabClient::new(ports.http),
            lab: LabClient::new(ports.lab),
            user: ports.user.clone(),
            password: password.trim_end_matches('\n').to_owned(),
            session: RefCell::default(),
        }
    }

    /// A call that must succeed; a reference is the bare text.
    #[track_caller]
    pub fn call(&self, method: &str, parameters: &[Value]) -> Value {
        self.attempt(method, parameters)
            .unwrap_or_else(|refusal| panic!("{method} {parameters:?}: {refusal}"))
    }

    /// A call that may be refused; the refusal begins with the API's code.
    ///
    /// # Errors
    /// What the API refuses.
    pub fn attempt(&self, method: &str, parameters: &[Value]) -> Result<Value, String> {
        let known = self.session.borrow().clone();
        let session = known.clone().unwrap_or_else(|| self.log_in());
        let all: Vec<Value> = [session].into_iter().chain(parameters.iter().cloned()).collect();
        match self.raw(method, &all) {
            Err(refusal) if known.is_some() && refusal.starts_with("SESSION_INVALID") => {
                self.session.take();
                self.attempt(method, parameters)
            }
            result => result,
        }
    }

    /// A call about one object that must succeed and answers a text.
    #[track_caller]
    pub fn text(&self, method: &str, about: &str) -> String {
        string(&self.call(method, &[json!(about)]))
    }

    /// A request to the control port that answers JSON.
    #[track_caller]
    pub fn lab(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.lab.json(method, path, body).expect("the control port answers")
    }

    /// A request to the control port that may be refused.
    ///
    /// # Errors
    /// What the simulator says.
    pub fn try_lab(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, xapi_sim::Error> {
        self.lab.json(method, path, body)
    }

    /// Writes to a disk as its VM would.
    #[track_caller]
    pub fn write(&self, vdi: &str, offset: u64, bytes: &[u8]) {
        self.lab.bytes("PUT", &format!("/lab/vdi/{vdi}?offset={offset}"), bytes).expect("written");
    }

    /// The entries of the simulator's log from this number on.
    #[track_caller]
    pub fn log_since(&self, sequence: u64) -> Vec<Value> {
        self.lab.lines(&format!("/lab/log?since={sequence}")).expect("the log")
    }

    fn log_in(&self) -> Value {
        let parameters = [json!(self.user), json!(self.password)];
        let session =
            self.raw("session.login_with_password", &parameters).expect("the simulator's own password");
        self.session.replace(Some(session.clone()));
        session
    }

    fn raw(&self, method: &str, parameters: &[Value]) -> Result<Value, String> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters});
        let answer = self.api.json("POST", "/jsonrpc", Some(&body)).expect("the API answers");
        match &answer["error"] {
            Value::Null => Ok(answer["result"].clone()),
            // Releases before 7.3 give the bare list.
            Value::Array(list) => Err(words(list)),
            error => {
                let code = [error["message"].clone()];
                let rest = error["data"].as_array().cloned().unwrap_or_default();
                Err(words(&[&code[..], &rest].concat()))
            }
        }
    }
}

fn words(list: &[Value]) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    list.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}
