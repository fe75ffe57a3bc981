//! The command line's entry point: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast_supervisor::cli::main()
}
