//! One table of what Ollama answers, and a check that holds any server against it: the fake, the engine, the gateway.

mod exchange;
mod shape;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use self::exchange::{Reply, exchange};
use self::shape::mismatch;

/// For one case. A model may have to be loaded in it.
const CASE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    #[serde(rename = "case")]
    cases: Vec<Case>,
}

/// The server that is checked, and what it has.
#[derive(Debug, Clone)]
pub struct Subject {
    pub address: SocketAddr,
    /// Sent with every request.
    pub headers: Vec<(String, String)>,
    /// A model of the library that answers, neither thinks nor uses tools, written with its tag.
    pub model: String,
    /// One that embeds and does not answer.
    pub embedder: Option<String>,
    /// Host and port of a registry over plain HTTP that has `library/golden:1b` and takes what is pushed. Without one the
    /// server is not asked to pull, push or create.
    pub registry: Option<String>,
    /// Cases, by name, in which the server is known to differ: documented, and checked to be so still.
    pub differs: Vec<&'static str>,
}

#[derive(Debug, Default)]
pub struct Report {
    pub checked: usize,
    /// For want of a model.
    pub skipped: usize,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub case: String,
    pub what: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the table cannot be read")]
    Table(#[source] toml::de::Error),
    #[error("`{what}` of the case `{case}` is no JSON")]
    Shape {
        case: String,
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("the case `{case}` lacks `{what}`")]
    Incomplete { case: String, what: &'static str },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    request: String,
    #[serde(default)]
    body: String,
    status: u16,
    answer: Framing,
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<String>,
    shape: Option<String>,
    first: Option<String>,
    last: Option<String>,
    #[serde(default)]
    statuses: Vec<String>,
    #[serde(default)]
    transfers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Framing {
    Json,
    Line,
    Lines,
    Events,
    Text,
    Empty,
}

/// The event behind which nothing comes.
const LAST_EVENT: &str = "[DONE]";

impl Table {
    /// Of Ollama's own API.
    pub fn ollama() -> Self {
        Self::parse(include_str!("../../../testnet/golden/ollama.toml")).expect("the table is checked by a test")
    }

    /// Of OpenAI's, as Ollama has it.
    pub fn openai() -> Self {
        Self::parse(include_str!("../../../testnet/golden/openai.toml")).expect("the table is checked by a test")
    }

    pub fn parse(text: &str) -> Result<Self, Error> {
        let table: Self = toml::from_str(text).map_err(Error::Table)?;
        table.cases.iter().try_for_each(Case::check)?;
        Ok(table)
    }

    /// Case by case, in their order, each on a connection of its own.
    pub async fn check(&self, subject: &Subject) -> Report {
        let mut report = Report::default();
        for case in &self.cases {
            let lacks_embedder = subject.embedder.is_none() && format!("{case:?}").contains("{embedder}");
            if lacks_embedder || (subject.registry.is_none() && case.transfers) {
                report.skipped += 1;
                continue;
            }
            report.checked += 1;
            let differs = subject.differs.contains(&case.name.as_str());
            let found = match tokio::time::timeout(CASE_TIMEOUT, case.run(subject)).await {
                Ok(found) => found,
                Err(_) => Some(format!("no whole answer within {CASE_TIMEOUT:?}")),
            };
            let what = match (found, differs) {
                (Some(what), false) => what,
                (None, true) => "is listed as differing and does not".to_owned(),
                (Some(_), true) | (None, false) => continue,
            };
            report.findings.push(Finding { case: case.name.clone(), what });
        }
        let known = |name: &&&str| self.cases.iter().any(|case| case.name == **name);
        for unknown in subject.differs.iter().filter(|name| !known(name)) {
            let what = "is listed as differing and not in the table".to_owned();
            report.findings.push(Finding { case: (*unknown).to_owned(), what });
        }
        report
    }
}

impl Report {
    /// All findings, line by line; empty where there are none.
    pub fn text(&self) -> String {
        self.findings.iter().map(|finding| format!("{finding}\n")).collect()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.case, self.what)
    }
}

impl Case {
    /// Whether it says all it has to.
    fn check(&self) -> Result<(), Error> {
        let case = || self.name.clone();
        let needed: &[(&str, &Option<String>)] = match self.answer {
            Framing::Json | Framing::Line => &[("shape", &self.shape)],
            Framing::Lines => &[("shape", &self.shape), ("last", &self.last)],
            Framing::Events => &[("first", &self.first), ("shape", &self.shape), ("last", &self.last)],
            Framing::Text => &[("text", &self.text), ("type", &self.kind)],
            Framing::Empty => &[],
        };
        for (what, text) in needed {
            let text = text.as_ref().ok_or_else(|| Error::Incomplete { case: case(), what })?;
            if self.answer != Framing::Text {
                let parsed = serde_json::from_str::<Value>(text);
                parsed.map_err(|source| Error::Shape { case: case(), what, source })?;
            }
        }
        if self.request.split_once(' ').is_none() {
            return Err(Error::Incomplete { case: case(), what: "a path in its request" });
        }
        Ok(())
    }

    /// What is wrong, if anything is.
    async fn run(&self, subject: &Subject) -> Option<String> {
        let (method, path) = self.request.split_once(' ').expect("checked when the table was read");
        match exchange(subject, method, &filled(path, subject), filled(&self.body, subject)).await {
            Ok(reply) => self.judge(&reply, subject),
            Err(error) => Some(format!("no answer: {error}")),
        }
    }

    fn judge(&self, reply: &Reply, subject: &Subject) -> Option<String> {
        if reply.status != self.status {
            return Some(format!("status {} instead of {}: {}", reply.status, self.status, reply.text));
        }
        let expected_kind = match self.answer {
            Framing::Json => Some("application/json; charset=utf-8"),
            Framing::Line => Some("application/json"),
            Framing::Events => Some("text/event-stream"),
            Framing::Lines => Some("application/x-ndjson"),
            Framing::Text | Framing::Empty => self.kind.as_deref(),
        };
        if let Some(expected) = expected_kind.filter(|expected| reply.kind.as_deref() != Some(*expected)) {
            return Some(format!("content type {:?} instead of `{expected}`", reply.kind));
        }
        match self.answer {
            Framing::Empty => (!reply.text.is_empty()).then(|| format!("a body where there is none: {}", reply.text)),
            Framing::Text => {
                let expected = self.text.as_deref().unwrap_or_default();
                (reply.text != expected).then(|| format!("`{}` instead of `{expected}`", reply.text))
            }
            Framing::Json if reply.text.ends_with('\n') => Some("a line's end behind the object".to_owned()),
            Framing::Line if !reply.text.ends_with("}\n") => Some(format!("no line's end behind {}", reply.text)),
            Framing::Json | Framing::Line => fits(&self.shape, &reply.text, subject),
            Framing::Lines => self.judge_lines(reply, subject),
            Framing::Events => self.judge_events(reply, subject),
        }
    }

    fn judge_events(&self, reply: &Reply, subject: &Subject) -> Option<String> {
        if !reply.chunked {
            return Some("events that are not sent as chunks".to_owned());
        }
        let Some(events) = reply.text.strip_suffix("\n\n") else {
            return Some(format!("a last event without its end: {}", reply.text));
        };
        let events: Option<Vec<&str>> = events.split("\n\n").map(|event| event.strip_prefix("data: ")).collect();
        match events.as_deref() {
            Some([first, between @ .., last, LAST_EVENT]) => {
                let misfit = fits(&self.first, first, subject);
                let misfit = misfit.or_else(|| between.iter().find_map(|event| fits(&self.shape, event, subject)));
                misfit.or_else(|| fits(&self.last, last, subject))
            }
            Some(_) => Some(format!("too few events, or none that is `{LAST_EVENT}` at the end: {}", reply.text)),
            None => Some(format!("an event that is no `data`: {}", reply.text)),
        }
    }

    fn judge_lines(&self, reply: &Reply, subject: &Subject) -> Option<String> {
        if !reply.chunked {
            return Some("lines that are not sent as chunks".to_owned());
        }
        let Some(lines) = reply.text.strip_suffix('\n') else {
            return Some(format!("a last line without its end: {}", reply.text));
        };
        let lines: Vec<&str> = lines.split('\n').collect();
        let (last, before) = lines.split_last()?;
        if before.is_empty() {
            return Some(format!("a stream of one line: {last}"));
        }
        let misfit = before.iter().find_map(|line| fits(&self.shape, line, subject));
        misfit.or_else(|| fits(&self.last, last, subject)).or_else(|| out_of_order(&self.statuses, &lines))
    }
}

fn fits(shape: &Option<String>, text: &str, subject: &Subject) -> Option<String> {
    let shape = filled(shape.as_deref().unwrap_or("null"), subject);
    let shape: Value = serde_json::from_str(&shape).expect("checked when the table was read");
    match serde_json::from_str(text) {
        Ok(value) => mismatch("", &shape, &value).map(|what| format!("{what} in {text}")),
        Err(error) => Some(format!("no JSON ({error}): {text}")),
    }
}

/// Whether the statuses of lines are those expected, each as often as it likes, and none left out.
fn out_of_order(expected: &[String], lines: &[&str]) -> Option<String> {
    let mut expected = expected.iter().peekable();
    expected.peek()?;
    let mut now: Option<&String> = None;
    for line in lines {
        let value: Value = serde_json::from_str(line).unwrap_or_default();
        let status = value["status"].as_str().unwrap_or_default();
        if now.is_some_and(|now| is_status(now, status)) {
            continue;
        }
        now = expected.next();
        if !now.is_some_and(|now| is_status(now, status)) {
            return Some(format!("`{status}` instead of {now:?}"));
        }
    }
    expected.next().map(|missing| format!("`{missing}` does not come"))
}

fn is_status(pattern: &str, status: &str) -> bool {
    pattern.split('|').any(|pattern| match pattern.split_once('#') {
        None => pattern == status,
        Some((before, after)) => {
            let digits = status.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
            digits.is_some_and(|digits| {
                [12, 64].contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
            })
        }
    })
}

fn filled(text: &str, subject: &Subject) -> String {
    let text = text.replace("{model}", &subject.model).replace("{absent}", "golden-absent:none");
    let text = text.replace("{registry}", subject.registry.as_deref().unwrap_or("none"));
    text.replace("{embedder}", subject.embedder.as_deref().unwrap_or("none"))
}

#[cfg(test)]
mod tests;
