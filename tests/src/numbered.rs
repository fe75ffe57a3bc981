//! Numbered lines, as `seq 0 LAST` prints them: what is lost, doubled or out of order shows at its place.

/// So many that they are more than 4 MB.
pub const FOUR_MB: usize = 610_000;

/// `seq FIRST LAST` for `count` lines from 0 on.
pub fn lines(count: usize) -> Vec<u8> {
    use std::io::Write;
    let mut text = Vec::new();
    for n in 0..count {
        writeln!(text, "{n}").expect("memory takes it");
    }
    text
}

/// Asserts that `got` is all of `count` lines, each once and in order.
///
/// # Panics
/// With the place of the first difference, since megabytes of it help nobody.
#[track_caller]
pub fn assert_all(got: &[u8], count: usize) {
    let expected = lines(count);
    let first = got.iter().zip(&expected).position(|(a, b)| a != b);
    let around = |bytes: &[u8]| {
        let at = first.unwrap_or(0);
        String::from_utf8_lossy(bytes.get(at.saturating_sub(20)..(at + 20).min(bytes.len())).unwrap_or_default())
            .into_owned()
    };
    assert_eq!(
        (got.len(), first),
        (expected.len(), None),
        "the length, and where the first difference is: {:?} instead of {:?}",
        around(got),
        around(&expected)
    );
}

/// A generator of numbers that are the same for the same seed: Marsaglia's xorshift64.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// From any number but 0.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("below a usize")
    }
}
