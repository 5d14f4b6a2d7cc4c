//! Ten thousand damaged headers: each is read or refused, and costs no more than its own length warrants.

use crate::build::File;
use crate::{Facts, Header, Host, Needs, Tensor, probe};

/// One run is one sequence: a failure prints the case, which is then run alone.
struct Dice(u64);

impl Dice {
    /// SplitMix64.
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end.max(1) as u64) as usize
    }
}

/// Numbers at which arithmetic goes wrong.
const EXTREMES: [u64; 10] =
    [0, 1, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX - 31, u64::MAX];

fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = dice.below(bytes.len());
        match dice.below(6) {
            0 => bytes[at] ^= 1 << dice.below(8),
            1 => bytes[at] = dice.roll() as u8,
            2 => bytes.truncate(at),
            3 => {
                let extreme = EXTREMES[dice.below(EXTREMES.len())].to_le_bytes();
                let width = extreme.len().min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&extreme[..width]);
            }
            4 => {
                let from = dice.below(bytes.len());
                let length = dice.below(64).min(bytes.len() - from);
                let piece = bytes[from..from + length].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let end = (at + dice.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
}

#[test]
fn ten_thousand_damaged_headers_are_read_or_refused() {
    let seeds = [
        File::tiny_llama().bytes(),
        File::tiny_llama().bool("a", true).f32("b", f32::NAN).u32s("c", &[1; 40]).bytes(),
        File::new().texts("tokenizer.ggml.tokens", &["", "a", "\u{10ffff}"]).tensor("q", &[256, 3], 12).bytes(),
    ];
    let header_ends =
        seeds.each_ref().map(|seed| Header::parse(seed, seed.len() as u64).unwrap().data_start() as usize);
    let mut dice = Dice(0x6f6d_7821);
    let (mut read, mut refused) = (0, 0);
    for case in 0..10_000 {
        let chosen = case % seeds.len();
        // Damage in the weights is nobody's business here: most of it goes to the header.
        let mut bytes = seeds[chosen][..header_ends[chosen]].to_vec();
        mutate(&mut bytes, &mut dice);
        bytes.extend(&seeds[chosen][header_ends[chosen]..]);
        let size = [bytes.len() as u64, u64::MAX][dice.below(2)];
        match Header::parse(&bytes, size) {
            Err(error) => {
                assert!(error.to_string().len() < 1000 + bytes.len(), "case {case}");
                refused += 1;
            }
            Ok(header) => {
                read += 1;
                assert!(header.tensors().len() * 24 <= bytes.len(), "case {case}");
                assert!(header.metadata().len() * 13 <= bytes.len(), "case {case}");
                let held = size_of::<Tensor<'_>>() * header.tensors().len().next_power_of_two();
                assert!(held <= 16 * bytes.len(), "case {case}: {held} bytes held");
                for array in header.metadata().values().filter_map(|value| value.as_array()) {
                    assert_eq!(array.iter().count() as u64, array.len(), "case {case}");
                }
                Facts::of(&header);
                let host = Host { memory_bytes: dice.roll(), cpu_lacks: None };
                // Either answer is right for what damage left; that there is one is what counts.
                let _ = probe(&header, Needs { cached_tokens: dice.roll() }, host);
            }
        }
    }
    // Mutations that never broke anything, or left nothing whole, would show nothing.
    assert!(read > 500 && refused > 5_000, "{read} read, {refused} refused");
}
