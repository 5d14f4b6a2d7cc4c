//! Weights made from a seed: a GGUF file as long as is wanted, any part of which can be had without the rest, so that
//! a model of gigabytes takes no memory.

use bytes::Bytes;

use crate::config::mix;

/// One layer of a llama. Its tensors are noise; only what stands before them means something.
#[derive(Debug, Clone)]
pub struct Weights {
    /// Everything before the tensors.
    head: Bytes,
    seed: u64,
    size: u64,
}

const WIDTH: u64 = 32;
const VOCABULARY: u64 = 64;
/// Tensors begin at multiples of it.
const ALIGNMENT: usize = 32;
const F32: u32 = 0;

impl Weights {
    /// At least as long as one layer of the least width, which is some tens of kilobytes.
    pub fn new(seed: u64, size: u64) -> Self {
        // What does not depend on the width is known from the least.
        let least = layer(1);
        let fixed = head(seed, 1).len() as u64 + bytes_of(&least) - 3 * 4 * WIDTH;
        let inner = (size.saturating_sub(fixed) / (3 * 4 * WIDTH)).max(1);
        let head = Bytes::from(head(seed, inner));
        let filled = head.len() as u64 + bytes_of(&layer(inner));
        Self { head, seed, size: size.max(filled) }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// What stands at `offset`; beyond the end it goes on as noise.
    pub fn read(&self, offset: u64, length: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(length + 8);
        if let Some(head) = usize::try_from(offset).ok().and_then(|from| self.head.get(from..)) {
            bytes.extend_from_slice(&head[..head.len().min(length)]);
        }
        let mut at = offset + bytes.len() as u64;
        while bytes.len() < length {
            let word = mix(self.seed ^ mix(at / 8)).to_le_bytes();
            let rest = &word[(at % 8) as usize..];
            bytes.extend_from_slice(rest);
            at += rest.len() as u64;
        }
        bytes.truncate(length);
        bytes.into()
    }
}

/// Names and shapes of its tensors. `inner` is how wide it is between its two halves, which is what makes it long.
fn layer(inner: u64) -> [(&'static str, Vec<u64>); 11] {
    [
        ("token_embd.weight", vec![WIDTH, VOCABULARY]),
        ("output_norm.weight", vec![WIDTH]),
        ("blk.0.attn_norm.weight", vec![WIDTH]),
        ("blk.0.attn_q.weight", vec![WIDTH, WIDTH]),
        ("blk.0.attn_k.weight", vec![WIDTH, WIDTH]),
        ("blk.0.attn_v.weight", vec![WIDTH, WIDTH]),
        ("blk.0.attn_output.weight", vec![WIDTH, WIDTH]),
        ("blk.0.ffn_norm.weight", vec![WIDTH]),
        ("blk.0.ffn_gate.weight", vec![WIDTH, inner]),
        ("blk.0.ffn_up.weight", vec![WIDTH, inner]),
        ("blk.0.ffn_down.weight", vec![inner, WIDTH]),
    ]
}

fn bytes_of(tensors: &[(&str, Vec<u64>)]) -> u64 {
    tensors.iter().map(|(_, shape)| 4 * shape.iter().product::<u64>()).sum()
}

fn head(seed: u64, inner: u64) -> Vec<u8> {
    let tensors = layer(inner);
    let mut head = b"GGUF".to_vec();
    head.extend(3_u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    let keys = head.len();
    let mut count = 0_u64;
    head.extend([0; 8]);
    let mut entry = |key: &str, kind: u32, value: &[u8]| {
        head.extend(text(key));
        head.extend(kind.to_le_bytes());
        head.extend_from_slice(value);
        count += 1;
    };
    const U32: u32 = 4;
    const FLOAT: u32 = 6;
    const TEXT: u32 = 8;
    const LIST: u32 = 9;
    entry("general.architecture", TEXT, &text("llama"));
    entry("general.name", TEXT, &text(&format!("fake {seed:016x}")));
    for (key, number) in [
        ("general.file_type", 0),
        ("llama.context_length", 8192),
        ("llama.embedding_length", WIDTH),
        ("llama.block_count", 1),
        ("llama.feed_forward_length", inner),
        ("llama.attention.head_count", 4),
    ] {
        entry(key, U32, &u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    }
    entry("llama.attention.layer_norm_rms_epsilon", FLOAT, &1e-5_f32.to_le_bytes());
    entry("tokenizer.ggml.model", TEXT, &text("llama"));
    let mut tokens = TEXT.to_le_bytes().to_vec();
    tokens.extend(VOCABULARY.to_le_bytes());
    tokens.extend((0..VOCABULARY).flat_map(|token| text(&format!("t{token}"))));
    entry("tokenizer.ggml.tokens", LIST, &tokens);
    head[keys..keys + 8].copy_from_slice(&count.to_le_bytes());
    let mut offset = 0_u64;
    for (name, shape) in &tensors {
        head.extend(text(name));
        head.extend(u32::try_from(shape.len()).expect("two at most").to_le_bytes());
        head.extend(shape.iter().flat_map(|length| length.to_le_bytes()));
        head.extend(F32.to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += 4 * shape.iter().product::<u64>();
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    head
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_as_long_as_told_and_their_tensors_lie_within() {
        for size in [0, 60_000, 1 << 20, 123_456_789] {
            let weights = Weights::new(7, size);
            let tensors = bytes_of(&layer(1));
            assert!(weights.size() == size || (size < tensors + 4096 && weights.size() < tensors + 4096), "{size}");
            assert!(weights.head.starts_with(b"GGUF") && weights.head.len().is_multiple_of(ALIGNMENT));
        }
        // What is left over behind the last tensor is less than one step of the width.
        let weights = Weights::new(7, 1 << 20);
        let inner = u64::from(number_behind(&weights.head, "llama.feed_forward_length"));
        let filled = weights.head.len() as u64 + bytes_of(&layer(inner));
        assert!(((1 << 20) - 3 * 4 * WIDTH..=1 << 20).contains(&filled), "{filled}");
    }

    #[test]
    fn any_part_is_as_it_is_in_the_whole_and_each_seed_has_its_own() {
        let weights = Weights::new(1, 100_000);
        let whole = weights.read(0, 100_000);
        for (from, length) in [(0, 1), (5, 100), (weights.head.len() - 3, 50), (99_001, 999), (31_337, 0)] {
            assert_eq!(weights.read(from as u64, length), whole[from..from + length], "{from} {length}");
        }
        assert_ne!(Weights::new(2, 100_000).read(50_000, 64), whole[50_000..50_064]);
    }

    fn number_behind(head: &[u8], key: &str) -> u32 {
        let at = head.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len() + 4;
        u32::from_le_bytes(head[at..at + 4].try_into().unwrap())
    }
}
