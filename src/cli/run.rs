//! `omx run`: a conversation with a model, in the terminal.

use std::io::{self, BufRead, IsTerminal, Read};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::Session;
use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::out;

/// Ask a model
///
/// With a prompt, or one on stdin, it is answered and that is all. Without, lines are taken from the terminal and the
/// conversation goes on until Ctrl-D. Ctrl-C ends it at once, and the model stops.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  omx run omx-guide \"What is OllamaMax?\"\n  omx run omx-guide\n  \
    git diff | omx run llama3.2")]
pub(super) struct Run {
    model: String,
    prompt: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Chat<'a> {
    model: &'a str,
    messages: &'a [Message],
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Message {
    #[serde(default)]
    role: String,
    #[serde(default)]
    content: String,
}

/// One line of the answer.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(default)]
    message: Message,
    #[serde(default)]
    done: bool,
    error: Option<String>,
}

impl Run {
    pub(super) async fn run(self, session: &Session) -> Result<Exit, Failure> {
        let client = session.client()?;
        let mut talk = Talk { client, model: self.model, json: session.out.json, messages: Vec::new() };
        if !self.prompt.is_empty() {
            talk.say(self.prompt.join(" ")).await?;
            return Ok(Exit::Ok);
        }
        let failed = |error| Failure::new(Exit::General, error);
        if !io::stdin().is_terminal() {
            let mut prompt = String::new();
            io::stdin().lock().read_to_string(&mut prompt).map_err(failed)?;
            talk.say(prompt).await?;
            return Ok(Exit::Ok);
        }
        loop {
            eprint!(">>> ");
            let mut line = String::new();
            // Nothing else is to be done meanwhile.
            if io::stdin().lock().read_line(&mut line).map_err(failed)? == 0 {
                eprintln!();
                return Ok(Exit::Ok);
            }
            if !line.trim().is_empty() && !talk.say(line.trim().to_owned()).await? {
                return Ok(Exit::Ok);
            }
        }
    }
}

struct Talk {
    client: Client,
    model: String,
    json: bool,
    messages: Vec<Message>,
}

impl Talk {
    /// Says one thing and shows the answer as it comes. Returns whether somebody still reads it.
    async fn say(&mut self, prompt: String) -> Result<bool, Failure> {
        self.messages.push(Message { role: "user".to_owned(), content: prompt });
        let chat = Chat { model: &self.model, messages: &self.messages };
        let mut lines = self.client.lines("/api/chat", &chat).await?;
        let mut answer = String::new();
        while let Some(line) = lines.next().await? {
            let read: Line = serde_json::from_slice(&line).map_err(|error| Failure::new(Exit::General, error))?;
            if let Some(error) = read.error {
                return Err(Failure::new(Exit::General, error));
            }
            let shown = match self.json {
                true => String::from_utf8_lossy(&line).into_owned() + "\n",
                false => visible(&read.message.content),
            };
            if !out::offer(&shown)? {
                return Ok(false);
            }
            answer += &read.message.content;
            if read.done {
                self.messages.push(Message { role: "assistant".to_owned(), content: answer });
                return if self.json { Ok(true) } else { out::offer("\n") };
            }
        }
        Err(Failure::new(Exit::General, "the answer broke off"))
    }
}

/// A model may say anything; a terminal obeys some of it.
fn visible(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control() || matches!(letter, '\n' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_not_shown() {
        assert_eq!(visible("a\u{1b}[31mb\r\n\tc\u{9b}d"), "a[31mb\n\tcd");
    }

    #[test]
    fn lines_of_an_answer_are_understood_with_more_or_less_in_them() {
        let line: Line =
            serde_json::from_str(r#"{"message":{"role":"assistant","content":"x"},"done":false,"new":1}"#).unwrap();
        assert_eq!((line.message.content.as_str(), line.done), ("x", false));
        let error: Line = serde_json::from_str(r#"{"error":"no"}"#).unwrap();
        assert_eq!(error.error.as_deref(), Some("no"));
    }
}
