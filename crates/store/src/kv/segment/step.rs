//! What a batch says: one step in the life of the log. Replaying all of them in order gives the log.

use bytes::Bytes;

use super::frame::Body;
use crate::record::{Entry, Hash, RECORD_BYTES_MAX, Record};

const APPEND: u8 = 1;
const CUT_AFTER: u8 = 2;
const CUT_ALL: u8 = 3;

/// What stands before an entry's bytes: their length and the entry's hash.
const ENTRY_HEAD_BYTES: usize = 4 + 32;

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// At least one entry, with contiguous indexes.
    Append(Vec<Entry>),
    /// Removes what lies behind this index; everything, for `None`.
    CutAfter(Option<u64>),
}

impl Step {
    /// Only the first entry's predecessor is written: the others have theirs before them.
    pub(super) fn encode(&self) -> Body {
        match self {
            Step::Append(entries) => {
                let bytes: usize = entries.iter().map(|entry| ENTRY_HEAD_BYTES + entry.record.bytes.len()).sum();
                let mut body = Body::with_capacity(1 + 8 + 32 + bytes);
                let first = entries.first().expect("an append has entries");
                body.push(&[APPEND]);
                body.push(&first.record.index.to_le_bytes());
                body.push(&first.prev);
                for Entry { hash, record, .. } in entries {
                    let len = u32::try_from(record.bytes.len()).expect("a record's limit is below 4 GiB");
                    body.push(&len.to_le_bytes());
                    body.push(hash);
                    body.push(&record.bytes);
                }
                body
            }
            Step::CutAfter(last) => {
                let mut body = Body::with_capacity(1 + 8);
                body.push(&[if last.is_some() { CUT_AFTER } else { CUT_ALL }]);
                body.push(&last.unwrap_or_default().to_le_bytes());
                body
            }
        }
    }

    /// `None` for what no release wrote.
    pub(super) fn decode(body: &[u8]) -> Option<Step> {
        let (kind, rest) = body.split_first()?;
        let (index, rest) = rest.split_first_chunk::<8>()?;
        let index = u64::from_le_bytes(*index);
        match *kind {
            APPEND => {
                let (prev, rest) = rest.split_first_chunk::<32>()?;
                entries(index, *prev, rest).filter(|entries| !entries.is_empty()).map(Step::Append)
            }
            CUT_AFTER if rest.is_empty() => Some(Step::CutAfter(Some(index))),
            CUT_ALL if rest.is_empty() => Some(Step::CutAfter(None)),
            _ => None,
        }
    }
}

/// Each with bytes of its own, so that a cached record does not keep its whole batch in memory.
fn entries(first: u64, mut prev: Hash, mut rest: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut next = Some(first);
    while !rest.is_empty() {
        let (len, behind) = rest.split_first_chunk::<4>()?;
        let (hash, behind) = behind.split_first_chunk::<32>()?;
        let len = usize::try_from(u32::from_le_bytes(*len)).ok().filter(|len| *len <= RECORD_BYTES_MAX)?;
        let (bytes, behind) = behind.split_at_checked(len)?;
        let record = Record { index: next?, bytes: Bytes::copy_from_slice(bytes) };
        entries.push(Entry { prev, hash: *hash, record });
        (prev, rest, next) = (*hash, behind, next?.checked_add(1));
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rig::records;

    fn body(step: &Step) -> Vec<u8> {
        super::super::frame::open(&step.encode().seal(1), 1).unwrap().0
    }

    fn appended() -> Vec<Entry> {
        let mut tip = [3; 32];
        let chained = records(7..=12, 1).into_iter().map(|record| {
            let entry = Entry::chained(tip, record);
            tip = entry.hash;
            entry
        });
        chained.collect()
    }

    #[test]
    fn entries_come_back_with_their_chain() {
        let Some(Step::Append(found)) = Step::decode(&body(&Step::Append(appended()))) else { panic!("not an append") };
        assert_eq!(found.len(), 6);
        for (found, written) in found.iter().zip(appended()) {
            assert!(found.follows(&written.prev));
            assert_eq!((found.hash, &found.record), (written.hash, &written.record));
        }
    }

    #[test]
    fn a_cut_comes_back() {
        for last in [None, Some(0), Some(u64::MAX)] {
            let found = Step::decode(&body(&Step::CutAfter(last)));
            assert!(matches!(found, Some(Step::CutAfter(found)) if found == last));
        }
    }

    #[test]
    fn no_part_of_a_body_is_taken_for_a_whole_one() {
        for step in [Step::Append(appended()[..1].to_vec()), Step::CutAfter(Some(9))] {
            let body = body(&step);
            for len in 0..body.len() {
                assert!(Step::decode(&body[..len]).is_none(), "{len} of {}", body.len());
            }
            assert!(Step::decode(&[&body[..], &[0]].concat()).is_none());
        }
    }
}
