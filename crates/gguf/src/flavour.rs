//! Files made for Ollama's own engine, which llama.cpp refuses or misreads.
//!
//! Ollama loads them through a layer that renames keys and tensors in memory. The signs here are those by which that
//! layer knows its files: `llama/compat/llama-ollama-compat.cpp` of ollama/ollama at `fb307609`. What it repairs at
//! load time cannot run here until the file itself is repaired.

use crate::{Header, Value};

/// Architectures that exist in Ollama's files alone; llama.cpp knows the models under other names.
const NAMES: [&str; 8] =
    ["deepseekocr", "glm4moelite", "glmocr", "gptoss", "mllama", "nemotron_h_omni", "olmo3", "qwen25vl"];

/// What of other models stands in the same file: pictures, sound, the bridge to text, drafting.
const EMBEDDED: [(&str, &[&str]); 8] = [
    ("gemma3", &["v.", "mm."]),
    ("gemma4", &["a.", "v.", "mm.", "model.vision_tower."]),
    ("llama4", &["v.", "mm."]),
    ("mistral3", &["v.", "mm."]),
    ("nemotron_h_moe", &["blk.0.ffn_latent_in", "blk.1.ffn_latent_in", "mtp."]),
    ("qwen35", &["mtp.", "v."]),
    ("qwen35moe", &["mtp.", "v."]),
    ("laguna", &["blk.0.attn_g.weight"]),
];

/// Keys, after the architecture's name, that llama.cpp's own converter does not write.
const KEYS: [(&str, &[&str]); 5] = [
    ("gemma3", &["mm.tokens_per_image", "rope.global.freq_base", "rope.local.freq_base"]),
    ("laguna", &["rope.swa.dimension_count", "rope.swa.freq_base"]),
    ("mistral3", &["rope.scaling.beta_fast", "rope.scaling.mscale_all_dim", "rope.scaling_beta"]),
    ("qwen35", &["vision.block_count", "image_token_id", "ssm.v_head_reordered", "rope.mrope_interleaved"]),
    (
        "qwen35moe",
        &[
            "vision.block_count",
            "image_token_id",
            "ssm.v_head_reordered",
            "rope.mrope_interleaved",
            "feed_forward_length",
        ],
    ),
];

/// Keys it always writes.
const KEYS_DUE: [(&str, &str); 3] = [
    ("gemma3", "attention.layer_norm_rms_epsilon"),
    ("qwen3vl", "rope.dimension_sections"),
    ("qwen3vlmoe", "rope.dimension_sections"),
];

/// By what the file is known as Ollama's own; `None` where it is not.
pub(crate) fn ollama_mark(header: &Header<'_>, architecture: &str) -> Option<String> {
    if NAMES.contains(&architecture) {
        return Some(format!("the architecture `{architecture}`"));
    }
    let of = |(known, _): &&(&str, _)| *known == architecture;
    let starts: &[&str] = EMBEDDED.iter().find(|row| row.0 == architecture).map_or(&[], |row| row.1);
    let tensor = header.tensors().iter().find(|tensor| starts.iter().any(|start| tensor.name().starts_with(start)));
    if let Some(tensor) = tensor {
        return Some(format!("the tensor `{}`", tensor.name()));
    }
    let keys: &[&str] = KEYS.iter().find(|row| row.0 == architecture).map_or(&[], |row| row.1);
    let keys = keys.iter().map(|key| format!("{architecture}.{key}"));
    if let Some(key) = keys.into_iter().find(|key| header.get(key).is_some()) {
        return Some(format!("the key `{key}`"));
    }
    if let Some((_, due)) = KEYS_DUE.iter().find(of) {
        let key = format!("{architecture}.{due}");
        if header.get(&key).is_none() {
            return Some(format!("the absence of `{key}`"));
        }
    }
    special_mark(header, architecture).map(str::to_owned)
}

