//! From the header alone: can this file be run here? Nothing is promised to anyone before it is asked.

use std::collections::HashSet;

use crate::flavour::ollama_mark;
use crate::{Array, Facts, Header, Kind, Value, architecture};

/// What the machine offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Bytes of memory a model may take now.
    pub memory_bytes: u64,
    /// The first feature the engine was built with and the processor lacks, such as `avx2`: it would die of an
    /// illegal instruction.
    pub cpu_lacks: Option<&'static str>,
}

/// What it is to be run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Tokens in the cache, over all requests that run at once.
    pub cached_tokens: u64,
}

/// Why a file cannot be run, in words for whoever asked for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cannot {
    #[error("the file does not say what architecture it is of")]
    NoArchitecture,
    #[error("the engine does not know the architecture `{0}`")]
    Architecture(String),
    #[error("the engine does not serve `{architecture}`: {why}")]
    NotServed { architecture: String, why: &'static str },
    #[error("the file is made for Ollama's own engine, known by {mark}")]
    OllamaOnly { mark: String },
    #[error("the file lacks `{0}`")]
    Lacks(String),
    #[error("the vocabulary cannot be: {0}")]
    Vocabulary(String),
    #[error("the processor lacks `{0}`, which this engine was built to use")]
    Cpu(&'static str),
    #[error("it takes about {needed} bytes of memory, {available} are free")]
    Memory { needed: u64, available: u64 },
}

/// What the loader stops at when it is missing, whatever the architecture.
const REQUIRED: [&str; 3] = ["context_length", "embedding_length", "block_count"];

/// The order is from what no machine can run to what only this one cannot now.
pub fn probe(header: &Header<'_>, needs: Needs, host: Host) -> Result<Facts, Cannot> {
    let facts = Facts::of(header).ok_or(Cannot::NoArchitecture)?;
    let architecture = facts.architecture.as_str();
    // First, for it says more than that the name is unknown.
    if let Some(mark) = ollama_mark(header, architecture) {
        return Err(Cannot::OllamaOnly { mark });
    }
    if !architecture::is_known(architecture) {
        return Err(Cannot::Architecture(architecture.chars().take(64).collect()));
    }
    if let Some(why) = architecture::not_served(architecture) {
        return Err(Cannot::NotServed { architecture: architecture.to_owned(), why });
    }
    let keys = REQUIRED.iter().map(|key| format!("{architecture}.{key}"));
    let keys = keys.chain(["tokenizer.ggml.model".to_owned()]);
    if let Some(key) = keys.into_iter().find(|key| header.get(key).is_none()) {
        return Err(Cannot::Lacks(key));
    }
    if header.tensors().is_empty() {
        return Err(Cannot::Lacks("tensors".to_owned()));
    }
    check_vocabulary(header).map_err(Cannot::Vocabulary)?;
    if let Some(feature) = host.cpu_lacks {
        return Err(Cannot::Cpu(feature));
    }
    let needed = facts.memory_bytes(needs.cached_tokens);
    if needed > host.memory_bytes {
        return Err(Cannot::Memory { needed, available: host.memory_bytes });
    }
    Ok(facts)
}

/// Of what the loader expects here, those things at which it stops the process instead of refusing the file.
fn check_vocabulary(header: &Header<'_>) -> Result<(), String> {
    if matches!(header.get("tokenizer.ggml.model").and_then(Value::as_str), Some("no_vocab" | "none")) {
        return Ok(());
    }
    let texts = |key: &str| match header.get(key).map(|value| value.as_array()) {
        None => Ok(None),
        Some(Some(array)) if array.kind() == Kind::String => Ok(Some(array)),
        Some(_) => Err(format!("`{key}` is no list of texts")),
    };
    texts("tokenizer.ggml.merges")?;
    let Some(tokens) = texts("tokenizer.ggml.tokens")? else { return Ok(()) };
    match twice(tokens) {
        None => Ok(()),
        Some((token, index)) => {
            let text: String = String::from_utf8_lossy(token).chars().take(64).collect();
            Err(format!("token {index}, `{}`, is there twice", text.escape_debug()))
        }
    }
}

/// The first text that was there before, and where it is again. The loader sees texts up to their first zero byte, and
/// gives empty ones names of their own.
fn twice<'a>(tokens: &Array<'a>) -> Option<(&'a [u8], usize)> {
    let mut seen = HashSet::new();
    let text = |token: Value<'a>| match token {
        Value::String(bytes) => bytes.split(|byte| *byte == 0).next().unwrap_or_default(),
        _ => unreachable!("a list of texts"),
    };
    let named = tokens.iter().map(text).enumerate().filter(|(_, token)| !token.is_empty());
    named.map(|(index, token)| (token, index)).find(|(token, _)| !seen.insert(*token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::File;

    const ROOMY: Host = Host { memory_bytes: 1 << 40, cpu_lacks: None };
    const NEEDS: Needs = Needs { cached_tokens: 4096 };

    fn verdict(file: &File, host: Host) -> Result<Facts, Cannot> {
        let bytes = file.bytes();
        probe(&Header::parse(&bytes, bytes.len() as u64).unwrap(), NEEDS, host)
    }

    fn reason(file: &File, host: Host) -> Cannot {
        verdict(file, host).unwrap_err()
    }

    #[test]
    fn a_small_llama_can_run() {
        assert_eq!(verdict(&File::tiny_llama(), ROOMY).unwrap().architecture, "llama");
    }

    #[test]
    fn what_the_file_is_decides_first() {
        let llama = File::tiny_llama();
        assert_eq!(reason(&File::new(), ROOMY), Cannot::NoArchitecture);
        let of = |name: &str| llama.clone().text("general.architecture", name);
        assert_eq!(reason(&of("teapot"), ROOMY), Cannot::Architecture("teapot".to_owned()));
        assert!(matches!(reason(&of("clip"), ROOMY), Cannot::NotServed { .. }));
        assert!(matches!(reason(&of("gptoss"), ROOMY), Cannot::OllamaOnly { .. }));
        assert_eq!(reason(&of("qwen2"), ROOMY), Cannot::Lacks("qwen2.context_length".to_owned()));
        let endless = of(&"x".repeat(1000));
        assert!(reason(&endless, ROOMY).to_string().len() < 200);
    }

    #[test]
    fn a_vocabulary_that_would_stop_the_loader_is_refused() {
        let llama = File::tiny_llama();
        let with = |pieces: &[&str]| llama.clone().texts("tokenizer.ggml.tokens", pieces);
        let why = |file: &File| match verdict(file, ROOMY) {
            Ok(_) => String::new(),
            Err(Cannot::Vocabulary(why)) => why,
            Err(other) => panic!("{other}"),
        };
        assert_eq!(why(&with(&["<s>", "a\nb", "c", "a\nb"])), r"token 3, `a\nb`, is there twice");
        assert_eq!(why(&with(&["a\0b", "a"])), "token 1, `a`, is there twice");
        assert_eq!(why(&with(&["a", "", "", "A"])), "");
        assert_eq!(
            why(&llama.clone().u32s("tokenizer.ggml.tokens", &[1, 2])),
            "`tokenizer.ggml.tokens` is no list of texts"
        );
        assert_eq!(why(&llama.clone().u32("tokenizer.ggml.merges", 1)), "`tokenizer.ggml.merges` is no list of texts");
        assert_eq!(why(&with(&["a", "a"]).text("tokenizer.ggml.model", "no_vocab")), "");
        let long = "x".repeat(5000);
        assert!(why(&with(&[&long, &long])).len() < 120);
    }

    #[test]
    fn then_what_the_machine_has() {
        let llama = File::tiny_llama();
        assert_eq!(reason(&llama, Host { cpu_lacks: Some("avx2"), ..ROOMY }), Cannot::Cpu("avx2"));
        let Cannot::Memory { needed, available: 5 } = reason(&llama, Host { memory_bytes: 5, ..ROOMY }) else {
            panic!("five bytes were enough");
        };
        let just_enough = Host { memory_bytes: needed, ..ROOMY };
        assert!(verdict(&llama, just_enough).is_ok());
    }
}
