//! Going on with a text at any place in it.
//!
//! A model learns texts as its tokenizer cuts them. One that ends within a word is cut otherwise than the same text in
//! the middle of a longer one, and what follows is then a guess. So the end of the text is left out of the prompt, and
//! the model is made to write it again, in tokens of its own choice; only what comes behind it is said.

/// What remains to be written again.
#[derive(Debug, Default)]
pub struct Begun {
    due: Vec<u8>,
}

/// No word is longer; of languages that write without blanks this is enough to find a token's border.
const TAIL_BYTES_MAX: usize = 48;

impl Begun {
    pub fn new(text: &str) -> Self {
        Self { due: text.as_bytes().to_vec() }
    }

    pub fn is_over(&self) -> bool {
        self.due.is_empty()
    }

    /// Whether a token of this text may come next.
    pub fn admits(&self, piece: &[u8]) -> bool {
        self.is_over() || (!piece.is_empty() && (self.due.starts_with(piece) || piece.starts_with(&self.due)))
    }

    /// Whether nothing of the token would be left.
    pub fn covers(&self, piece: &[u8]) -> bool {
        self.due.starts_with(piece)
    }

    /// Takes a token that was admitted; what is left of it is new.
    pub fn take<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let again = piece.len().min(self.due.len());
        self.due.drain(..again);
        &piece[again..]
    }
}

/// Where a text that is to be gone on with may be cut, nearest first: before its last word and the blanks before that,
/// and before words further on as long as lines end between them, since an end of line may be one token with what stands
/// before it. The last of them is the best.
pub fn cuts(text: &str) -> Vec<usize> {
    let mut cuts = Vec::new();
    let mut rest = text.trim_end();
    loop {
        let word = rest.trim_end_matches(|character: char| !character.is_whitespace());
        rest = word.trim_end();
        if text.len() - rest.len() > TAIL_BYTES_MAX {
            break;
        }
        cuts.push(rest.len());
        if !word[rest.len()..].contains('\n') {
            break;
        }
    }
    if cuts.is_empty() {
        cuts.push(text.ceil_char_boundary(text.len() - TAIL_BYTES_MAX));
    }
    cuts
}

/// A text and its tail, cut at the best place.
pub fn split_tail(text: &str) -> (&str, &str) {
    text.split_at(cuts(text).last().copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_before_its_last_word() {
        for (text, tail) in [
            ("", ""),
            ("Yes", "Yes"),
            ("one tw", " tw"),
            ("one two ", " two "),
            ("zero one,\n\n  two", " one,\n\n  two"),
            ("one,\ntwo", "one,\ntwo"),
            ("one two.\n", " two.\n"),
            (" ", " "),
            ("\n\n", "\n\n"),
        ] {
            let (head, cut) = split_tail(text);
            assert_eq!((cut, format!("{head}{cut}").as_str()), (tail, text));
        }
        assert_eq!(cuts("zero one\ntwo\n"), [8, 4]);
        let far = format!("{}\ntwo", "x".repeat(100));
        assert_eq!(split_tail(&far).1, "\ntwo");
        let long = "é".repeat(100);
        let (head, tail) = split_tail(&long);
        assert!(tail.len() <= TAIL_BYTES_MAX && tail.len() > TAIL_BYTES_MAX - 4 && !head.is_empty());
    }

    #[test]
    fn only_tokens_that_write_it_again_are_admitted() {
        let mut begun = Begun::new(" tw");
        for (piece, admitted) in
            [(" ", true), (" t", true), (" tw", true), (" two", true), ("", false), (" one", false), ("tw", false)]
        {
            assert_eq!(begun.admits(piece.as_bytes()), admitted, "{piece:?}");
        }
        assert!(begun.covers(b" tw") && begun.covers(b" t") && !begun.covers(b" two"));
        assert_eq!((begun.take(b" t"), begun.is_over()), (&b""[..], false));
        assert!(begun.admits(b"wo") && !begun.admits(b" two"));
        assert_eq!((begun.take(b"wo, "), begun.is_over()), (&b"o, "[..], true));
        assert!(begun.admits(b"") && begun.admits(b"anything"));
        assert_eq!(begun.take(b"anything"), b"anything");
    }
}
