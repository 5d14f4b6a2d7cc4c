//! A model small enough to be made by each test that needs one: random weights, a vocabulary of single characters. It
//! never ends by itself and says nothing of sense, but what it says depends on every token before.

use std::fs;
use std::path::{Path, PathBuf};

use gguf::Header;
use gguf::build::File;

const WIDTH: u64 = 64;
const CACHED: u64 = 32;
const INNER: u64 = 96;
const LAYERS: u32 = 2;
pub(super) const CONTEXT: u32 = 2048;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const BYTE: i32 = 6;

/// `<unk>`, `<s>`, `</s>` and the 256 bytes come before the characters.
const FIRST_CHARACTER: usize = 3 + 256;

pub(super) fn write(folder: &Path) -> PathBuf {
    let path = folder.join("tiny.gguf");
    fs::write(&path, bytes()).expect("a folder to write to");
    path
}

pub(super) fn bytes() -> Vec<u8> {
    let (pieces, kinds) = vocabulary();
    let size = pieces.len() as u64;
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    let mut file = File::new()
        .text("general.architecture", "llama")
        .u32("llama.context_length", CONTEXT)
        .u32("llama.embedding_length", WIDTH as u32)
        .u32("llama.block_count", LAYERS)
        .u32("llama.feed_forward_length", INNER as u32)
        .u32("llama.attention.head_count", 4)
        .u32("llama.attention.head_count_kv", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &pieces)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .bool("tokenizer.ggml.add_bos_token", true)
        .bool("tokenizer.ggml.add_space_prefix", false)
        .tensor("token_embd.weight", &[WIDTH, size], 0)
        .tensor("output_norm.weight", &[WIDTH], 0)
        .tensor("output.weight", &[WIDTH, size], 0);
    for layer in 0..LAYERS {
        let shapes: [(&str, &[u64]); 9] = [
            ("attn_norm", &[WIDTH]),
            ("attn_q", &[WIDTH, WIDTH]),
            ("attn_k", &[WIDTH, CACHED]),
            ("attn_v", &[WIDTH, CACHED]),
            ("attn_output", &[WIDTH, WIDTH]),
            ("ffn_norm", &[WIDTH]),
            ("ffn_gate", &[WIDTH, INNER]),
            ("ffn_up", &[WIDTH, INNER]),
            ("ffn_down", &[INNER, WIDTH]),
        ];
        for (name, shape) in shapes {
            file = file.tensor(&format!("blk.{layer}.{name}.weight"), shape, 0);
        }
    }
    let mut bytes = file.bytes();
    fill(&mut bytes);
    bytes
}

fn vocabulary() -> (Vec<String>, Vec<i32>) {
    let control = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let characters = (' '..='~').map(|character| if character == ' ' { '▁' } else { character }.to_string());
    let pieces: Vec<String> = control.into_iter().chain(bytes).chain(characters).collect();
    let kind = |id: usize| match id {
        0 => UNKNOWN,
        1 | 2 => CONTROL,
        _ if id < FIRST_CHARACTER => BYTE,
        _ => NORMAL,
    };
    let kinds = (0..pieces.len()).map(kind).collect();
    (pieces, kinds)
}

/// Norms are ones; what would say anything but a character is zero; the rest is random, and always the same.
fn fill(bytes: &mut [u8]) {
    let header = Header::parse(bytes, bytes.len() as u64).expect("a header that was just written");
    let start = header.data_start();
    let tensors: Vec<(String, usize, usize)> = header
        .tensors()
        .iter()
        .map(|tensor| (tensor.name().to_owned(), (start + tensor.offset()) as usize, tensor.bytes() as usize))
        .collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    for (name, at, length) in tensors {
        for (index, number) in bytes[at..at + length].chunks_exact_mut(4).enumerate() {
            let value = match name.as_str() {
                _ if name.contains("norm") => 1.0,
                "output.weight" if index < FIRST_CHARACTER * WIDTH as usize => 0.0,
                "output.weight" => 0.5 * random(),
                "token_embd.weight" => random(),
                _ => 0.3 * random(),
            };
            number.copy_from_slice(&value.to_le_bytes());
        }
    }
}
