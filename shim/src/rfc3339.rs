//! Moments in the form of RFC 3339, in UTC, as Go's `time` package writes them; pure.

/// How the fraction of a second is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fraction {
    /// Without trailing zeros, and without the point if nothing is left (Go's `RFC3339Nano`).
    Trimmed,
    /// Nine digits (what containerd logs).
    Nine,
}

/// Appends the moment, given in nanoseconds since the Unix epoch.
pub(crate) fn write(out: &mut Vec<u8>, unix_ns: u64, fraction: Fraction) {
    let (seconds, ns) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    digits(out, year, 4);
    for (mark, value) in
        [(b'-', month), (b'-', day), (b'T', second / 3600), (b':', second / 60 % 60), (b':', second % 60)]
    {
        out.push(mark);
        digits(out, value, 2);
    }
    let start = out.len();
    out.push(b'.');
    digits(out, ns, 9);
    if fraction == Fraction::Trimmed {
        while matches!(out.last(), Some(b'0')) {
            out.pop();
        }
        if out.len() == start + 1 {
            out.pop();
        }
    }
    out.push(b'Z');
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar. Years are counted from March, so that the
/// leap day is a year's last, and in cycles of 400 years, which all have the same length.
fn civil(days: u64) -> (u64, u64, u64) {
    const CYCLE: u64 = 146_097;
    let since_march_of_year_0 = days + 719_468;
    let (cycle, day_of_cycle) = (since_march_of_year_0 / CYCLE, since_march_of_year_0 % CYCLE);
    let leap_days = day_of_cycle / 1460 - day_of_cycle / 36_524 + day_of_cycle / (CYCLE - 1);
    let year_of_cycle = (day_of_cycle - leap_days) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

fn digits(out: &mut Vec<u8>, value: u64, width: u32) {
    for place in (0..width).rev() {
        out.push(b'0' + (value / 10_u64.pow(place) % 10) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(unix_ns: u64, fraction: Fraction) -> String {
        let mut out = Vec::new();
        write(&mut out, unix_ns, fraction);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn moments_are_written_as_go_does() {
        for (seconds, ns, expected) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (951_868_800, 120_000_000, "2000-03-01T00:00:00.12Z"),
            (1_709_164_800, 0, "2024-02-29T00:00:00Z"),
            (1_735_689_599, 500_000, "2024-12-31T23:59:59.0005Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(text(seconds * 1_000_000_000 + ns, Fraction::Trimmed), expected);
        }
        assert_eq!(text(120_000_000, Fraction::Nine), "1970-01-01T00:00:00.120000000Z");
        assert_eq!(text(u64::MAX, Fraction::Trimmed), "2554-07-21T23:34:33.709551615Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..80_000 {
            assert_eq!(civil(days), (year, month, day));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }
}
