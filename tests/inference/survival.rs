//! A thousand requests while nodes die, freeze and fail under them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fakes::Fault;
use serde_json::json;
use testnet::wait_until;
use tokio::task::JoinSet;

use crate::client::{self, Outcome};
use crate::{LIMIT, MODEL, Mesh, fake, tokens};

const REQUESTS: u32 = 1_000;
const CLIENTS: u32 = 16;
const TOKENS: u32 = 20;

#[test]
fn no_request_is_lost_or_done_twice_whatever_happens_to_nodes() -> Result<()> {
    let load = Duration::from_millis(50);
    let unequal = [(8, 400.0), (4, 200.0), (4, 100.0), (2, 100.0), (2, 50.0)];
    let mut mesh = Mesh::before(unequal.map(|(slots, decode)| fake(slots, decode, load)).into())?;
    let api = mesh.entry().run()?.api;
    let next = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let next = next.clone();
        let client = async move {
            let mut outcomes = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= REQUESTS {
                    return outcomes;
                }
                let outcome = match client::ask(api, "/api/chat", &question(number)).await {
                    Ok(said) => said.outcome(),
                    Err(error) => Outcome::Lost(format!("{error:#}")),
                };
                outcomes.push((number, outcome));
            }
        };
        clients.spawn_on(client, mesh.runtime.handle());
    }
    let stopped = disturb(&mut mesh, &next)?;
    let outcomes = mesh
        .runtime
        .block_on(async { tokio::time::timeout(3 * LIMIT, clients.join_all()).await.context("requests hang") })?;
    let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
    ensure!(outcomes.len() == REQUESTS as usize, "{} outcomes", outcomes.len());
    let whole = tokens(TOKENS);
    for (number, outcome) in outcomes {
        match outcome {
            Outcome::Whole(text) => ensure!(text == whole, "request {number} was answered `{text}`"),
            Outcome::Cut(text) => anyhow::bail!("request {number} broke off after `{text}`"),
            Outcome::Lost(what) => anyhow::bail!("request {number} was lost: {what}"),
        }
    }
    let retries = mesh.figure("omx_infer_retries_total")?;
    ensure!(retries > 0.0, "nothing went wrong");
    // By what the backends saw, not by what we say of ourselves. Who goes on with an answer is asked twice.
    let continued = mesh.figure("omx_infer_continued_total")? as u64;
    let inferences = stopped + mesh.fakes.iter().map(|fake| fake.counts().inferences).sum::<u64>();
    ensure!(inferences <= u64::from(REQUESTS) * 11 / 10 + 2 * continued, "{inferences} requests reached backends");
    ensure!(mesh.figure("omx_infer_requests_total")? == f64::from(REQUESTS));
    ensure!(mesh.figure("omx_infer_under_way")? == 0.0, "something is left over");
    Ok(())
}

/// Each fourth in one piece.
fn question(number: u32) -> serde_json::Value {
    let messages = json!([{ "role": "user", "content": format!("number {number}") }]);
    json!({ "model": MODEL, "messages": messages, "stream": !number.is_multiple_of(4), "options": { "num_predict": TOKENS } })
}

/// One after the other, as requests come along: a node dies and returns, a backend fails, a node freezes and thaws, a
/// backend hangs, another ends, the leader dies. Returns what the backend that ended had been asked.
fn disturb(mesh: &mut Mesh, next: &AtomicU32) -> Result<u64> {
    let Mesh { runtime, fakes, testnet, .. } = mesh;
    let at = |number: u32| {
        wait_until("requests to come along", 2 * LIMIT, || {
            let now = next.load(Ordering::Relaxed);
            ensure!(now >= number, "{now} of {number}");
            Ok(())
        })
    };
    // While the gateway has served next to nothing, and may retry next to nothing.
    at(20)?;
    testnet.node("n2")?.kill9()?;
    at(200)?;
    testnet.node("n2")?.start()?;
    at(300)?;
    fakes[2].faults().next(20, Fault::Status { status: 500 });
    at(400)?;
    testnet.node("n4")?.freeze()?;
    at(550)?;
    testnet.node("n4")?.thaw()?;
    at(600)?;
    fakes[4].faults().next(2, Fault::Hang);
    at(700)?;
    let other = runtime.block_on(fakes::Ollama::start(fakes::Config::default()))?;
    let stopped = runtime.block_on(std::mem::replace(&mut fakes[1], other).stop());
    at(850)?;
    let entry = testnet.nodes().last().context("there is one")?;
    let leader = entry.status()?["leader"]["name"].as_str().context("a leader")?.to_owned();
    ensure!(leader != entry.name(), "the node that is asked leads");
    testnet.node(&leader)?.kill9()?;
    Ok(stopped.inferences)
}
