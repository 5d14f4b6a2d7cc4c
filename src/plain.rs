//! Text that only prints: whatever else it holds is shown, not obeyed.

use std::borrow::Cow;

/// Control characters become their escapes, so that a name or a peer's message can neither move the cursor nor forge a
/// line of its own.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if steers(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

/// Controls, and the marks that turn the direction of the text around them.
fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_stays_and_controls_are_shown() {
        assert!(matches!(plain("grüße, 3 min ago · `n1`"), Cow::Borrowed(_)));
        assert_eq!(plain("a\tb\u{7}\u{9b}31m\u{202e}c"), "a\\tb\\u{7}\\u{9b}31m\\u{202e}c");
    }
}
