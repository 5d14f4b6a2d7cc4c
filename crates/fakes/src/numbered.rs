//! Answers that can be checked: numbered tokens, which go on where the text before them ended.

use crate::config::mix;

/// Token `number` as it follows other text.
pub fn token(number: u32) -> String {
    if number == 0 { "t0".to_owned() } else { format!(" t{number}") }
}

/// The number that follows what `text` ends in: 3 after `… t2`, 0 where it ends in no token.
pub fn next_number(text: &str) -> u32 {
    let text = text.trim_end_matches(' ');
    let digits = text.len() - text.trim_end_matches(|character: char| character.is_ascii_digit()).len();
    let (before, number) = text.split_at(text.len() - digits);
    let Some(before) = before.strip_suffix('t') else { return 0 };
    if before.ends_with(|character: char| character.is_alphanumeric()) {
        return 0;
    }
    number.parse().ok().and_then(|number: u32| number.checked_add(1)).unwrap_or(0)
}

/// What a model is going to say, known as soon as it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) pieces: Vec<String>,
    pub(crate) reason: &'static str,
}

impl Script {
    /// The tokens from the one that follows `begun` up to `total`, unless `limit` or a stop string is met before.
    pub(crate) fn new(begun: &str, total: u32, limit: u32, stops: &[String]) -> Self {
        let first = next_number(begun);
        let last = total.max(first).min(first.saturating_add(limit));
        let mut pieces: Vec<String> = (first..last).map(token).collect();
        if let Some(piece) = pieces.first_mut().filter(|_| begun.ends_with(' ')) {
            *piece = piece.trim_start().to_owned();
        }
        let cut = cut_at(&mut pieces, stops);
        Self { pieces, reason: if cut || last == total.max(first) { "stop" } else { "length" } }
    }
}

/// How many tokens an uncut answer has: the same at every fake that holds the model, which its digest tells, and another
/// for another seed, which is -1 where a request has none.
pub fn natural_length(digest: &str, seed: i64) -> u32 {
    let hash = digest.bytes().fold(mix(seed.unsigned_abs()), |hash, byte| mix(hash ^ u64::from(byte)));
    16 + u32::try_from(hash % 48).expect("less than 48")
}

fn cut_at(pieces: &mut Vec<String>, stops: &[String]) -> bool {
    let text = pieces.concat();
    let found = stops.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| text.find(stop.as_str())).min();
    let Some(mut left) = found else { return false };
    pieces.retain_mut(|piece| {
        piece.truncate(left);
        left -= piece.len();
        !piece.is_empty()
    });
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(begun: &str, total: u32, limit: u32, stops: &[&str]) -> (String, &'static str) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let script = Script::new(begun, total, limit, &stops);
        (script.pieces.concat(), script.reason)
    }

    #[test]
    fn an_answer_is_numbered_from_its_first_token() {
        assert_eq!(said("what?", 3, 100, &[]), ("t0 t1 t2".to_owned(), "stop"));
        assert_eq!(said("what?", 3, 2, &[]), ("t0 t1".to_owned(), "length"));
        assert_eq!(said("what?", 3, 3, &[]), ("t0 t1 t2".to_owned(), "stop"));
    }

    #[test]
    fn a_continued_answer_goes_on_where_it_was_left() {
        for cut in 0..=4 {
            let begun: String = (0..cut).map(token).collect();
            assert_eq!(begun.clone() + &said(&begun, 4, 100, &[]).0, "t0 t1 t2 t3", "{cut}");
        }
        assert_eq!(said("<|assistant|>t0 t1 ", 4, 1, &[]), ("t2".to_owned(), "length"));
        assert_eq!(said("t7", 4, 100, &[]), (String::new(), "stop"));
    }

    #[test]
    fn only_a_token_at_the_end_counts() {
        for text in ["", "t", "at5", "t5.", "5", "t99999999999", "t4294967295"] {
            assert_eq!(next_number(text), 0, "{text}");
        }
        assert_eq!(next_number("x\nt5"), 6);
    }

    #[test]
    fn a_stop_string_ends_the_answer_before_it() {
        assert_eq!(said("", 9, 100, &["t3", "t7"]), ("t0 t1 t2 ".to_owned(), "stop"));
        assert_eq!(said("", 9, 100, &["1 t", ""]), ("t0 t".to_owned(), "stop"));
        assert_eq!(said("", 2, 100, &["x"]), ("t0 t1".to_owned(), "stop"));
    }

    #[test]
    fn length_depends_on_model_and_seed_alone() {
        assert_eq!(natural_length("ab", 1), natural_length("ab", 1));
        let lengths: std::collections::BTreeSet<u32> = (0..20).map(|seed| natural_length("ab", seed)).collect();
        assert!(lengths.len() > 5 && lengths.iter().all(|length| (16..64).contains(length)), "{lengths:?}");
    }
}
