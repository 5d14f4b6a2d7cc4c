//! Writes small files, for tests. What it writes is well-formed as long as the calls make sense together.

use std::collections::BTreeMap;

use crate::tensor::TensorType;

/// A file to be: say something twice and the later one holds.
#[derive(Debug, Clone, Default)]
pub struct File {
    metadata: BTreeMap<String, Vec<u8>>,
    tensors: Vec<(String, Vec<u64>, u32)>,
}

impl File {
    pub fn new() -> Self {
        Self::default()
    }

    /// Of one layer, complete to a loader that reads headers; its weights are zeros.
    pub fn tiny_llama() -> Self {
        let pieces: Vec<String> = (0..64).map(|id| format!("t{id}")).collect();
        let mut pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        pieces[..3].copy_from_slice(&["<unk>", "<s>", "</s>"]);
        let file = Self::new()
            .text("general.architecture", "llama")
            .text("general.name", "tiny")
            .u32("general.file_type", 0)
            .u32("llama.context_length", 64)
            .u32("llama.embedding_length", 32)
            .u32("llama.block_count", 1)
            .u32("llama.feed_forward_length", 64)
            .u32("llama.attention.head_count", 4)
            .u32("llama.attention.head_count_kv", 2)
            .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
            .text("tokenizer.ggml.model", "llama")
            .texts("tokenizer.ggml.tokens", &pieces)
            .u32("tokenizer.ggml.bos_token_id", 1)
            .u32("tokenizer.ggml.eos_token_id", 2);
        let shapes: [(&str, &[u64]); 11] = [
            ("token_embd.weight", &[32, 64]),
            ("output_norm.weight", &[32]),
            ("blk.0.attn_norm.weight", &[32]),
            ("blk.0.attn_q.weight", &[32, 32]),
            ("blk.0.attn_k.weight", &[32, 16]),
            ("blk.0.attn_v.weight", &[32, 16]),
            ("blk.0.attn_output.weight", &[32, 32]),
            ("blk.0.ffn_norm.weight", &[32]),
            ("blk.0.ffn_gate.weight", &[32, 64]),
            ("blk.0.ffn_up.weight", &[32, 64]),
            ("blk.0.ffn_down.weight", &[64, 32]),
        ];
        shapes.into_iter().fold(file, |file, (name, shape)| file.tensor(name, shape, 0))
    }

    pub fn u32(self, key: &str, number: u32) -> Self {
        self.entry(key, 4, &number.to_le_bytes())
    }

    pub fn f32(self, key: &str, number: f32) -> Self {
        self.entry(key, 6, &number.to_le_bytes())
    }

    pub fn bool(self, key: &str, truth: bool) -> Self {
        self.entry(key, 7, &[u8::from(truth)])
    }

    pub fn text(self, key: &str, text: &str) -> Self {
        self.entry(key, 8, &string(text))
    }

    pub fn u32s(self, key: &str, numbers: &[u32]) -> Self {
        let elements = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.array(key, 4, numbers.len(), elements)
    }

    pub fn i32s(self, key: &str, numbers: &[i32]) -> Self {
        let elements = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.array(key, 5, numbers.len(), elements)
    }

    pub fn texts(self, key: &str, texts: &[&str]) -> Self {
        let elements = texts.iter().flat_map(|text| string(text)).collect();
        self.array(key, 8, texts.len(), elements)
    }

    /// `kind` is ggml's number.
    pub fn tensor(mut self, name: &str, shape: &[u64], kind: u32) -> Self {
        self.tensors.push((name.to_owned(), shape.to_vec(), kind));
        self
    }

    fn array(self, key: &str, kind: u32, count: usize, elements: Vec<u8>) -> Self {
        let head = [kind.to_le_bytes().as_slice(), &(count as u64).to_le_bytes()].concat();
        self.entry(key, 9, &[head, elements].concat())
    }

    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.metadata.insert(key.to_owned(), [kind.to_le_bytes().as_slice(), value].concat());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            bytes.extend(string(key));
            bytes.extend(value);
        }
        let mut offset = 0;
        for (name, shape, kind) in &self.tensors {
            bytes.extend(string(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            bytes.extend(shape.iter().flat_map(|side| side.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(u64::to_le_bytes(offset));
            let packing = TensorType::from_number(*kind).expect("tests ask for types that exist");
            offset = (offset + packing.bytes_of(shape.iter().product())).next_multiple_of(32);
        }
        bytes.resize(bytes.len().next_multiple_of(32) + offset as usize, 0);
        bytes
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
