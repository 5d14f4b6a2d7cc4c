//! Answers of a real model, which has to say the same on another node as it would have said on the first.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testnet::{Options, Testnet, wait_until};

use crate::client::{self, Said};
use crate::{LIMIT, figure_of, offering};

const MODEL: &str = "omx-guide";
const WORKERS: usize = 3;
const ROUTES: [&str; 3] = ["/api/chat", "/api/generate", "/v1/chat/completions"];
const QUESTIONS: [&str; 3] =
    ["How do I add a second machine?", "What is OllamaMax?", "What happens when a machine dies?"];

/// `OMX_POINTS` for a longer run by hand.
#[test]
fn an_answer_is_the_same_wherever_its_node_was_killed() -> Result<()> {
    let points: u64 = std::env::var("OMX_POINTS").map_or(Ok(9), |text| text.parse()).context("`OMX_POINTS`")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let scratch = tempfile::tempdir()?;
    let with_engine = ["--ollama", "none"].map(str::to_owned).to_vec();
    let without = ["--ollama", "none", "--engine", "off"].map(str::to_owned).to_vec();
    let each = std::iter::repeat_n(with_engine, WORKERS).chain([without]).collect();
    let options = Options { each, ..Options::default() };
    let mut mesh = Testnet::up(Path::new(env!("CARGO_BIN_EXE_omx")), scratch.path(), WORKERS + 1, &options)?;
    let until_there = |mesh: &Testnet| {
        wait_until("the last node to know of all engines", LIMIT, || {
            let offering = offering(mesh.nodes().last().context("there is one")?)?;
            ensure!(offering.len() == WORKERS, "{offering:?}");
            Ok(())
        })
    };
    let entry = mesh.nodes().last().context("there is one")?.run()?.api;
    let mut unbroken: BTreeMap<u64, (String, usize)> = BTreeMap::new();
    let mut dice = 7_u64;
    for point in 0..points {
        until_there(&mesh)?;
        let which = point % (ROUTES.len() * QUESTIONS.len()) as u64;
        let route = ROUTES[which as usize % ROUTES.len()];
        let body = question(route, QUESTIONS[which as usize / ROUTES.len()]);
        let (expected, lines) = match unbroken.entry(which) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let said = runtime.block_on(client::ask(entry, route, &body))?;
                place.insert((text(&said, route)?, said.lines.len()))
            }
        };
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        let after = 1 + dice as usize % (*lines * 3 / 4);
        let mut answer = runtime.block_on(client::begun(entry, route, &body))?;
        runtime.block_on(answer.until_lines(if route.starts_with("/v1") { 2 * after } else { after }))?;
        let teller = answer.node.clone();
        mesh.node(&teller)?.kill9()?;
        let said = runtime.block_on(answer.rest())?;
        let told = text(&said, route).with_context(|| format!("killed after {after} of {lines} lines of {route}"))?;
        ensure!(told == *expected, "killed after {after} of {lines} lines of {route}:\n{told}\ninstead of\n{expected}");
        mesh.node(&teller)?.start()?;
    }
    let seams = figure_of(&runtime, entry, "omx_infer_continued_total")?;
    println!("{points} kills, {seams} seams");
    // A node may have told all before it was killed, now and then.
    ensure!(seams >= points as f64 / 2.0, "of {points} kills {seams} hit an answer");
    Ok(())
}

fn question(route: &str, text: &str) -> Value {
    let messages = json!([{ "role": "user", "content": text }]);
    match route {
        "/api/generate" => json!({ "model": MODEL, "prompt": text, "options": { "temperature": 0 } }),
        "/api/chat" => json!({ "model": MODEL, "messages": messages, "options": { "temperature": 0 } }),
        _ => json!({ "model": MODEL, "messages": messages, "temperature": 0, "stream": true }),
    }
}

/// Of an answer that came to its end.
fn text(said: &Said, route: &str) -> Result<String> {
    let last = said.lines.last().context("there are lines")?;
    let is_whole = last["done"] == true || (said.is_done && last["choices"][0]["finish_reason"].is_string());
    ensure!(said.status == 200 && said.is_whole && is_whole, "it ends with {last}");
    let piece = |line: &Value| match route {
        "/api/generate" => line["response"].as_str().map(str::to_owned),
        "/api/chat" => line["message"]["content"].as_str().map(str::to_owned),
        _ => line["choices"][0]["delta"]["content"].as_str().map(str::to_owned),
    };
    Ok(said.lines.iter().filter_map(piece).collect())
}
