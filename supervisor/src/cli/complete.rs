//! Completion in shells: the scripts that teach a shell to ask this program, and what it is answered about containers.

use std::time::Duration;

use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use holdfast_proto::supervisor as pb;

use super::args::{Shell, socket_path};
use super::connection::Connection;
use super::say::print;
use super::{CliError, Outcome};

/// The variable by which a script asks for completions, and names its shell.
pub(super) const VARIABLE: &str = "HOLDFAST_COMPLETE";

/// A person is waiting at a prompt.
const DEADLINE: Duration = Duration::from_secs(1);

/// A file in zsh's fpath is the body of a function of its name, and its first call is made to complete something: without
/// this it would only define what completes, and the first Tab would give nothing.
const ZSH_FIRST_CALL: &str = r#"
if [[ "${(%):-%N}" == _holdfast ]]; then
    _clap_dynamic_completer_holdfast "$@"
fi
"#;

/// Prints the script for a shell. It asks the `holdfast` in `PATH`.
pub(super) fn script(shell: Shell) -> Outcome {
    let shells = Shells::builtins();
    let name = shell.name();
    let completer =
        shells.completer(name).ok_or_else(|| CliError::Usage(format!("there is no completion for {name}")))?;
    let mut text = Vec::new();
    completer
        .write_registration(VARIABLE, "holdfast", "holdfast", "holdfast", &mut text)
        .map_err(CliError::io("write the completions"))?;
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if matches!(shell, Shell::Zsh) {
        text.push_str(ZSH_FIRST_CALL);
    }
    print(&text)?;
    Ok(0)
}

/// The names of containers, with the states that they are in; none if the supervisor does not answer at once.
pub(super) fn containers(all: bool) -> Vec<CompletionCandidate> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let asked = async {
        let request = pb::ListRequest { all, ..Default::default() };
        tokio::time::timeout(DEADLINE, Connection::new(socket_path(None)).list(&request)).await
    };
    let Ok(Ok(answer)) = runtime.block_on(asked) else { return Vec::new() };
    let named = answer.containers.into_iter().filter(|c| !c.name.is_empty());
    named.map(|c| CompletionCandidate::new(c.name).help(Some(c.status.into()))).collect()
}
