//! Base64 with the standard alphabet and padding.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| group.get(at).copied().map_or(0, u32::from);
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            // Each byte reaches one character beyond its own place.
            let symbol = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= group.len() { char::from(symbol) } else { '=' });
        }
    }
    text
}

/// The same without line breaks; where it is none, the place from which on it is none.
pub(crate) fn checked(mut text: String) -> Result<String, usize> {
    text.retain(|character| !matches!(character, '\r' | '\n'));
    let symbols = text.trim_end_matches('=').len();
    let is_symbol = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    if let Some(at) = text.as_bytes()[..symbols].iter().position(|byte| !is_symbol(byte)) {
        return Err(at);
    }
    let padded = text.len().is_multiple_of(4) && text.len() - symbols <= 2;
    if padded { Ok(text) } else { Err(symbols) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648_are_written_and_recognised() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(checked(text.to_owned()).as_deref(), Ok(text));
        }
        assert_eq!(encode(&[0xff, 0xff, 0xfe, 0xfb, 0xef, 0xbe]), "///+++++");
    }

    #[test]
    fn what_is_no_base64_is_known_and_line_breaks_are_left_out() {
        assert_eq!(checked("Zm9v\r\nYg==\n".to_owned()).as_deref(), Ok("Zm9vYg=="));
        for (wrong, at) in
            [("Zm9", 3), ("Zg=", 2), ("Z===", 1), ("====", 0), ("Zm 9", 2), ("Zm-_", 2), ("Zg==Zg==", 2), ("é===", 0)]
        {
            assert_eq!(checked(wrong.to_owned()), Err(at), "{wrong}");
        }
    }
}
