//! How a model talks: from messages to the prompt it was trained on, and from the text it writes back to an answer.
//!
//! The model file brings the template. What it marks up in its answers, thinking and calls of tools, is known by the
//! marks in that template. All of this is pure; only the time, which some templates ask for, is handed in.

mod dialogue;
mod reader;
mod template;
mod thinking;
mod tools;

pub use dialogue::{Dialogue, Ends, Rendered, Start, Talk};
pub use reader::{Piece, Reader};

use self::template::Template;
use self::tools::Marks;

/// Why messages cannot be put to a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// In the template's own words: it says so of messages it has no place for.
    #[error("{0}")]
    Refused(String),
    #[error("the model's chat template failed: {0}")]
    Template(String),
    #[error(
        "the model's chat template is in Go's language, which this engine does not read; send `raw` prompts instead"
    )]
    OnlyGoTemplate,
    #[error("Cannot have 2 or more assistant messages at the end of the list.")]
    TwoAtTheEnd,
    #[error("Cannot continue an assistant message that contains tool calls.")]
    ContinuedCall,
}
