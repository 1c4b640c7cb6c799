//! Typed calls: those of every class here, those of one class in the modules.

mod host;
mod network;
mod storage;
mod task;
mod vm;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::record::{Class, FromValue, Ref, Uuid, expect, expect_record};
use crate::records::{Host, Pool, Records, Session};
use crate::value::Value;

pub use network::VifCreate;
pub use storage::{VbdCreate, VdiCreate};
pub use vm::MemoryLimits;

impl Client {
    /// One record.
    pub async fn get_record<T: Class>(&self, reference: &Ref<T>) -> Result<T> {
        let method = format!("{}.get_record", T::NAME);
        expect_record(&method, &self.call(&method, vec![reference.into()]).await?)
    }

    /// All records of a class.
    pub async fn get_all_records<T: Class>(&self) -> Result<Records<T>> {
        let method = format!("{}.get_all_records", T::NAME);
        let reply = self.call(&method, Vec::new()).await?;
        let Value::Struct(records) = reply else {
            let detail = format!("the pool answers with {} and not with records", reply.kind_name());
            return Err(Error::new(Kind::Protocol, method, detail));
        };
        let read = |(text, record)| Ok((Ref::from_opaque(text), expect_record(&method, &record)?));
        records.into_iter().map(read).collect()
    }

    /// The object with this uuid. [`Kind::HandleInvalid`] if there is none.
    pub async fn get_by_uuid<T: Class>(&self, uuid: &Uuid) -> Result<Ref<T>> {
        self.get(&format!("{}.get_by_uuid", T::NAME), vec![uuid.into()]).await
    }

    /// The objects with this name: none, one or several.
    pub async fn get_by_name_label<T: Class>(&self, name: &str) -> Result<Vec<Ref<T>>> {
        self.get(&format!("{}.get_by_name_label", T::NAME), vec![name.into()]).await
    }

    /// Sets `name_label`.
    pub async fn set_name_label<T: Class>(&self, reference: &Ref<T>, name: &str) -> Result<()> {
        self.act(&format!("{}.set_name_label", T::NAME), vec![reference.into(), name.into()]).await
    }

    /// Sets `name_description`.
    pub async fn set_name_description<T: Class>(&self, reference: &Ref<T>, text: &str) -> Result<()> {
        self.act(&format!("{}.set_name_description", T::NAME), vec![reference.into(), text.into()]).await
    }

    /// Sets one entry of `other_config`, in place of an older value. Other writers of the same key may see
    /// it gone for a moment.
    pub async fn add_to_other_config<T: Class>(
        &self,
        reference: &Ref<T>,
        key: &str,
        value: &str,
    ) -> Result<()> {
        let method = format!("{}.add_to_other_config", T::NAME);
        let params = || vec![reference.into(), key.into(), value.into()];
        match self.act(&method, params()).await {
            Err(error) if error.code() == "MAP_DUPLICATE_KEY" => {
                self.remove_from_other_config(reference, key).await?;
                self.act(&method, params()).await
            }
            done => done,
        }
    }

    /// Sets one entry of `other_config` unless there is one of this key: of all who do so the first decides, for the pool
    /// refuses any other value.
    pub async fn set_other_config_once<T: Class>(
        &self,
        reference: &Ref<T>,
        key: &str,
        value: &str,
    ) -> Result<()> {
        let method = format!("{}.add_to_other_config", T::NAME);
        match self.act(&method, vec![reference.into(), key.into(), value.into()]).await {
            Err(error) if error.code() == "MAP_DUPLICATE_KEY" => Ok(()),
            done => done,
        }
    }

    /// Removes one entry of `other_config`; an absent one is no error.
    pub async fn remove_from_other_config<T: Class>(&self, reference: &Ref<T>, key: &str) -> Result<()> {
        self.act(&format!("{}.remove_from_other_config", T::NAME), vec![reference.into(), key.into()]).await
    }

    /// The pool.
    pub async fn pool(&self) -> Result<(Ref<Pool>, Pool)> {
        let none = || Error::new(Kind::Protocol, "pool.get_all_records", "the pool lists no pool");
        self.get_all_records::<Pool>().await?.into_iter().next().ok_or_else(none)
    }

    /// The pool, with its members remembered: where the master falls silent they are asked who the master is, and
    /// a host that answers for another pool is not taken for ours.
    pub async fn learn_pool(&self) -> Result<(Ref<Pool>, Pool)> {
        let (reference, pool) = self.pool().await?;
        let hosts = self.get_all_records::<Host>().await?;
        self.sessions().remember(pool.uuid.clone(), hosts.into_values().map(|host| host.address));
        Ok((reference, pool))
    }

    /// Our own session: what the role permits, among others.
    pub async fn session(&self) -> Result<Session> {
        const METHOD: &str = "session.get_record";
        expect_record(METHOD, &self.call_on_own_session(METHOD).await?)
    }

    /// A call with a result.
    async fn get<T: FromValue>(&self, method: &str, params: Vec<Value>) -> Result<T> {
        expect(method, &self.call(method, params).await?)
    }

    /// A call without a result that matters.
    async fn act(&self, method: &str, params: Vec<Value>) -> Result<()> {
        self.call(method, params).await.map(drop)
    }

    /// A long operation with a result, as a task.
    async fn run<T: FromValue>(&self, method: &str, params: Vec<Value>) -> Result<T> {
        expect(method, &self.call_async(method, params, self.timeouts().operation).await?)
    }

    /// A long operation without a result, as a task.
    async fn perform(&self, method: &str, params: Vec<Value>) -> Result<()> {
        self.call_async(method, params, self.timeouts().operation).await.map(drop)
    }
}

/// Bytes from base64 as XAPI writes it, line breaks included.
fn from_base64(method: &str, text: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(digits).map_err(|error| {
        Error::new(Kind::Protocol, method, "the pool's answer is not base64").with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_with_line_breaks() {
        // Bits 0, 9 and 15, most significant bit first.
        assert_eq!(from_base64("x", "gEE=\n").expect("base64"), [0x80, 0x41]);
        assert!(from_base64("x", "").expect("base64").is_empty());
        assert_eq!(from_base64("x", "gE!=").expect_err("no base64").kind(), &Kind::Protocol);
    }
}
