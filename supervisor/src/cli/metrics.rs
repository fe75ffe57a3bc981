//! `holdfast metrics`: the figures as text, collected now.

use holdfast_proto::supervisor as pb;

use super::connection::Connection;
use super::{CliError, Outcome, print};
use crate::metrics::Measured;

/// Prints the metrics.
pub(super) async fn metrics(connection: Connection) -> Outcome {
    let request = pb::ListRequest { all: true, all_managers: true, ..Default::default() };
    let measured = Measured {
        containers: connection.list(&request).await?.containers,
        info: connection.info(&pb::InfoRequest::new()).await?,
        output: connection.output(&pb::OutputRequest::new()).await?,
    };
    print(&measured.text().map_err(|e| CliError::Usage(format!("cannot write the metrics: {e}")))?)?;
    Ok(0)
}
