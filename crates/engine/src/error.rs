//! What can go wrong with a model or a request, in the words Ollama's clients know.

use std::path::PathBuf;
use std::sync::Arc;

/// Whose doing it was, from which a status follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request cannot be served as it is; another node would say the same. HTTP 400.
    Client,
    /// Later, or elsewhere, the same request may succeed. HTTP 503.
    Busy,
    /// The engine or the model file failed. HTTP 500.
    Engine,
}

/// Cloned to everyone who waited for the same load.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Ollama's own words, two blanks included: clients compare them.
    #[error("server busy, please try again.  maximum pending requests exceeded")]
    Busy,
    #[error(
        "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust \
         the context length in settings, or use a model with a longer context length"
    )]
    PromptTooLong { tokens: u32, context: u32 },
    #[error("the input length exceeds the context length")]
    InputTooLong { tokens: u32, context: u32 },
    #[error("the prompt is empty: nothing to continue from")]
    PromptEmpty,
    #[error("this model does not support generate")]
    OnlyEmbeds,
    #[error("this model does not support embeddings")]
    NeverEmbeds,
    #[error("invalid format: {reason}; expected \"json\" or a valid JSON Schema object")]
    Format { reason: String },
    #[error("invalid token `{0}`")]
    Token(u32),
    #[error("model requires more system memory ({}) than is available ({})", human(*need), human(*available))]
    Memory { need: u64, available: u64 },
    #[error("failed to read model `{}`", path.display())]
    File { path: PathBuf, source: Arc<std::io::Error> },
    /// Known before the load: the header says so, or the machine.
    #[error("unable to load model: {reason}")]
    CannotRun { reason: String },
    /// Known only by trying.
    #[error("unable to load model: {}", path.display())]
    Load { path: PathBuf },
    #[error("failed to make room for a context of {context} tokens, {slots} at a time")]
    Context { context: u32, slots: u32 },
    /// The thread that ran the model is gone: nothing more will come from it.
    #[error("model runner has unexpectedly stopped, this may be due to resource limitations or an internal error")]
    Stopped,
    #[error("an error was encountered while running the model: {reason}")]
    Step { reason: String },
}

impl Error {
    pub fn fault(&self) -> Fault {
        match self {
            Self::PromptTooLong { .. }
            | Self::InputTooLong { .. }
            | Self::PromptEmpty
            | Self::OnlyEmbeds
            | Self::NeverEmbeds
            | Self::Format { .. }
            | Self::Token(_) => Fault::Client,
            Self::Busy => Fault::Busy,
            Self::Memory { .. }
            | Self::File { .. }
            | Self::CannotRun { .. }
            | Self::Load { .. }
            | Self::Context { .. }
            | Self::Stopped
            | Self::Step { .. } => Fault::Engine,
        }
    }
}

/// As Ollama writes sizes in this place.
fn human(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = UNITS.into_iter().find(|(unit, _)| bytes >= *unit);
    unit.map_or_else(|| format!("{bytes} B"), |(unit, name)| format!("{:.1} {name}", bytes as f64 / unit as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_ollama_writes_them() {
        let sizes = [0, 1023, 1024, 1536, 5 << 20, 6_012_954_214];
        assert_eq!(sizes.map(human), ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 MiB", "5.6 GiB"]);
    }
}
