//! Stop strings, which come in any number of pieces.

/// Lets text through up to the first stop string, and holds back what may be the beginning of one.
#[derive(Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Not passed on yet: the longest end of the text that some stop string begins with. Shorter than the longest.
    held: String,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Screened {
    /// This much can be shown; more may follow.
    Pass(String),
    /// This much can be shown, then a stop string came. What stood behind it is gone.
    Stop(String),
}

impl StopStrings {
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new() }
    }

    pub fn push(&mut self, text: &str) -> Screened {
        let mut seen = std::mem::take(&mut self.held);
        seen.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| seen.find(stop.as_str())).min() {
            seen.truncate(at);
            return Screened::Stop(seen);
        }
        let may_begin = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&seen[*at..]));
        let borders = seen.char_indices().map(|(at, _)| at);
        if let Some(at) = borders.skip_while(|at| seen.len() - at >= self.longest()).find(may_begin) {
            self.held = seen.split_off(at);
        }
        Screened::Pass(seen)
    }

    /// The answer ended: what was held back began no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn longest(&self) -> usize {
        self.stops.iter().map(String::len).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client sees of these pieces, and whether a stop string ended it.
    fn shown(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut screen = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()));
        let mut shown = String::new();
        for piece in pieces {
            match screen.push(piece) {
                Screened::Pass(text) => shown.push_str(&text),
                Screened::Stop(text) => return (shown + &text, true),
            }
        }
        (shown + &screen.finish(), false)
    }

    #[test]
    fn a_stop_string_split_at_every_position_is_found() {
        let text = "one two\n\nUser: three";
        for stop in ["\n\nUser:", "two", " ", "three", "one"] {
            let expected = text.split(stop).next().unwrap();
            for first in 0..=text.len() {
                for second in first..=text.len() {
                    let pieces = [&text[..first], &text[first..second], &text[second..]];
                    assert_eq!(shown(&[stop], &pieces), (expected.to_owned(), true), "{pieces:?}");
                }
            }
        }
    }

    #[test]
    fn single_characters_make_no_difference() {
        let text = "naïve 中文 end中";
        let pieces: Vec<String> = text.chars().map(String::from).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        assert_eq!(shown(&["中文 end"], &pieces), ("naïve ".to_owned(), true));
        assert_eq!(shown(&["中中", "endx"], &pieces), (text.to_owned(), false));
    }

    #[test]
    fn what_may_begin_a_stop_string_waits_and_nothing_else_does() {
        let mut screen = StopStrings::new(["</end>".to_owned()]);
        assert_eq!(screen.push("a <b> <"), Screened::Pass("a <b> ".to_owned()));
        assert_eq!(screen.push("/e"), Screened::Pass(String::new()));
        assert_eq!(screen.push("m> </"), Screened::Pass("</em> ".to_owned()));
        assert_eq!(screen.finish(), "</");
    }

    #[test]
    fn the_first_of_several_wins_wherever_the_pieces_end() {
        assert_eq!(shown(&["cd", "b"], &["abcd"]), ("a".to_owned(), true));
        assert_eq!(shown(&["abc", "b"], &["a", "b", "c"]), (String::from("a"), true));
        assert_eq!(shown(&["aab"], &["a", "a", "a", "b"]), (String::from("a"), true));
    }

    #[test]
    fn without_stop_strings_nothing_waits() {
        assert_eq!(shown(&[], &["a", "b"]), ("ab".to_owned(), false));
        assert_eq!(StopStrings::new([String::new()]).push("x"), Screened::Pass("x".to_owned()));
    }
}
