//! Operations in progress: while one runs, the object says so in `current_operations` and refuses what may not overlap.

use crate::failure::{Failure, Outcome};
use crate::flavour::ApiVersion;
use crate::rpc::value::Value;
use crate::sim::{Context, State};
use uuid::Uuid;

/// One running operation; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Operation {
    context: Context,
    class: &'static str,
    reference: String,
    key: String,
}

impl Operation {
    /// Runs `check` and, when it agrees, marks the object; both under one lock.
    pub(crate) fn begin(
        context: &Context,
        class: &'static str,
        reference: &str,
        name: &str,
        check: impl FnOnce(&mut State) -> Outcome<()>,
    ) -> Outcome<Self> {
        let key = context.task.clone().unwrap_or_else(|| format!("OpaqueRef:{}", Uuid::new_v4()));
        context.with(|s| {
            check(s)?;
            s.db.put_key(class, reference, "current_operations", &key, Some(Value::text(name)));
            Ok(())
        })?;
        Ok(Self { context: context.clone(), class, reference: reference.to_owned(), key })
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.context
            .with(|s| s.db.put_key(self.class, &self.reference, "current_operations", &self.key, None));
    }
}

/// Refuses when an operation is running that `overlaps` does not permit.
pub(crate) fn refuse_overlap(
    state: &State,
    class: &str,
    reference: &str,
    overlaps: impl Fn(&str) -> bool,
) -> Outcome<()> {
    for (key, operation) in state.db.map(class, reference, "current_operations") {
        let operation = operation.as_text().unwrap_or_default();
        if overlaps(operation) {
            continue;
        }
        let newest = state.api >= ApiVersion::v2(21);
        let params: Vec<&str> =
            if newest { vec![class, reference, operation, &key] } else { vec![class, reference] };
        return Err(Failure::new("OTHER_OPERATION_IN_PROGRESS", params));
    }
    Ok(())
}
