//! The lines of whoever goes on with an answer, retold as the rest of it.

use std::mem;
use std::time::Duration;

use bytes::Bytes;

use super::line::{End, Line, News};
use super::{Said, Unfit, Untold, Voice};

/// How models whose prompt ends with an open thought close it.
const THOUGHT_END: &str = "</think>";

/// Of space that may be the one before a thought's end.
const HELD_MAX: usize = 4 << 10;
/// Of stop strings that are looked for across the seam, and the length of one.
const STOPS_MAX: usize = 64;
const STOP_BYTES_MAX: usize = 1 << 10;

#[derive(Debug)]
pub(super) struct Seam {
    pub(super) again: Again,
    pub(super) thinking: Thinking,
    pub(super) stops: Stops,
    /// Tokens of the answer that were put to the model as a part of its prompt.
    pub(super) put: u64,
    pub(super) spent: Spent,
}

/// Until the seam.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// Since the request came.
    pub in_all: Duration,
    /// Of that, between the first line the client was told and the last.
    pub telling: Duration,
}

/// What the client knows already, and the model says once more.
#[derive(Debug)]
pub(super) enum Again {
    Nothing,
    /// It comes before anything new.
    Tail {
        expected: String,
        come: String,
    },
    /// It comes in front of all that is new, or not at all, by how the backend has it.
    Whole {
        expected: String,
        come: String,
    },
}

/// Whether the model's raw text is thought first.
#[derive(Debug)]
pub(super) enum Thinking {
    Over,
    /// With what may be the beginning of the thought's end.
    UnderWay {
        held: String,
    },
    /// The space between a thought and the answer is nobody's.
    Closing,
}

/// Stop strings that lie across the seam: of their first half nobody there knows.
#[derive(Debug)]
pub(super) struct Stops {
    all: Vec<String>,
    /// The last text before what comes, as long as a stop string may begin in it.
    before: String,
    /// How much is still to be looked through.
    left: usize,
}

pub(super) struct Told {
    pub(super) line: Bytes,
    pub(super) is_last: bool,
}

impl Seam {
    pub(super) fn retell(&mut self, line: Line<'_>, voice: Voice, said: &mut Said) -> Result<Told, Untold> {
        let mut fresh = self.again.strip(line.text())?;
        if line.done {
            fresh.push_str(&self.again.end()?);
            // A model that says its thought's end in a way nobody sees has told its answer as a thought.
            if matches!(self.thinking, Thinking::UnderWay { .. }) && line.done_reason.as_deref() == Some("stop") {
                return Err(Untold::Unfit(Unfit::Thinking));
            }
        }
        let mut news = News { thought: line.thought().to_owned(), calls: line.calls().to_vec(), ..News::default() };
        self.thinking.split(fresh, line.done, &mut news);
        let is_stopped = self.stops.cut(&mut news.text);
        said.created_at.clear();
        said.created_at.push_str(&line.created_at);
        said.text.push_str(&news.text);
        said.thought.push_str(&news.thought);
        let is_last = line.done || is_stopped;
        if is_last {
            news.end = Some(self.end(&line, is_stopped, said));
        }
        if news.is_nothing() {
            return Ok(Told { line: Bytes::new(), is_last: false });
        }
        said.count(!news.text.is_empty() || !news.thought.is_empty());
        news.logprobs = line.logprobs;
        Ok(Told { line: news.line(voice, said), is_last })
    }

    /// One set of figures for the whole.
    fn end(&self, line: &Line<'_>, is_stopped: bool, said: &Said) -> End {
        let with_earlier = |later: Option<i64>, earlier: Duration| {
            later.map(|later| later.saturating_add(i64::try_from(earlier.as_nanos()).unwrap_or(i64::MAX)))
        };
        let reason = if is_stopped { Some("stop".to_owned()) } else { line.done_reason.clone() };
        End {
            done_reason: reason,
            total_duration: with_earlier(line.total_duration.or(is_stopped.then_some(0)), self.spent.in_all),
            load_duration: line.load_duration,
            // There, what was told already was a part of the prompt.
            prompt_eval_count: line.prompt_eval_count.map(|count| count.saturating_sub(self.put).max(1)),
            prompt_eval_duration: line.prompt_eval_duration,
            eval_count: match line.eval_count {
                Some(count) if !is_stopped => Some(count.saturating_add(self.put)),
                _ => Some(said.tokens),
            },
            eval_duration: with_earlier(line.eval_duration, self.spent.telling),
        }
    }
}

