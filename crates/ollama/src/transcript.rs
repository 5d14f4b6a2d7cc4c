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

use std::collections::VecDeque;

use bytes::Bytes;

use self::line::Line;
use self::seam::{Seam, Told};

pub use self::rest::{Question, Rest};
pub use self::seam::Spent;

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
    crashes: u32,
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
    /// Where the last of these lines end in the text.
    ends: VecDeque<usize>,
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
    #[error("it shows pictures, and how these stand in the model's prompt only its template knows")]
    Pictures,
    #[error("it fills a gap in a text")]
    Gap,
    #[error("it goes on with an answer of the client's own, beside calls of tools")]
    Prefilled,
    #[error("so little was told that it cannot be found again in what another node repeats")]
    Short,
    #[error("the model runs in somebody's cloud")]
    Cloud,
    #[error("the process that runs the model died of it more than once")]
    Deadly,
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
    #[error("{0}")]
    Unfit(Unfit),
}

/// Of a text that is repeated in a log and in traces.
const REPORT_CHARS_MAX: usize = 512;
/// A longer line is told on unread.
const LINE_BYTES_MAX: usize = 1 << 20;
/// A request that brings the process down wherever it goes must not go everywhere.
const CRASHES_MAX: u32 = 2;
/// Of lines, as far back as a word that is left to the model may reach.
const ENDS_MAX: usize = 48;

/// What backends say when the process died that runs the model. Anything else would be said by another one, too.
const CRASHES: [&str; 7] = [
    "an error was encountered while running the model",
    "has terminated",
    "unexpectedly stopped",
    "connection refused",
    "connection reset",
    "forcibly closed",
    "unexpected EOF",
];

impl Transcript {
    pub fn new(voice: Voice) -> Self {
        Self { voice, said: Said::default(), stage: Stage::First, unfit: None, is_exact: false, crashes: 0 }
    }

    /// What the client is told of this line, maybe nothing. A line has its end.
    pub fn tell(&mut self, line: Bytes) -> Result<Bytes, Untold> {
        if self.is_over() {
            return Ok(line);
        }
        let read = match line.len() > LINE_BYTES_MAX {
            true => Err(Unfit::Long),
            false => Line::read(&line).map_err(|_| Unfit::Garbage),
        };
        let read = match read {
            Ok(read) => read,
            // What the client was told until then is in the shape of its route: this may not be.
            Err(unfit) => {
                self.unfit = Some(unfit);
                return if matches!(self.stage, Stage::First) { Ok(line) } else { Err(Untold::Unfit(unfit)) };
            }
        };
        if let Some(error) = &read.error {
            let text = error.as_str().map_or_else(|| error.to_string(), str::to_owned);
            if CRASHES.iter().any(|crash| text.contains(crash)) {
                self.crashes += 1;
                if self.crashes > CRASHES_MAX {
                    self.unfit = Some(Unfit::Deadly);
                }
                return Err(Untold::Crashed(text.chars().take(REPORT_CHARS_MAX).collect()));
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
        self.count(!text.is_empty() || !thought.is_empty());
    }

    /// A line that said something.
    fn count(&mut self, is_something: bool) {
        if is_something {
            self.tokens = self.tokens.saturating_add(1);
            if self.ends.len() == ENDS_MAX {
                self.ends.pop_front();
            }
            self.ends.push_back(self.text.len());
        }
    }

    /// How many of the last lines end behind this place in the text.
    fn lines_behind(&self, at: usize) -> u64 {
        self.ends.iter().filter(|end| **end > at).count() as u64
    }

    fn is_nothing(&self) -> bool {
        self.text.is_empty() && self.thought.is_empty()
    }
}
