//! Prints at full speed: `printer SIZE TOTAL` writes TOTAL bytes to stdout, SIZE at a time. The payload of the benchmark,
//! static, with nothing between two writes that could be slower than what is measured.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    let numbers: Vec<_> = std::env::args().skip(1).map(|text| text.parse::<usize>()).collect();
    let [Ok(size), Ok(total)] = numbers[..] else {
        eprintln!("usage: printer SIZE TOTAL");
        return ExitCode::from(2);
    };
    match print(size.max(1), total) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("printer: {e}");
            ExitCode::FAILURE
        }
    }
}

fn print(size: usize, total: usize) -> std::io::Result<()> {
    // A file of its own: the standard library's stdout looks for lines.
    let mut out = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let line: Vec<u8> = (0..size).map(|n| if n + 1 == size { b'\n' } else { b'x' }).collect();
    let mut left = total;
    while left > 0 {
        let now = left.min(size);
        out.write_all(&line[..now])?;
        left -= now;
    }
    Ok(())
}
