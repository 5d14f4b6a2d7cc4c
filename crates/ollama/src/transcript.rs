//! What a client has been told of an answer, and how another backend is asked for the rest of it.
//!
//! As long as nothing breaks, lines go through as they are and are only looked at. Then the rest is asked for: the
//! conversation is rendered by the new backend itself, the text so far is put behind it, and the model goes on. Its lines
//! are retold as the rest of the one answer they belong to, with one last line. No clock and no network here.

mod line;
mod rest;
mod seam;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use self::line::Line;
use self::seam::{Seam, Told};

pub use self::rest::{Question, Rest};

/// Of text and thoughts together. What is longer is told on, but no longer remembered.
pub const KEPT_BYTES_MAX: usize = 1 << 20;

/// Which of the two routes it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    Generate,
    Chat,
}

#[derive(Debug)]
pub struct Transcript {
    voice: Voice,
    said: Said,
    stage: Stage,
    /// It is told on, and there is no way to go on with it elsewhere.
    unfit: Option<Unfit>,
    /// The text was contradicted once where its end was left to the model again: nothing is left to it any more.
    is_exact: bool,
}

/// All the client knows.
#[derive(Debug, Default)]
struct Said {
    model: String,
    /// Of the last line.
    created_at: String,
    text: String,
    thought: String,
    /// Lines that said something, which is as many as tokens where each token is a line.
    tokens: u64,
}

#[derive(Debug)]
enum Stage {
    /// As the backend tells it.
    First,
    /// Retold from another one's.
    Going(Box<Seam>),
    /// The last line was told.
    Over,
}

/// Why an answer cannot be gone on with elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("half of an answer in a given format cannot be completed by another node")]
    Format,
    #[error("a call of a tool was told already")]
    Called,
    #[error("the model's template closes what it has said, and its calls of tools or its pictures need that template")]
    Template,
    #[error("it broke off while the model was thinking, and its template does not say how thoughts begin")]
    Thinking,
    #[error("the backend there does not say how it renders a conversation")]
    NotRendered,
    #[error("the answer is longer than is remembered")]
    Long,
    #[error("what was told is no answer of Ollama's")]
    Garbage,
    #[error("the request cannot be read any more")]
    Request,
}

/// A line that the client is not told: the rest has to be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// The other backend says something else than what the client was told already.
    #[error("the other node contradicts what was told already")]
    Contradiction,
    /// The process that runs the model died under the answer.
    #[error("the backend reports: {0}")]
    Crashed(String),
}

/// What backends say when the process died that runs the model. Anything else would be said by another one, too.
const CRASHES: [&str; 6] = [
    "has terminated",
    "unexpectedly stopped",
    "connection refused",
    "connection reset",
    "forcibly closed",
    "unexpected EOF",
];

impl Transcript {
    pub fn new(voice: Voice) -> Self {
        Self { voice, said: Said::default(), stage: Stage::First, unfit: None, is_exact: false }
    }

    /// What the client is told of this line, maybe nothing. A line has its end.
    pub fn tell(&mut self, line: Bytes) -> Result<Bytes, Untold> {
        if self.is_over() {
            return Ok(line);
        }
        let Ok(read) = Line::read(&line) else {
            self.unfit = Some(Unfit::Garbage);
            return Ok(line);
        };
        if let Some(error) = &read.error {
            let text = error.as_str().map_or_else(|| error.to_string(), str::to_owned);
            if CRASHES.iter().any(|crash| text.contains(crash)) {
                return Err(Untold::Crashed(text));
            }
            // Nothing follows it.
            self.stage = Stage::Over;
            return Ok(line);
        }
        if !read.calls().is_empty() {
            self.unfit = Some(Unfit::Called);
        }
        let told = match &mut self.stage {
            Stage::First | Stage::Over => {
                let is_last = read.done;
                self.said.hear(&read);
                Told { line, is_last }
            }
            Stage::Going(seam) => {
                seam.retell(read, self.voice, &mut self.said).inspect_err(|_| self.is_exact = true)?
            }
        };
        if self.said.text.len() + self.said.thought.len() > KEPT_BYTES_MAX {
            self.unfit = Some(Unfit::Long);
            (self.said.text, self.said.thought) = (String::new(), String::new());
        }
        if told.is_last {
            self.stage = Stage::Over;
        }
        Ok(told.line)
    }

    /// The last line was told: nothing that breaks now is missed by anybody.
    pub const fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }
}

impl Said {
    fn hear(&mut self, line: &Line<'_>) {
        if self.model.is_empty() {
            self.model.push_str(&line.model);
        }
        self.created_at.clear();
        self.created_at.push_str(&line.created_at);
        let (text, thought) = (line.text(), line.thought());
        self.text.push_str(text);
        self.thought.push_str(thought);
        self.tokens += u64::from(!text.is_empty() || !thought.is_empty());
    }

    fn is_nothing(&self) -> bool {
        self.text.is_empty() && self.thought.is_empty()
    }
}
