//! The typed view of a header: what the engine decides by and what `show` tells.

use crate::{Header, Value};

/// Owned, so that it outlives the bytes it was read from. Texts are as the file has them: check before showing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub architecture: String,
    pub name: Option<String>,
    /// How it is quantised, as Ollama's `quantization_level` says it; `unknown` where the file does not say.
    pub file_type: &'static str,
    /// Of all tensors together.
    pub parameters: u64,
    /// What the tensors take in memory.
    pub weight_bytes: u64,
    /// The window it was trained with, in tokens.
    pub context_length: Option<u64>,
    pub block_count: Option<u64>,
    pub embedding_length: Option<u64>,
    pub vocabulary: u64,
    /// What one token of context takes in the cache of keys and values, at 16 bits each. An upper bound: windows that
    /// slide and keys that are stored compressed take less.
    pub cache_bytes_per_token: u64,
    pub tokenizer: Option<String>,
    /// A Jinja template.
    pub chat_template: Option<String>,
    pub adds_bos: Option<bool>,
    /// The pieces that begin and end a text, where the vocabulary names them.
    pub bos: Option<String>,
    pub eos: Option<String>,
    /// Whether it yields one vector for a text, not more text.
    pub embeds: bool,
}

/// Bytes of one cached number.
const CACHE_NUMBER_BYTES: u64 = 2;
/// No file has more layers; what a header claims beyond it is not counted.
const BLOCKS_MAX: u64 = 1 << 12;
/// How many tokens are computed at once, of which all results are held, at four bytes a number.
const BATCH_TOKENS: u64 = 512;

/// The names of llama.cpp's `llama_ftype`, in Ollama's spelling.
const FILE_TYPES: [(u64, &str); 36] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (24, "IQ1_S"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (31, "IQ1_M"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
    (39, "NVFP4"),
    (40, "Q1_0"),
    (41, "Q2_0"),
];

/// The name of a `general.file_type`.
pub fn file_type_name(number: u64) -> &'static str {
    FILE_TYPES.iter().find(|(known, _)| *known == number).map_or("unknown", |(_, name)| name)
}

impl Facts {
    /// `None` where the file does not say what architecture it is of.
    pub fn of(header: &Header<'_>) -> Option<Self> {
        let architecture = text(header, "general.architecture")?;
        let own = |key: &str| header.get(&format!("{architecture}.{key}"));
        let number = |key: &str| own(key).and_then(Value::as_u64);
        let tokens = header.get("tokenizer.ggml.tokens").and_then(Value::as_array);
        let piece = |key: &str| {
            let id = header.get(key)?.as_u64()?;
            tokens?.get(id)?.as_str().map(str::to_owned)
        };
        Some(Self {
            name: text(header, "general.name"),
            file_type: header.get("general.file_type").and_then(Value::as_u64).map_or("unknown", file_type_name),
            parameters: sum(header.tensors().iter().map(|tensor| tensor.elements())),
            weight_bytes: sum(header.tensors().iter().map(|tensor| tensor.bytes())),
            context_length: number("context_length"),
            block_count: number("block_count"),
            embedding_length: number("embedding_length"),
            vocabulary: tokens.map_or(0, |tokens| tokens.len()),
            cache_bytes_per_token: cache_bytes_per_token(header, &architecture),
            tokenizer: text(header, "tokenizer.ggml.model"),
            chat_template: text(header, "tokenizer.chat_template"),
            adds_bos: header.get("tokenizer.ggml.add_bos_token").and_then(Value::as_bool),
            bos: piece("tokenizer.ggml.bos_token_id"),
            eos: piece("tokenizer.ggml.eos_token_id"),
            embeds: own("pooling_type").is_some(),
            architecture,
        })
    }

    /// What the model takes in memory with room for so many tokens in its cache, over all requests together. An
    /// estimate on the high side: weights, cache, and the results of the largest batch.
    pub fn memory_bytes(&self, cached_tokens: u64) -> u64 {
        let cache = self.cache_bytes_per_token.saturating_mul(cached_tokens);
        let width = self.embedding_length.unwrap_or(0).saturating_mul(4).saturating_add(self.vocabulary);
        let batch = width.saturating_mul(BATCH_TOKENS * 4);
        self.weight_bytes.saturating_add(cache).saturating_add(batch)
    }
}

fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

fn text(header: &Header<'_>, key: &str) -> Option<String> {
    header.get(key)?.as_str().map(str::to_owned)
}

fn cache_bytes_per_token(header: &Header<'_>, architecture: &str) -> u64 {
    let own = |key: &str| header.get(&format!("{architecture}.{key}"));
    let number = |key: &str| own(key).and_then(Value::as_u64);
    // Some architectures give one number for all layers, some one for each.
    let of_layer = |key: &str, layer: u64| match own(key) {
        Some(Value::Array(array)) => array.get(layer).and_then(|value| value.as_u64()),
        Some(value) => value.as_u64(),
        None => None,
    };
    let heads = |layer: u64| of_layer("attention.head_count", layer).filter(|heads| *heads > 0);
    let per_head = |layer: u64| Some(number("embedding_length")? / heads(layer)?);
    sum((0..number("block_count").unwrap_or(0).min(BLOCKS_MAX)).map(|layer| {
        let cached_heads = of_layer("attention.head_count_kv", layer).or_else(|| heads(layer)).unwrap_or(0);
        let key = number("attention.key_length").or_else(|| per_head(layer)).unwrap_or(0);
        let value = number("attention.value_length").or_else(|| per_head(layer)).unwrap_or(0);
        key.saturating_add(value).saturating_mul(cached_heads).saturating_mul(CACHE_NUMBER_BYTES)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::File;

    fn facts(file: &File) -> Facts {
        let bytes = file.bytes();
        Facts::of(&Header::parse(&bytes, bytes.len() as u64).unwrap()).unwrap()
    }

    #[test]
    fn a_small_llama_says_what_it_is() {
        let facts = facts(&File::tiny_llama());
        assert_eq!((facts.architecture.as_str(), facts.name.as_deref()), ("llama", Some("tiny")));
        assert_eq!((facts.context_length, facts.block_count, facts.embedding_length), (Some(64), Some(1), Some(32)));
        assert_eq!(facts.file_type, "F32");
        assert_eq!((facts.bos.as_deref(), facts.eos.as_deref()), (Some("<s>"), Some("</s>")));
        assert_eq!(facts.weight_bytes, facts.parameters * 4);
        assert!(!facts.embeds);
    }

    #[test]
    fn the_cache_is_counted_by_layer_where_layers_differ() {
        let file = File::tiny_llama();
        // One layer, 2 of 4 heads cached, 8 numbers a head, keys and values, 2 bytes each.
        assert_eq!(facts(&file).cache_bytes_per_token, 2 * 8 * 2 * 2);
        let two = file.clone().u32("llama.block_count", 2);
        assert_eq!(facts(&two).cache_bytes_per_token, 2 * 2 * 8 * 2 * 2);
        let uneven = two.clone().u32s("llama.attention.head_count_kv", &[0, 4]);
        assert_eq!(facts(&uneven).cache_bytes_per_token, 4 * 8 * 2 * 2);
        let stated = file.u32("llama.attention.key_length", 16).u32("llama.attention.value_length", 4);
        assert_eq!(facts(&stated).cache_bytes_per_token, 2 * (16 + 4) * 2);
    }

    #[test]
    fn memory_grows_with_the_context_and_never_overflows() {
        let mut facts = facts(&File::tiny_llama());
        assert_eq!(facts.memory_bytes(10) - facts.memory_bytes(0), 10 * facts.cache_bytes_per_token);
        assert!(facts.memory_bytes(0) > facts.weight_bytes);
        facts.cache_bytes_per_token = u64::MAX;
        assert_eq!(facts.memory_bytes(u64::MAX), u64::MAX);
    }

    #[test]
    fn file_types_are_named_as_ollama_names_them() {
        assert_eq!((file_type_name(7), file_type_name(15), file_type_name(1024)), ("Q8_0", "Q4_K_M", "unknown"));
    }
}
