//! Answers that go on when the node that tells them dies or freezes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testnet::wait_until;
use tokio::task::JoinSet;

use crate::client::{self, Said};
use crate::{LIMIT, MODEL, Mesh, fake, offering, tokens};

const CLIENTS: u32 = 12;
const TOKENS: u32 = 60;
const WORKERS: usize = 4;
/// What streams there are between two blows.
const BETWEEN: u32 = 20;

/// `OMX_STREAMS` for a longer run by hand, `OMX_SEED` for another course of it.
#[test]
fn answers_outlive_the_nodes_that_tell_them() -> Result<()> {
    let (streams, seed) = (from_env("OMX_STREAMS", 300)?, from_env("OMX_SEED", 7)?);
    let configs = vec![slow(8); WORKERS];
    let mut mesh = Mesh::before(configs)?;
    let api = mesh.entry().run()?.api;
    let next = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let next = next.clone();
        let client = async move {
            let mut wrong = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= streams {
                    return wrong;
                }
                if let Err(error) = asked(api, number).await {
                    wrong.push(format!("stream {number}: {error:#}"));
                }
            }
        };
        clients.spawn_on(client, mesh.runtime.handle());
    }
    let (kills, freezes) = strike(&mut mesh, &next, streams, u64::from(seed))?;
    let limit = LIMIT + Duration::from_millis(200) * streams;
    let wrong = mesh.runtime.block_on(async { tokio::time::timeout(limit, clients.join_all()).await });
    let wrong: Vec<String> = wrong.context("streams hang")?.into_iter().flatten().collect();
    let continued = mesh.figure("omx_infer_continued_total")?;
    println!(
        "{streams} streams, seed {seed}: {kills} kills, {freezes} freezes, {continued} seams, {} wrong",
        wrong.len()
    );
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(continued > 0.0, "nothing had to be continued");
    ensure!(mesh.figure("omx_infer_cut_total")? == 0.0 && mesh.figure("omx_infer_under_way")? == 0.0);
    Ok(())
}

#[test]
fn the_trace_shows_the_seam_and_what_cannot_be_continued_says_why() -> Result<()> {
    let mut mesh = Mesh::before(vec![slow(8); 2])?;
    let api = mesh.entry().run()?.api;
    for (bound, options) in [(false, json!({})), (true, json!({ "format": "json" }))] {
        let mut body = question(0, "/api/chat");
        for (name, value) in options.as_object().into_iter().flatten() {
            body[name.as_str()] = value.clone();
        }
        let asked = mesh.runtime.spawn(async move { client::begun(api, "/api/chat", &body).await });
        let mut answer = mesh.runtime.block_on(asked)??;
        let teller = answer.node.clone();
        mesh.runtime.block_on(answer.until_lines(5))?;
        mesh.testnet.node(&teller)?.kill9()?;
        let said = mesh.runtime.block_on(answer.rest())?;
        if bound {
            let error = said.lines.last().and_then(|line| line["error"].as_str()).context("no error at its end")?;
            ensure!(error.contains(&teller) && error.contains("half of an answer in a given format"), "{error}");
        } else {
            whole(&said, "/api/chat")?;
            ensure!(said.continued.as_deref() == Some("1"), "{:?}", said.continued);
            let trace = mesh.entry().json(&["trace", &said.request])?;
            let steps: Vec<&str> =
                trace["steps"].as_array().into_iter().flatten().filter_map(|step| step["what"].as_str()).collect();
            ensure!(steps.contains(&"lost") && steps.last() == Some(&"ended"), "{steps:?}");
        }
        mesh.testnet.node(&teller)?.start()?;
        wait_until("the node to be back", LIMIT, || {
            let offering = offering(mesh.entry())?;
            ensure!(offering.len() == 2, "{offering:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Slow enough to be struck in the middle of an answer.
fn slow(slots: usize) -> fakes::Config {
    let mut config = fake(slots, 100.0, Duration::from_millis(50));
    config.models[0].answer_tokens = Some(TOKENS);
    config
}

const ROUTES: [&str; 3] = ["/api/chat", "/api/generate", "/v1/chat/completions"];

fn question(number: u32, route: &str) -> Value {
    let text = format!("number {number}");
    match route {
        "/api/generate" => json!({ "model": MODEL, "prompt": text, "options": { "seed": number } }),
        // Some end where they are told to rather than where the model does.
        _ if number.is_multiple_of(5) => json!({ "model": MODEL, "stream": true,
            "messages": [{ "role": "user", "content": text }], "options": { "num_predict": TOKENS }, "max_tokens": TOKENS }),
        _ => json!({ "model": MODEL, "stream": true, "messages": [{ "role": "user", "content": text }] }),
    }
}

async fn asked(api: SocketAddr, number: u32) -> Result<()> {
    let route = ROUTES[number as usize % ROUTES.len()];
    let said = client::ask(api, route, &question(number, route)).await?;
    whole(&said, route)
}

/// Every token once, in its order, one end, and one set of figures.
fn whole(said: &Said, route: &str) -> Result<()> {
    ensure!(said.status == 200 && said.is_whole, "status {}, whole: {}", said.status, said.is_whole);
    let text = |line: &Value| match route {
        "/api/generate" => line["response"].as_str().map(str::to_owned),
        "/api/chat" => line["message"]["content"].as_str().map(str::to_owned),
        _ => line["choices"][0]["delta"]["content"].as_str().map(str::to_owned),
    };
    let told: String = said.lines.iter().filter_map(text).collect();
    ensure!(told == tokens(TOKENS), "it was told `{told}`; its last line was {:?}", said.lines.last());
    let last = said.lines.last().context("there are lines")?;
    if route.starts_with("/v1") {
        ensure!(said.is_done && last["choices"][0]["finish_reason"].is_string(), "{last}");
        return Ok(());
    }
    let ends = said.lines.iter().filter(|line| line["done"] == true).count();
    ensure!(ends == 1 && last["done"] == true && last["eval_count"] == TOKENS, "{ends} ends, the last is {last}");
    Ok(())
}

/// Kills or freezes one worker after the other, each until some more streams have begun. Returns how many of each.
fn strike(mesh: &mut Mesh, next: &AtomicU32, streams: u32, seed: u64) -> Result<(u32, u32)> {
    let (mut dice, mut at) = (seed | 1, BETWEEN);
    let (mut kills, mut freezes) = (0, 0);
    let until = |number: u32| {
        wait_until("streams to come along", 2 * LIMIT, || {
            let now = next.load(Ordering::Relaxed);
            ensure!(now >= number.min(streams), "{now} of {number}");
            Ok(())
        })
    };
    until(at)?;
    while at < streams {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        let name = format!("n{}", 1 + dice % WORKERS as u64);
        let is_kill = (dice >> 32).is_multiple_of(2);
        let node = mesh.testnet.node(&name)?;
        if is_kill {
            node.kill9()?
        } else {
            node.freeze()?
        }
        at += BETWEEN;
        until(at)?;
        let node = mesh.testnet.node(&name)?;
        if is_kill {
            node.start()?;
            kills += 1;
        } else {
            node.thaw()?;
            freezes += 1;
        }
        wait_until("the node to be back", LIMIT, || {
            let offering = offering(mesh.entry())?;
            ensure!(offering.len() == WORKERS, "{offering:?}");
            Ok(())
        })?;
    }
    Ok((kills, freezes))
}

fn from_env(name: &str, default: u32) -> Result<u32> {
    std::env::var(name).map_or(Ok(default), |text| text.parse().with_context(|| format!("`{name}` is a number")))
}
