//! How a batch lies on disk: in sectors that each say whether they are whole and where they belong.
//!
//! A sector of 512 bytes is the most that every disk writes in full or not at all. So after a power cut each sector of
//! the batch being written is blank, as it was before, or whole; any other bytes are damage, in the last batch too. That
//! is what lets one sync do for a batch: no second place has to vouch for it.
//!
//! A batch starts a page, so that no page that was acknowledged is written again.

/// What the page cache and today's disks write at once.
pub(super) const PAGE_BYTES: usize = 4096;

const SECTOR_BYTES: usize = 512;
const CHECKSUM_BYTES: usize = 8;

/// Checksum, number of the batch, place of the sector in it.
const HEAD_BYTES: usize = CHECKSUM_BYTES + 8 + 4;
const PAYLOAD_BYTES: usize = SECTOR_BYTES - HEAD_BYTES;

/// The body's own length stands before it.
const LEN_BYTES: usize = 4;

/// A body being put together.
pub(super) struct Body(Vec<u8>);

impl Body {
    /// Room for `bytes`, and for the length in front.
    pub(super) fn with_capacity(bytes: usize) -> Body {
        let mut body = Vec::with_capacity(LEN_BYTES + bytes);
        body.resize(LEN_BYTES, 0);
        Body(body)
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The pages of batch `number`, which is not zero or the batch is a segment's head.
    pub(super) fn seal(mut self, number: u64) -> Vec<u8> {
        let len = u32::try_from(self.0.len() - LEN_BYTES).expect("the queue bounds a batch far below 4 GiB");
        self.0[..LEN_BYTES].copy_from_slice(&len.to_le_bytes());
        let sectors = self.0.len().div_ceil(PAYLOAD_BYTES);
        let mut pages = vec![0; (sectors * SECTOR_BYTES).next_multiple_of(PAGE_BYTES)];
        for (place, (sector, payload)) in pages.chunks_mut(SECTOR_BYTES).zip(self.0.chunks(PAYLOAD_BYTES)).enumerate() {
            let place = u32::try_from(place).expect("fewer sectors than bytes");
            sector[CHECKSUM_BYTES..][..8].copy_from_slice(&number.to_le_bytes());
            sector[CHECKSUM_BYTES + 8..HEAD_BYTES].copy_from_slice(&place.to_le_bytes());
            sector[HEAD_BYTES..][..payload.len()].copy_from_slice(payload);
            let sum = checksum(&sector[CHECKSUM_BYTES..]);
            sector[..CHECKSUM_BYTES].copy_from_slice(&sum);
        }
        pages
    }
}

/// The body of batch `number` and the bytes it takes, if `bytes` begin with all of it.
pub(super) fn open(bytes: &[u8], number: u64) -> Option<(Vec<u8>, usize)> {
    let part = |place: usize| payload(bytes.get(place * SECTOR_BYTES..(place + 1) * SECTOR_BYTES)?, number, place);
    let len = u32::from_le_bytes(*part(0)?.first_chunk()?);
    let end = LEN_BYTES.checked_add(usize::try_from(len).ok()?)?;
    let sectors = end.div_ceil(PAYLOAD_BYTES);
    let taken = (sectors * SECTOR_BYTES).next_multiple_of(PAGE_BYTES);
    if !is_blank(bytes.get(sectors * SECTOR_BYTES..taken)?) {
        return None;
    }
    let mut body = Vec::with_capacity(sectors * PAYLOAD_BYTES);
    for place in 0..sectors {
        body.extend_from_slice(part(place)?);
    }
    body.truncate(end);
    body.drain(..LEN_BYTES);
    Some((body, taken))
}

/// Whether a power cut can have left this where batch `number` was being written, or nothing yet.
pub(super) fn may_be_torn(bytes: &[u8], number: u64) -> bool {
    let fits = |(place, sector)| is_blank(sector) || payload(sector, number, place).is_some();
    bytes.chunks(SECTOR_BYTES).enumerate().all(fits)
}

pub(super) fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// What a sector holds, if it is whole and the one expected.
fn payload(sector: &[u8], number: u64, place: usize) -> Option<&[u8]> {
    let (sum, rest) = sector.split_first_chunk::<CHECKSUM_BYTES>()?;
    let (found, payload) = rest.split_first_chunk::<8>()?;
    let (at, payload) = payload.split_first_chunk::<4>()?;
    let expected = u64::from_le_bytes(*found) == number && usize::try_from(u32::from_le_bytes(*at)) == Ok(place);
    (expected && sector.len() == SECTOR_BYTES && checksum(rest) == *sum).then_some(payload)
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *blake3::hash(bytes).as_bytes().first_chunk().expect("a hash is longer")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::rig::Dice;

    fn sealed(number: u64, bytes: &[u8]) -> Vec<u8> {
        let mut body = Body::with_capacity(bytes.len());
        body.push(bytes);
        body.seal(number)
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at % 251) as u8 + 1).collect()
    }

    #[test]
    fn a_batch_of_any_length_is_read_back_and_ends_with_a_page() {
        for len in (0..30_000).step_by(487).chain([488, 489, 3931, 3932, 3933]) {
            let pages = sealed(7, &bytes(len));
            assert_eq!(pages.len() % PAGE_BYTES, 0);
            assert_eq!(open(&pages, 7), Some((bytes(len), pages.len())));
            assert_eq!(open(&pages, 8), None);
            let followed = [pages.clone(), sealed(8, &bytes(9))].concat();
            assert_eq!(open(&followed, 7), Some((bytes(len), pages.len())));
        }
    }

    #[test]
    fn any_flipped_bit_is_neither_a_batch_nor_a_torn_one() {
        let pages = sealed(7, &bytes(600));
        for bit in 0..pages.len() * 8 {
            let mut flipped = pages.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&flipped, 7), None, "bit {bit}");
            assert!(!may_be_torn(&flipped, 7), "bit {bit}");
        }
    }

    #[test]
    fn a_batch_without_any_of_its_sectors_is_torn_and_not_open() {
        let mut dice = Dice::new();
        let pages = sealed(7, &bytes(9000));
        let sectors = (9000 + LEN_BYTES).div_ceil(PAYLOAD_BYTES);
        for _ in 0..2000 {
            let mut torn = pages.clone();
            let odds = dice.below(sectors as u64);
            let mut lost = 0;
            for sector in torn.chunks_mut(SECTOR_BYTES).take(sectors) {
                if dice.below(sectors as u64) <= odds {
                    sector.fill(0);
                    lost += 1;
                }
            }
            assert_eq!(open(&torn, 7).is_some(), lost == 0);
            assert!(may_be_torn(&torn, 7));
            assert_eq!(may_be_torn(&torn, 6), lost == sectors);
        }
    }

    #[test]
    fn a_sector_in_anothers_place_is_damage() {
        let pages = sealed(7, &bytes(9000));
        let mut moved = pages.clone();
        moved.copy_within(SECTOR_BYTES..2 * SECTOR_BYTES, 3 * SECTOR_BYTES);
        assert_eq!(open(&moved, 7), None);
        assert!(!may_be_torn(&moved, 7));
    }
}
