//! Calls on hosts.

use std::time::SystemTime;

use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::record::Ref;
use crate::records::Host;
use crate::value::timestamp;

impl Client {
    /// What a host's clock shows. The answer is as late as the reply took, and whole seconds.
    pub async fn host_get_servertime(&self, host: &Ref<Host>) -> Result<SystemTime> {
        const METHOD: &str = "host.get_servertime";
        let text: String = self.get(METHOD, vec![host.into()]).await?;
        let bad =
            || Error::new(Kind::Protocol, METHOD, format!("the pool answers {text:?}, which is no time"));
        timestamp(&text).ok_or_else(bad)
    }
}
