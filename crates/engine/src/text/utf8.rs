//! Bytes in pieces to text in whole characters.

/// Holds back the bytes of a character until its last one is there. What can never become a character turns into
/// U+FFFD, as Ollama's clients get it.
#[derive(Debug, Default)]
pub struct Utf8 {
    /// The start of a character, at most three bytes.
    held: Vec<u8>,
}

impl Utf8 {
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.held.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            text.push_str(std::str::from_utf8(valid).expect("valid up to here, says the error"));
            rest = after;
            let Some(broken) = error.error_len() else { break };
            text.push(char::REPLACEMENT_CHARACTER);
            rest = &rest[broken..];
        }
        let kept = self.held.len() - rest.len();
        self.held.drain(..kept);
        text
    }

    /// Whether the last character is not whole. At an answer's end such bytes are dropped: whoever continues the
    /// answer from its text makes them again.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "naïve 中文 😀 e\u{301} ";

    fn fed(pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let mut holder = Utf8::default();
        let texts = pieces.iter().map(|piece| holder.push(piece)).collect();
        (texts, holder.holds())
    }

    #[test]
    fn text_cut_anywhere_comes_out_whole() {
        for first in 0..=TEXT.len() {
            for second in first..=TEXT.len() {
                let bytes = TEXT.as_bytes();
                let (texts, holds) = fed(&[&bytes[..first], &bytes[first..second], &bytes[second..]]);
                assert_eq!(texts.concat(), TEXT, "cut at {first} and {second}");
                assert!(!holds);
            }
        }
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        let (texts, _) = fed(&[&[0xf0], &[0x9f], &[0x98], &[0x80]]);
        assert_eq!(texts, ["", "", "", "😀"]);
    }

    #[test]
    fn bytes_that_are_no_character_do_not_hold_up_the_rest() {
        let (texts, holds) = fed(&[b"a\xffb", b"\xe4\xb8", b"c", &[0xc0, 0xaf]]);
        assert_eq!(texts, ["a\u{fffd}b", "", "\u{fffd}c", "\u{fffd}\u{fffd}"]);
        assert!(!holds);
    }

    #[test]
    fn at_most_three_bytes_wait() {
        let mut holder = Utf8::default();
        for byte in [0xf4u8, 0x8f, 0xbf, 0xf4, 0x8f, 0xf0, 0x9f, 0x98, 0xe4].into_iter().cycle().take(1000) {
            holder.push(&[byte]);
            assert!(holder.held.len() < 4, "{:x?}", holder.held);
        }
        assert!(holder.holds());
    }
}
