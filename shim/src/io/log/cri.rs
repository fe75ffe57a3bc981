//! Kubernetes' container log: `2016-10-06T00:17:09.669794202Z stdout F text`, with `P` for a piece whose line goes on in
//! the stream's next entry. The text is as it came, byte for byte; only a newline ends it.
//!
//! The last words of a stream that ends without a newline are `F`, as containerd writes them: collectors that wait for
//! the rest of a `P` would hold them back.

use super::{End, Piece};
use crate::rfc3339::{self, Fraction};

/// Appends an entry.
pub(super) fn write(out: &mut Vec<u8>, piece: &Piece<'_>) {
    rfc3339::write(out, piece.at, Fraction::Trimmed);
    out.push(b' ');
    out.extend_from_slice(piece.stream.as_bytes());
    out.extend_from_slice(if piece.end == End::Rest { b" P " } else { b" F " });
    out.extend_from_slice(piece.text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Format, Lines, PIECE_LIMIT, sample};

    const TIME: &[u8] = b"2023-11-14T22:13:20Z";

    fn lines(chunks: &[&[u8]]) -> Vec<u8> {
        sample::stdout(Format::Cri, chunks)
    }

    #[test]
    fn each_line_has_its_time_stream_and_tag() {
        let got = String::from_utf8(lines(&[b"one\ntw", b"o\n\nthr", b"ee"])).unwrap();
        let expected = "2023-11-14T22:13:20Z stdout F one\n\
                        2023-11-14T22:13:20Z stdout F two\n\
                        2023-11-14T22:13:20.000000001Z stdout F \n\
                        2023-11-14T22:13:20.000000001Z stdout F three\n";
        assert_eq!(got, expected);
    }

    #[test]
    fn bytes_are_not_touched() {
        let text = b"\0\r\t\xff\xe2\x82 \"\\<\n";
        assert_eq!(lines(&[text]), [TIME, b" stdout F ", text].concat());
    }

    #[test]
    fn pieces_are_tagged_until_the_last() {
        let full = [b'x'; PIECE_LIMIT];
        let exactly = [&full[..], b"\n"].concat();
        assert_eq!(lines(&[&exactly]), [TIME, b" stdout F ", &exactly].concat());
        let long = [&full[..], &full[..], b"y\n"].concat();
        let piece = [TIME, b" stdout P ", &exactly].concat();
        assert_eq!(lines(&[&long]), [&piece[..], &piece, TIME, b" stdout F y\n"].concat());
    }

    #[test]
    fn pieces_of_two_streams_may_come_in_turns() {
        let (mut out, mut one, mut two) = (Vec::new(), Lines::new(Format::Cri), Lines::new(Format::Cri));
        let full = "x".repeat(PIECE_LIMIT);
        one.push("stdout", sample::AT, format!("{full}o").as_bytes(), &mut out);
        two.push("stderr", sample::AT, format!("{full}e").as_bytes(), &mut out);
        one.push("stdout", sample::AT + 1, b"ne\n", &mut out);
        two.finish("stderr", sample::AT + 1, &mut out);
        let tags: Vec<_> = str::from_utf8(&out).unwrap().lines().map(|l| &l[21..l.len().min(40)]).collect();
        assert_eq!(tags, ["stdout P xxxxxxxxxx", "stderr P xxxxxxxxxx", "stdout F one", "stderr F e"]);
    }
}
