use super::*;
use crate::build::File;

fn parse(bytes: &[u8]) -> Result<Header<'_>, Error> {
    Header::parse(bytes, bytes.len() as u64)
}

fn bytes(file: &File) -> Vec<u8> {
    file.bytes()
}

/// Where the first `needle` ends in `bytes`.
fn after(bytes: &[u8], needle: &str) -> usize {
    let found = bytes.windows(needle.len()).position(|window| window == needle.as_bytes());
    found.expect("the file holds it") + needle.len()
}

#[test]
fn a_file_is_read_as_it_was_written() {
    let file = File::tiny_llama().bool("a.truth", true).f32("a.float", 0.5).u32s("a.list", &[7, 8]);
    let bytes = bytes(&file);
    let header = parse(&bytes).unwrap();
    assert_eq!((header.version(), header.alignment()), (3, 32));
    assert_eq!(header.get("a.truth").and_then(Value::as_bool), Some(true));
    assert_eq!(header.get("a.float"), Some(&Value::Float(0.5)));
    let list = header.get("a.list").and_then(Value::as_array).unwrap();
    assert_eq!(list.iter().map(|value| value.as_u64().unwrap()).collect::<Vec<_>>(), [7, 8]);
    assert_eq!((list.get(1), list.get(2)), (Some(Value::Unsigned(8)), None));
    let tokens = header.get("tokenizer.ggml.tokens").and_then(Value::as_array).unwrap();
    assert_eq!(tokens.get(63).unwrap().as_str(), Some("t63"));
    let down = header.tensor("blk.0.ffn_down.weight").unwrap();
    assert_eq!((down.shape(), down.elements(), down.bytes()), ([64, 32].as_slice(), 2048, 8192));
    assert_eq!(header.data_start() + down.offset() + down.bytes(), bytes.len() as u64);
}

#[test]
fn quantised_tensors_take_whole_blocks() {
    let q8 = bytes(&File::new().tensor("a", &[64, 2], 8));
    assert_eq!(parse(&q8).unwrap().tensor("a").unwrap().bytes(), 2 * 2 * 34);
    let mut torn = q8;
    let side = after(&torn, "a") + 4;
    torn[side] = 63;
    assert_eq!(
        parse(&torn).unwrap_err().to_string(),
        "tensor `a` has a shape that cannot be: rows that are no whole number of blocks"
    );
}

#[test]
fn every_beginning_of_a_header_asks_for_more_and_every_short_file_is_truncated() {
    let whole = bytes(&File::tiny_llama());
    let header_end = parse(&whole).unwrap().data_start() as usize;
    for cut in 0..header_end - 32 {
        let head = &whole[..cut];
        assert_eq!(Header::parse(head, whole.len() as u64).unwrap_err(), Error::MoreNeeded { have: cut });
        assert_eq!(parse(head).unwrap_err(), Error::Truncated);
    }
    assert!(Header::parse(&whole[..header_end], whole.len() as u64).is_ok());
    let without_data = Header::parse(&whole[..header_end], header_end as u64);
    assert!(matches!(without_data, Err(Error::OutsideFile { .. })));
}

#[test]
fn a_header_without_end_is_refused_at_the_limit() {
    let mut endless = bytes(&File::new())[..24].to_vec();
    endless[16] = 1;
    endless.extend(u64::MAX.to_le_bytes());
    endless.resize(HEADER_BYTES_MAX, 0);
    assert_eq!(Header::parse(&endless, u64::MAX).unwrap_err(), Error::HeaderTooLong { max: HEADER_BYTES_MAX });
    endless.resize(HEADER_BYTES_MAX + 9, 0);
    assert_eq!(parse(&endless).unwrap_err(), Error::HeaderTooLong { max: HEADER_BYTES_MAX });
}

#[test]
fn only_versions_2_and_3_of_this_byte_order_are_read() {
    let mut file = bytes(&File::tiny_llama());
    file[4] = 2;
    assert_eq!(parse(&file).unwrap().version(), 2);
    for version in [0u32, 1, 4, 1000] {
        file[4..8].copy_from_slice(&version.to_le_bytes());
        assert_eq!(parse(&file).unwrap_err(), Error::Version(version));
    }
    file[4..8].copy_from_slice(&3u32.to_be_bytes());
    assert_eq!(parse(&file).unwrap_err(), Error::BigEndian);
    file[..4].copy_from_slice(b"PK\x03\x04");
    assert_eq!(parse(&file).unwrap_err(), Error::Magic(*b"PK\x03\x04"));
}