fn special_mark(header: &Header<'_>, architecture: &str) -> Option<&'static str> {
    let text = |key: &str| header.get(key).and_then(Value::as_str);
    let has = |key: &str| header.get(key).is_some();
    let rows = |name: &str| header.tensor(name).and_then(|tensor| tensor.shape().get(1).copied());
    match architecture {
        "bert" => (header.get("tokenizer.ggml.precompiled_charsmap").and_then(Value::as_array))
            .is_some_and(|array| array.kind() == crate::Kind::String)
            .then_some("a `tokenizer.ggml.precompiled_charsmap` of strings"),
        "gemma3" => (has("tokenizer.ggml.add_padding_token") || has("tokenizer.ggml.add_unknown_token"))
            .then_some("tokenizer keys of Ollama's converter"),
        "gemma3n" => match (rows("token_embd.weight"), rows("per_layer_token_embd.weight")) {
            (Some(all), Some(text)) if all != text => Some("vocabularies of two sizes"),
            _ => None,
        },
        "gemma4" => (text("tokenizer.ggml.model") == Some("llama")).then_some("the tokenizer `llama`"),
        "lfm2" => (header.tensor("output_norm.weight").is_some() && header.tensor("token_embd_norm.weight").is_none())
            .then_some("the tensor `output_norm.weight`"),
        "llama" => lacks_llama3_splitter(header).then_some("a Llama 3 vocabulary without its `tokenizer.ggml.pre`"),
        "qwen3next" => (header.tensors().iter().any(|tensor| tensor.name().ends_with(".ssm_dt")))
            .then_some("tensors called `ssm_dt`"),
        _ => None,
    }
}

/// Such a file loads, but its text is cut into other tokens than the model was trained with.
fn lacks_llama3_splitter(header: &Header<'_>) -> bool {
    const EOT: u64 = 128_009;
    let splitter = header.get("tokenizer.ggml.pre").and_then(Value::as_str);
    if !matches!(splitter, None | Some("" | "default")) {
        return false;
    }
    let tokens = header.get("tokenizer.ggml.tokens").and_then(Value::as_array);
    let eot = tokens.and_then(|tokens| tokens.get(EOT));
    eot.is_some_and(|piece| piece == Value::String(b"<|eot_id|>"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::File;

    fn mark(file: &File, architecture: &str) -> Option<String> {
        let bytes = file.bytes();
        ollama_mark(&Header::parse(&bytes, bytes.len() as u64).unwrap(), architecture)
    }

    fn plain(architecture: &str) -> File {
        let file = File::new().text("general.architecture", architecture);
        let keys = KEYS_DUE.iter().filter(|(known, _)| *known == architecture);
        keys.fold(file, |file, (_, key)| file.u32(&format!("{architecture}.{key}"), 1))
    }

    #[test]
    fn files_of_llama_cpp_s_own_converter_bear_no_mark() {
        for architecture in ["llama", "gemma3", "gemma4", "qwen35", "qwen35moe", "lfm2", "qwen3vl", "mistral3", "bert"]
        {
            let file = plain(architecture).tensor("blk.0.attn_q.weight", &[32, 32], 0);
            assert_eq!(mark(&file, architecture), None, "{architecture}");
        }
        assert_eq!(mark(&File::tiny_llama(), "llama"), None);
    }

    #[test]
    fn each_mark_is_found() {
        for name in NAMES {
            assert!(mark(&plain(name), name).is_some(), "{name}");
        }
        for (architecture, starts) in EMBEDDED {
            for start in starts {
                let file = plain(architecture).tensor(&format!("{start}x"), &[32, 32], 0);
                assert!(mark(&file, architecture).unwrap().contains(start), "{architecture} {start}");
            }
        }
        for (architecture, keys) in KEYS {
            for key in keys {
                let key = format!("{architecture}.{key}");
                assert!(mark(&plain(architecture).u32(&key, 1), architecture).unwrap().contains(&key), "{key}");
            }
        }
        for (architecture, key) in KEYS_DUE {
            let file = File::new().text("general.architecture", architecture);
            assert!(mark(&file, architecture).unwrap().contains(key), "{key}");
        }
    }

    #[test]
    fn special_marks_are_found() {
        let charsmap = plain("bert").texts("tokenizer.ggml.precompiled_charsmap", &["A", "B"]);
        assert!(mark(&charsmap, "bert").is_some());
        assert!(mark(&plain("gemma3").u32("tokenizer.ggml.add_padding_token", 0), "gemma3").is_some());
        let vocabulary = |rows| {
            let file = plain("gemma3n").tensor("token_embd.weight", &[32, rows], 0);
            file.tensor("per_layer_token_embd.weight", &[32, 7], 0)
        };
        assert!(mark(&vocabulary(8), "gemma3n").is_some());
        assert!(mark(&vocabulary(7), "gemma3n").is_none());
        assert!(mark(&plain("gemma4").text("tokenizer.ggml.model", "llama"), "gemma4").is_some());
        assert!(mark(&plain("lfm2").tensor("output_norm.weight", &[32], 0), "lfm2").is_some());
        assert!(mark(&plain("qwen3next").tensor("blk.0.ssm_dt", &[32], 0), "qwen3next").is_some());
    }

    #[test]
    fn a_llama_3_vocabulary_needs_its_splitter() {
        let mut pieces = vec!["x"; 128_010];
        pieces[128_009] = "<|eot_id|>";
        let file = plain("llama").texts("tokenizer.ggml.tokens", &pieces);
        assert!(mark(&file, "llama").is_some());
        assert!(mark(&file.clone().text("tokenizer.ggml.pre", "default"), "llama").is_some());
        assert!(mark(&file.text("tokenizer.ggml.pre", "llama-bpe"), "llama").is_none());
    }
}
