//! What shims say of their containers' output. Each is asked by itself and has a deadline, so that a wedged one costs its
//! own answer and no more.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use holdfast_proto::{control, supervisor as pb};

use crate::chain;
use crate::client::{CallError, ShimClient};
use crate::sys::proc;

/// A healthy shim answers from memory, and gives its disk half of this.
const DEADLINE: Duration = Duration::from_secs(1);

/// A shim to be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Whom {
    /// Its socket, with `unix://`.
    pub address: String,
    /// Its pid, 0 if unknown.
    pub pid: u32,
    /// Of its containers.
    pub namespace: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// It does not know the question.
    #[error("its shim is too old to say")]
    TooOld,
    /// It answers with an error.
    #[error("its shim does not say")]
    Refused(#[source] CallError),
    /// It does not answer in time.
    #[error("its shim does not answer")]
    Silent(#[source] CallError),
    /// It takes no connection, or has closed it: it is about to end, or to be replaced.
    #[error("its shim cannot be reached")]
    Unreachable(#[source] CallError),
}

impl From<CallError> for Unknown {
    fn from(error: CallError) -> Self {
        match &error {
            CallError::Status(status) if status.code() == ttrpc::Code::UNIMPLEMENTED => Self::TooOld,
            CallError::Status(_) => Self::Refused(error),
            CallError::Silent { .. } => Self::Silent(error),
            CallError::Broken { .. } => Self::Unreachable(error),
        }
    }
}

/// What a shim says of one container, or of all that it holds if `id` is empty. With `measure` it looks at the disk, too.
///
/// # Errors
/// See [`Unknown`].
pub async fn ask(address: &str, id: &str, measure: bool) -> Result<control::OutputResponse, Unknown> {
    let question = |client: ShimClient| async move { client.output(measure, DEADLINE).await };
    ShimClient::ask(address, id, "Output", DEADLINE, question).await.map_err(Unknown::from)
}

/// Asks all at the same time; then, of those that keep output at the same place, one how much the disk holds there.
pub async fn ask_all(shims: Vec<Whom>) -> pb::OutputResponse {
    let answers = join_all(shims.into_iter().map(async |shim| {
        let answer = ask(&shim.address, "", false).await;
        (shim, answer)
    }))
    .await;
    let mut places: BTreeMap<String, (pb::SpillPlace, Vec<String>)> = BTreeMap::new();
    for (shim, answer) in &answers {
        if let Ok(answer) = answer {
            let (_, shims) = places.entry(answer.spill_dir.clone()).or_insert_with(|| (place(answer), Vec::new()));
            shims.push(shim.address.clone());
        }
    }
    let measured = join_all(places.into_values().map(async |(place, shims)| measure(place, &shims).await)).await;
    pb::OutputResponse {
        shims: answers.into_iter().map(|(shim, answer)| said(shim, answer)).collect(),
        places: measured,
        ..Default::default()
    }
}

fn place(answer: &control::OutputResponse) -> pb::SpillPlace {
    pb::SpillPlace {
        spill_dir: answer.spill_dir.clone(),
        spill_total: answer.spill_total,
        free_floor_percent: answer.free_floor_percent,
        ..Default::default()
    }
}

/// One of the shims is enough; another is asked only if the first has no answer.
async fn measure(mut place: pb::SpillPlace, shims: &[String]) -> pb::SpillPlace {
    const ATTEMPTS: usize = 2;
    for address in shims.iter().take(ATTEMPTS) {
        if let Ok(answer) = ask(address, "", true).await
            && answer.spill_bytes.is_some()
        {
            place.spill_bytes = answer.spill_bytes;
            break;
        }
    }
    place
}

fn said(shim: Whom, answer: Result<control::OutputResponse, Unknown>) -> pb::ShimOutput {
    let unresponsive = matches!(answer, Err(Unknown::Silent(_)));
    let (streams, unknown) = told(answer);
    let (resident_bytes, anonymous_bytes) = proc::memory(shim.pid).unzip();
    pb::ShimOutput {
        resident_bytes,
        anonymous_bytes,
        shim_pid: shim.pid,
        namespace: shim.namespace,
        streams,
        unknown,
        unresponsive,
        ..Default::default()
    }
}

/// What is known of the output, or why nothing is.
pub fn told(answer: Result<control::OutputResponse, Unknown>) -> (Vec<control::OutputStream>, String) {
    match answer {
        Ok(answer) => (answer.streams, String::new()),
        Err(why) => (Vec::new(), chain(&why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_shim_that_is_silent_counts_as_unresponsive() {
        let whom = || Whom { address: "unix:///s".into(), pid: 0, namespace: "default".into() };
        let broken = CallError::Broken { method: "Output", source: ttrpc::Error::RemoteClosed };
        let silent = CallError::Silent { method: "Output", within: DEADLINE };
        let refused = CallError::Status(ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no"));
        for (error, unresponsive) in [(broken, false), (silent, true), (refused, false)] {
            let said = said(whom(), Err(error.into()));
            assert!(said.unresponsive == unresponsive && !said.unknown.is_empty(), "{said:?}");
        }
    }
}
