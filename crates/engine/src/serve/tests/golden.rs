//! The table of what Ollama answers, held against the engine.

use std::time::Duration;

use fakes::golden::{Subject, Table};

use super::rig::{Rig, Said, text};
use crate::runner::{Candidate, Done, Ended, Event, TokenLogprob};
use crate::serve::SECRET_HEADER;

/// Errors of type have the engine's own words, as `docs/ollama-compat.md` says.
const DIFFERS: [&str; 1] = ["a field of a wrong type"];

#[tokio::test]
async fn the_engine_answers_as_the_table_of_ollama_says() {
    let rig = Rig::new().await;
    // In the order of the table: each of its requests that reaches the runner finds what it asks for.
    rig.script.says([text("a"), text("b"), cut_short(2)]);
    rig.script.says([text("a"), text("b"), cut_short(2)]);
    rig.script.says([text("a"), cut_short(1)]);
    rig.script.says([text("a"), text("b"), cut_short(2)]);
    rig.script.says([likely("a"), likely("b"), cut_short(2)]);
    for _ in 0..3 {
        rig.script.says([text("a"), text("b"), cut_short(2)]);
    }
    let subject = Subject {
        address: rig.address,
        headers: vec![(SECRET_HEADER.to_owned(), rig.secret().to_owned())],
        model: "tiny:latest".to_owned(),
        embedder: Some("vectors:latest".to_owned()),
        registry: None,
        differs: DIFFERS.to_vec(),
    };
    let report = Table::ollama().check(&subject).await;
    assert!(report.findings.is_empty(), "\n{}", report.text());
    assert_eq!(rig.script.jobs().len(), 8, "the table asks for other answers than it did");
}

fn likely(token: &str) -> Said {
    let candidate = |logprob| Candidate { bytes: token.as_bytes().to_vec(), logprob };
    let logprobs = vec![TokenLogprob { chosen: candidate(-0.5), top: vec![candidate(-0.5), candidate(-1.0)] }];
    Ok(Event::Text { text: token.to_owned(), logprobs })
}

fn cut_short(output_tokens: u32) -> Said {
    Ok(Event::Done(Done {
        ended: Ended::Length,
        prompt_tokens: 5,
        reused_tokens: 0,
        prompt_time: Duration::from_millis(3),
        output_tokens,
        output_time: Duration::from_millis(4),
        context: vec![7, 8],
    }))
}