impl Again {
    /// What of the next text is new.
    fn strip(&mut self, text: &str) -> Result<String, Untold> {
        match self {
            _ if text.is_empty() => Ok(String::new()),
            Self::Nothing => Ok(text.to_owned()),
            Self::Tail { expected, come } => {
                come.push_str(text);
                if let Some(fresh) = come.strip_prefix(expected.as_str()) {
                    let fresh = fresh.to_owned();
                    *self = Self::Nothing;
                    return Ok(fresh);
                }
                if expected.starts_with(come.as_str()) { Ok(String::new()) } else { Err(Untold::Contradiction) }
            }
            Self::Whole { expected, come } => {
                come.push_str(text);
                if expected.len() > come.len() && expected.starts_with(come.as_str()) {
                    return Ok(String::new());
                }
                let fresh = come.strip_prefix(expected.as_str()).unwrap_or(come).to_owned();
                *self = Self::Nothing;
                Ok(fresh)
            }
        }
    }

    /// What was held back, where nothing more comes.
    fn end(&mut self) -> Result<String, Untold> {
        match mem::replace(self, Self::Nothing) {
            Self::Nothing => Ok(String::new()),
            Self::Tail { .. } => Err(Untold::Contradiction),
            Self::Whole { come, .. } => Ok(come),
        }
    }
}

impl Thinking {
    fn split(&mut self, fresh: String, is_last: bool, news: &mut News) {
        match self {
            Self::Over => news.text = fresh,
            Self::Closing => self.close(&fresh, news),
            Self::UnderWay { held } => {
                held.push_str(&fresh);
                if let Some((thought, text)) = held.split_once(THOUGHT_END) {
                    let (thought, text) = (thought.trim_end().to_owned(), text.to_owned());
                    news.thought.push_str(&thought);
                    self.close(&text, news);
                    return;
                }
                // The end of a thought, and the space before it, may still be on its way.
                let keep = if is_last || held.len() > HELD_MAX { held.len() } else { certain(held) };
                let rest = held.split_off(keep);
                news.thought.push_str(&mem::replace(held, rest));
            }
        }
    }

    fn close(&mut self, text: &str, news: &mut News) {
        let text = text.trim_start();
        *self = if text.is_empty() { Self::Closing } else { Self::Over };
        news.text = text.to_owned();
    }
}

/// How much of a thought is one for sure: all but a beginning of its end, and the space before that.
fn certain(held: &str) -> usize {
    let begun = (0..THOUGHT_END.len()).rev().find(|length| held.ends_with(&THOUGHT_END[..*length])).unwrap_or(0);
    held[..held.len() - begun].trim_end().len()
}

impl Stops {
    pub(super) fn new(mut all: Vec<String>, text: &str) -> Self {
        all.retain(|stop| stop.len() <= STOP_BYTES_MAX);
        all.truncate(STOPS_MAX);
        let longest = all.iter().map(String::len).max().unwrap_or(0);
        let from = text.floor_char_boundary(text.len().saturating_sub(longest));
        Self { all, before: text[from..].to_owned(), left: longest }
    }

    /// Ends the text where one stands that has begun before it; whether there was one.
    fn cut(&mut self, text: &mut String) -> bool {
        if self.left == 0 || text.is_empty() {
            return false;
        }
        let seam = self.before.len();
        self.before.push_str(text);
        let lies_across = |stop: &String| {
            let found = self.before.match_indices(stop.as_str());
            found.map(|(at, _)| at).any(|at| at < seam && at + stop.len() > seam)
        };
        let is_met = self.all.iter().any(lies_across);
        self.left = self.left.saturating_sub(text.len());
        if is_met {
            text.clear();
        }
        is_met
    }
}
