//! Where a request ends, once its head is understood: whether everybody on the way would say the same. Pure.
//!
//! Two servers in a row that read one head differently take different bytes for the next request, and whoever sends such
//! a head speaks for others. What hyper reads strictly (lengths that contradict each other, folded lines, spaces before
//! colons, chunk sizes) never gets here; what it reads in one of several ways is refused.

use axum::http::{HeaderMap, header};

/// Whether the body is framed in a way that nobody can read otherwise: `chunked` alone, or a length, or nothing.
pub(crate) fn is_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        // A body in another coding would reach a route undecoded; a list, or two headers, is where servers differ.
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(codings: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for coding in codings {
            headers.append(header::TRANSFER_ENCODING, coding.parse().unwrap());
        }
        is_plain(&headers)
    }

    #[test]
    fn chunked_alone_is_read_the_same_by_everybody() {
        assert!(plain(&[]) && plain(&["chunked"]) && plain(&["Chunked"]));
        for doubtful in ["identity, chunked", "gzip, chunked", "chunked, chunked", "chunked;q=1", "xchunked", ""] {
            assert!(!plain(&[doubtful]), "{doubtful}");
        }
        assert!(!plain(&["chunked", "chunked"]) && !plain(&["identity", "chunked"]));
    }
}
