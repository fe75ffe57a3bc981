//! `state`: prints what is true of a container, as the OCI runtime specification has it.

use serde_json::{Value, json};

use crate::cli::Global;
use crate::error::Failure;
use crate::record::{Container, Record, RunRoot, Status};

/// The version of the runtime specification that this program follows.
pub(crate) const OCI_VERSION: &str = "1.2.0";

/// Prints the state on stdout.
///
/// # Errors
/// [`Failure::NoContainer`], or a record that cannot be read.
pub(crate) fn run(global: &Global, id: &str) -> Result<u8, Failure> {
    let container = RunRoot::new(&global.root).load(id)?;
    println!("{:#}", container.document());
    Ok(0)
}

/// The OCI state, with what runc adds to it.
pub(crate) fn document(record: &Record, status: Status, pid: i32) -> Value {
    let mut document = json!({
        "ociVersion": OCI_VERSION,
        "id": record.id,
        "pid": pid,
        "status": status.to_string(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "owner": if record.owner == 0 { "root".to_owned() } else { record.owner.to_string() },
    });
    if !record.annotations.is_empty() {
        document["annotations"] = json!(record.annotations);
    }
    document
}

impl Container {
    /// What is true of the container now. A stopped one has no pid.
    pub(crate) fn document(&self) -> Value {
        let status = self.status();
        let pid = match status {
            Status::Stopped | Status::Creating => 0,
            _ => self.record.init.map_or(0, |init| init.pid),
        };
        document(&self.record, status, pid)
    }
}
