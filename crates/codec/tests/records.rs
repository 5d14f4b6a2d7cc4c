//! Golden bytes, versions, and input that lies about itself.

use std::collections::BTreeMap;

use codec::{Error, Record, decode, encode, from_bytes, to_bytes};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Kind {
    Plain,
    Named { name: String, weight: Option<u32> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Node {
    id: u64,
    labels: BTreeMap<String, String>,
    kinds: Vec<Kind>,
    key: [u8; 4],
    blob: Vec<u8>,
}

impl Record for Node {
    const VERSION: u8 = 3;
    const LIMIT: usize = 4096;

    fn decode_older(version: u8, body: &[u8]) -> Option<Result<Self, Error>> {
        let from_id = |id| Node { id, labels: BTreeMap::new(), kinds: vec![], key: [0; 4], blob: vec![] };
        (version == 2).then(|| from_bytes::<u64>(body).map(from_id))
    }
}

fn sample() -> Node {
    Node {
        id: 300,
        labels: BTreeMap::from([("zone".into(), "a".into())]),
        kinds: vec![Kind::Plain, Kind::Named { name: "x".into(), weight: Some(7) }],
        key: [1, 2, 3, 4],
        blob: vec![9, 8],
    }
}

#[test]
fn bytes_on_disk_stay_what_they_are() {
    let golden = [
        3, // version
        251, 44, 1, // id, as marked two-byte integer
        1, 4, b'z', b'o', b'n', b'e', 1, b'a', // labels
        2, 0, 1, 1, b'x', 1, 7, // kinds
        1, 2, 3, 4, // key: arrays have no length
        2, 9, 8, // blob
    ];
    assert_eq!(encode(&sample()).unwrap(), golden);
    assert_eq!(decode::<Node>(&golden).unwrap(), sample());
}

#[test]
fn an_older_version_is_read_through_its_own_step() {
    assert_eq!(decode::<Node>(&[2, 5]).unwrap().id, 5);
    assert_eq!(decode::<Node>(&[1, 5]), Err(Error::TooOld { found: 1 }));
}

#[test]
fn a_newer_version_is_refused_with_a_hint() {
    let refused = decode::<Node>(&[4, 5]).unwrap_err();
    assert_eq!(refused, Error::TooNew { found: 4, known: 3 });
    assert_eq!(refused.hint(), Some("update this node"));
}

#[test]
fn nothing_left_over_and_nothing_missing_is_accepted() {
    let whole = encode(&sample()).unwrap();
    assert_eq!(decode::<Node>(&[]), Err(Error::Empty));
    for cut in 1..whole.len() {
        assert!(matches!(decode::<Node>(&whole[..cut]), Err(Error::Malformed { .. })), "cut at {cut}");
    }
    let longer = [&whole[..], &[0]].concat();
    assert!(matches!(decode::<Node>(&longer), Err(Error::Malformed { .. })));
}

#[test]
fn a_record_past_its_limit_is_neither_written_nor_read() {
    let big = Node { blob: vec![0; Node::LIMIT], ..sample() };
    assert!(matches!(encode(&big), Err(Error::TooLong { limit: Node::LIMIT, .. })));
    assert!(matches!(decode::<Node>(&vec![3; Node::LIMIT + 1]), Err(Error::TooLong { .. })));
}

#[test]
fn a_claimed_length_is_refused_before_memory_is_reserved_for_it() {
    // Strings that say they are 2^60 bytes, 40 MiB and 2 KiB long. Running into the end of the input would mean that the
    // room had been reserved already; running into the budget means it was not.
    for claim in [vec![253, 0, 0, 0, 0, 0, 0, 0, 16], vec![252, 0, 0, 128, 2], vec![251, 0, 8]] {
        let Err(Error::Malformed { reason }) = from_bytes::<String>(&claim) else { panic!("`{claim:?}` was accepted") };
        assert!(reason.contains("LimitExceeded"), "{reason}");
    }
}

#[test]
fn a_long_honest_record_fits_its_budget() {
    // The costliest case: one byte on the wire charged as sixteen.
    let many: Vec<u128> = vec![1; 100_000];
    assert_eq!(from_bytes::<Vec<u128>>(&to_bytes(&many).unwrap()).unwrap(), many);
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_back(id: u64, key: [u8; 4], blob in proptest::collection::vec(any::<u8>(), 0..300), name: String) {
        let node = Node { id, labels: BTreeMap::new(), kinds: vec![Kind::Named { name, weight: None }], key, blob };
        prop_assert_eq!(decode::<Node>(&encode(&node).unwrap()).unwrap(), node);
    }

    #[test]
    fn no_input_makes_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(node) = decode::<Node>(&[&[3], &bytes[..]].concat()) {
            prop_assert_eq!(decode::<Node>(&encode(&node).unwrap()).unwrap(), node);
        }
    }

    #[test]
    fn a_changed_byte_is_an_error_or_another_value_but_never_a_panic(at in 0usize..26, to: u8) {
        let mut bytes = encode(&sample()).unwrap();
        let at = at % bytes.len();
        bytes[at] = to;
        if let Ok(node) = decode::<Node>(&bytes) {
            prop_assert_eq!(decode::<Node>(&encode(&node).unwrap()).unwrap(), node);
        }
    }
}
