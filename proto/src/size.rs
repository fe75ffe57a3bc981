//! Sizes as people write them, in settings files, options, annotations and flags alike.

/// What a size looks like, for the error about one that does not.
pub const FORM: &str = "a size is a number of bytes above 0, or one with k, m, g or t";

/// A size in bytes: `64m`, `1g`, `1048576`, `10MiB`. `None` for anything else, also for nothing at all.
pub fn parse(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    digits.trim().parse::<u64>().ok().filter(|n| *n > 0)?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("64m", 64 << 20), ("10MiB", 10 << 20), ("5", 5), (" 2 kb ", 2048), ("1t", 1 << 40)] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for bad in ["", "m", "0", "-1", "1x", "99999999999g", "1.5m"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
