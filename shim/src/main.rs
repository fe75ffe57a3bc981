//! `containerd-shim-holdfast-v2`: runs a command, turns its result into an exit code.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use holdfast_shim::cli::{self, Invocation};
use holdfast_shim::cmd::{delete, hand_on, hold, info, mount, serve, start, sweep};
use holdfast_shim::driver::chain;
use holdfast_shim::io::spill::policy::OutputSettings;
use holdfast_shim::io::spill::tree;
use holdfast_shim::oci::runner;
use holdfast_shim::options::{self, Options};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // One line: for `start` it is what the user gets to see.
            let _ = writeln!(io::stderr(), "{}: {}", env!("CARGO_BIN_NAME"), chain(&*e));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut stdout = io::stdout();
    match cli::parse(std::env::args_os().skip(1))? {
        Invocation::Start(flags) => stdout.write_all(&start::run(&flags)?)?,
        Invocation::Serve(flags) => serve::run(&flags)?,
        Invocation::Delete(flags) => {
            let mut warn = |text: String| {
                let _ = writeln!(io::stderr(), "{text}");
            };
            stdout.write_all(&delete::run(&flags, &mut warn)?)?;
        }
        Invocation::Info => print_info(&mut stdout)?,
        Invocation::Version => {
            let revision = option_env!("HOLDFAST_REVISION").unwrap_or("unknown");
            writeln!(stdout, "{}:", env!("CARGO_BIN_NAME"))?;
            writeln!(stdout, "  Version:  {}\n  Revision: {revision}", env!("CARGO_PKG_VERSION"))?;
        }
        Invocation::Mount => mount::run_mount(io::stdin())?,
        Invocation::Unmount(path) => mount::run_unmount(&path)?,
        Invocation::Hold(bundle) => hold::run(io::stdin(), &bundle)?,
        Invocation::Sweep => sweep::run(io::stdin())?,
        Invocation::HandOn(path) => hand_on::run(&path)?,
        Invocation::SweepOutput => {
            let mut say = |path: &Path, swept: io::Result<u64>| {
                let _ = writeln!(io::stderr(), "{}", tree::in_words(path, &swept));
            };
            tree::sweep(&OutputSettings::load()?.spill_dir, &mut say)?;
        }
    }
    stdout.flush()?;
    Ok(())
}

/// `-info`: the runtime options come as an `Any` on standard input and choose whose features are reported.
fn print_info(out: &mut impl Write) -> Result<(), Box<dyn std::error::Error>> {
    let stdin = start::read_stdin()?;
    if stdin.len() > cli::STDIN_LIMIT {
        return Err(cli::CliError::StdinTooLong.into());
    }
    let any = <protobuf::well_known_types::any::Any as protobuf::Message>::parse_from_bytes(&stdin)?;
    let options = match any.type_url.as_str() {
        "" => Options::default(),
        type_url => options::from_any(type_url, &any.value)?.0,
    };
    // Of the runtime only the program is asked, which needs no state.
    let runtime = runner::choose(&options, &std::env::current_exe()?, PathBuf::new(), "default")?;
    info::run(&stdin, &runtime.binary, out)?;
    Ok(())
}
