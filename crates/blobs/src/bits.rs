//! A set of chunks.

use std::fmt;

const WORD: usize = u64::BITS as usize;

/// Which of the numbers below `len` are in. Numbers beyond it are never in.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bits {
    words: Vec<u64>,
    len: u32,
    count: u32,
}

impl Bits {
    pub(crate) fn none(len: u32) -> Self {
        Self { words: vec![0; (len as usize).div_ceil(WORD)], len, count: 0 }
    }

    pub(crate) fn all(len: u32) -> Self {
        let mut bits = Self::none(len);
        bits.words.fill(u64::MAX);
        if let (Some(last), used @ 1..) = (bits.words.last_mut(), len as usize % WORD) {
            *last = u64::MAX >> (WORD - used);
        }
        bits.count = len;
        bits
    }

    /// `None` where these are not exactly the bytes for `len` numbers.
    pub(crate) fn from_bytes(bytes: &[u8], len: u32) -> Option<Self> {
        if bytes.len() != (len as usize).div_ceil(8) {
            return None;
        }
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        };
        let words: Vec<u64> = bytes.chunks(8).map(word).collect();
        let count = words.iter().map(|word| word.count_ones()).sum();
        let used = len as usize % WORD;
        let beyond = words.last().is_some_and(|last| used > 0 && last >> used != 0);
        (!beyond).then_some(Self { words, len, count })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate((self.len as usize).div_ceil(8));
        bytes
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count == self.len
    }

    pub(crate) fn has(&self, at: u32) -> bool {
        at < self.len && self.words[at as usize / WORD] >> (at as usize % WORD) & 1 == 1
    }

    /// Says whether it was out before.
    pub(crate) fn put(&mut self, at: u32) -> bool {
        let new = at < self.len && !self.has(at);
        if new {
            self.words[at as usize / WORD] |= 1 << (at as usize % WORD);
            self.count += 1;
        }
        new
    }

    /// Says whether it was in before.
    pub(crate) fn take(&mut self, at: u32) -> bool {
        let old = self.has(at);
        if old {
            self.words[at as usize / WORD] &= !(1 << (at as usize % WORD));
            self.count -= 1;
        }
        old
    }

    /// In rising order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        Ones::of(self.words.iter().copied(), 0)
    }

    /// What is in both, in rising order from `from` on.
    pub(crate) fn both_from<'a>(&'a self, other: &'a Self, from: u32) -> impl Iterator<Item = u32> + 'a {
        let first = (from as usize / WORD).min(self.words.len());
        let words = self.words.iter().zip(&other.words).skip(first).map(|(a, b)| a & b);
        Ones::of(words, first).skip_while(move |at| *at < from)
    }

    /// What is in here and not in there, in rising order.
    pub(crate) fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u32> + 'a {
        Ones::of(self.words.iter().zip(&other.words).map(|(a, b)| a & !b), 0)
    }

    /// The first that is out, from `from` on.
    pub(crate) fn first_missing(&self, from: u32) -> u32 {
        let mut at = from;
        while at < self.len {
            let word = !self.words[at as usize / WORD] >> (at as usize % WORD);
            match word {
                0 => at = (at / WORD as u32 + 1) * WORD as u32,
                word => return (at + word.trailing_zeros()).min(self.len),
            }
        }
        self.len
    }
}

struct Ones<I> {
    words: I,
    word: u64,
    base: usize,
}

impl<I: Iterator<Item = u64>> Ones<I> {
    /// `words` begins with the one of this index.
    fn of(words: I, first: usize) -> Self {
        // Wraps to the right base with the first word.
        Self { words, word: 0, base: (first * WORD).wrapping_sub(WORD) }
    }
}

impl<I: Iterator<Item = u64>> Iterator for Ones<I> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.word == 0 {
            self.word = self.words.next()?;
            self.base = self.base.wrapping_add(WORD);
        }
        let at = self.base + self.word.trailing_zeros() as usize;
        self.word &= self.word - 1;
        Some(at as u32)
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.count, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_into_it_and_nothing_beyond_its_length() {
        for len in [0, 1, 63, 64, 65, 200] {
            let mut bits = Bits::none(len);
            assert!((0..len).step_by(3).all(|at| bits.put(at)) && !bits.put(len) && !bits.has(len + 70));
            assert!((0..len).all(|at| bits.has(at) == (at % 3 == 0)));
            assert_eq!(bits.iter().collect::<Vec<_>>(), (0..len).step_by(3).collect::<Vec<_>>());
            assert_eq!(bits.count(), len.div_ceil(3));
            assert_eq!(Bits::from_bytes(&bits.to_bytes(), len), Some(bits.clone()));
            let all = Bits::all(len);
            assert!(all.is_full() && all.iter().count() == len as usize);
            assert_eq!(all.without(&bits).count(), (len - bits.count()) as usize);
            assert!((0..len).step_by(3).all(|at| bits.take(at)) && !bits.take(0) && bits.count() == 0);
        }
    }

    #[test]
    fn bytes_of_another_length_or_with_more_than_it_holds_are_refused() {
        assert!(Bits::from_bytes(&[0xff], 8).is_some());
        assert!(Bits::from_bytes(&[0xff], 7).is_none());
        assert!(Bits::from_bytes(&[0xff, 0], 8).is_none());
        assert!(Bits::from_bytes(&[], 1).is_none());
        assert!(Bits::from_bytes(&[], 0).is_some());
    }

    #[test]
    fn the_first_missing_and_what_two_have_in_common_are_found_from_anywhere() {
        let mut bits = Bits::all(130);
        assert_eq!(bits.first_missing(0), 130);
        bits.take(5);
        bits.take(128);
        assert_eq!([0, 5, 6, 128, 129].map(|from| bits.first_missing(from)), [5, 5, 128, 128, 130]);
        let mut few = Bits::none(130);
        [4, 5, 64, 128, 129].iter().for_each(|at| _ = few.put(*at));
        assert_eq!(few.both_from(&bits, 0).collect::<Vec<_>>(), [4, 64, 129]);
        assert_eq!(few.both_from(&bits, 64).collect::<Vec<_>>(), [64, 129]);
        assert_eq!(few.both_from(&bits, 65).collect::<Vec<_>>(), [129]);
        assert_eq!(few.both_from(&bits, 130).count(), 0);
    }
}