#[test]
fn announced_counts_are_limits_not_promises() {
    let mut file = bytes(&File::tiny_llama());
    file[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(parse(&file).unwrap_err(), Error::TooMany { what: "tensors", .. }));
    file[8..16].copy_from_slice(&TENSORS_MAX.to_le_bytes());
    file[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(parse(&file).unwrap_err(), Error::TooMany { what: "metadata entries", .. }));

    for count in [u64::MAX, u64::MAX / 4, 1 << 40] {
        let mut list = bytes(&File::new().u32s("list", &[1, 2, 3]));
        let at = after(&list, "list") + 8;
        list[at..at + 8].copy_from_slice(&count.to_le_bytes());
        assert_eq!(parse(&list).unwrap_err(), Error::Truncated);
        let mut texts = bytes(&File::new().texts("list", &["a", "b"]));
        texts[at..at + 8].copy_from_slice(&count.to_le_bytes());
        assert_eq!(parse(&texts).unwrap_err(), Error::Truncated);
    }
}

#[test]
fn a_name_stands_once() {
    let two = File::new().tensor("same", &[1], 0).tensor("same", &[1], 0);
    assert_eq!(parse(&bytes(&two)).unwrap_err(), Error::Duplicate("same".to_owned()));
    let mut keys = bytes(&File::new().u32("a", 1).u32("b", 2));
    let b = after(&keys, "b") - 1;
    keys[b] = b'a';
    assert_eq!(parse(&keys).unwrap_err(), Error::Duplicate("a".to_owned()));
}

#[test]
fn names_are_text_of_a_fair_length() {
    let long = File::new().tensor(&"x".repeat(64), &[1], 0);
    assert!(matches!(parse(&bytes(&long)).unwrap_err(), Error::Name { what: "tensor", index: 0, .. }));
    let empty = File::new().u32("", 1);
    assert!(matches!(parse(&bytes(&empty)).unwrap_err(), Error::Name { what: "metadata entry", .. }));
    let mut broken = bytes(&File::new().u32("key", 1));
    let y = after(&broken, "key") - 1;
    broken[y] = 0xff;
    assert!(matches!(parse(&broken).unwrap_err(), Error::Name { what: "metadata entry", .. }));
}

#[test]
fn unknown_types_and_nested_arrays_are_refused() {
    let with_type = |number: u32| {
        let mut file = bytes(&File::new().u32("key", 1));
        let at = after(&file, "key");
        file[at..at + 4].copy_from_slice(&number.to_le_bytes());
        parse(&file).map(|_| ()).unwrap_err()
    };
    assert_eq!(with_type(13), Error::Kind { key: "key".to_owned(), kind: 13 });
    let nested = |inner: u32| {
        let mut file = bytes(&File::new().u32s("key", &[1]));
        let at = after(&file, "key") + 4;
        file[at..at + 4].copy_from_slice(&inner.to_le_bytes());
        parse(&file).map(|_| ()).unwrap_err()
    };
    assert_eq!(nested(9), Error::Nested("key".to_owned()));
    assert_eq!(nested(77), Error::Kind { key: "key".to_owned(), kind: 77 });
}

#[test]
fn shapes_that_overflow_are_refused() {
    for shape in [[u64::MAX, 1], [1 << 62, 4], [1 << 32, 1 << 32], [0, u64::MAX]] {
        let mut file = bytes(&File::new().tensor("big", &[1, 1], 0));
        let at = after(&file, "big") + 4;
        file[at..at + 8].copy_from_slice(&shape[0].to_le_bytes());
        file[at + 8..at + 16].copy_from_slice(&shape[1].to_le_bytes());
        assert!(matches!(parse(&file).unwrap_err(), Error::Shape { .. }), "{shape:?}");
    }
    let five = File::new().tensor("deep", &[1, 1, 1, 1, 1], 0);
    assert!(matches!(parse(&bytes(&five)).unwrap_err(), Error::Shape { .. }));
}

#[test]
fn tensors_lie_in_order_and_inside_the_file() {
    let two = bytes(&File::new().tensor("one", &[8], 0).tensor("two", &[8], 0));
    assert!(parse(&two).is_ok());
    let offset = after(&two, "two") + 4 + 8 + 4;
    for wrong in [0u64, 1, 31, 64, u64::MAX] {
        let mut file = two.clone();
        file[offset..offset + 8].copy_from_slice(&wrong.to_le_bytes());
        assert!(matches!(parse(&file).unwrap_err(), Error::Offset { expected: 32, .. }), "{wrong}");
    }
    assert!(matches!(parse(&two[..two.len() - 1]).unwrap_err(), Error::OutsideFile { .. }));
}

#[test]
fn alignment_is_a_power_of_two() {
    for (alignment, good) in [(0, false), (1, true), (3, false), (32, true), (1 << 20, true), (1 << 21, false)] {
        let file = bytes(&File::new().u32("general.alignment", alignment));
        assert_eq!(parse(&file).is_ok(), good, "{alignment}");
    }
    let text = bytes(&File::new().text("general.alignment", "wide"));
    assert_eq!(parse(&text).unwrap_err(), Error::Alignment);
}
