//! Where requests go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testnet::wait_until;

use crate::{LIMIT, MODEL, Mesh, client, fake, offering};

fn turn(messages: &[Value], tokens: u32) -> Value {
    json!({ "model": MODEL, "messages": messages, "options": { "num_predict": tokens } })
}

fn said(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// Loads the model at one fake, past the mesh, and waits until the last node has heard of it.
fn warm(mesh: &Mesh, fake: usize) -> Result<()> {
    let address = mesh.fakes[fake].address();
    let loaded = mesh.runtime.block_on(client::ask(address, "/api/generate", &json!({ "model": MODEL })))?;
    ensure!(loaded.status == 200, "{loaded:?}");
    let name = format!("n{}", fake + 1);
    wait_until("it to be known as loaded", LIMIT, || {
        let queue = mesh.entry().json(&["ps"])?;
        let nodes = queue["nodes"].as_array().context("nodes")?;
        let is_loaded = |node: &Value| node["node"] == name.as_str() && node["models"][0]["loaded"] == true;
        ensure!(nodes.iter().any(is_loaded), "{queue}");
        Ok(())
    })
}

#[test]
fn a_request_goes_where_the_model_is_loaded_and_a_conversation_back_to_its_node() -> Result<()> {
    let slow_to_load = Duration::from_secs(3);
    let mut mesh = Mesh::before(vec![fake(4, 500.0, slow_to_load), fake(4, 500.0, Duration::ZERO)])?;
    warm(&mesh, 1)?;
    let first = mesh.ask(turn(&[said("user", "hello")], 3))?;
    ensure!(first.node == "n2", "{first:?}");
    ensure!(mesh.fakes[0].counts().loads == 0, "the other has loaded it");

    // Both have it by now; the prompt's text is in the cache of one of them.
    warm(&mesh, 0)?;
    for number in 0..6 {
        let opening = said("user", &format!("conversation {number}: {}", "tell me more ".repeat(400)));
        let first = mesh.ask(turn(std::slice::from_ref(&opening), 3))?;
        let answer = said("assistant", "t0 t1 t2");
        let second = mesh.ask(turn(&[opening.clone(), answer.clone(), said("user", "and then?")], 3))?;
        let third =
            mesh.ask(turn(&[opening, answer.clone(), said("user", "and then?"), answer, said("user", "?")], 3))?;
        ensure!(first.node == second.node && second.node == third.node, "{first:?} {second:?} {third:?}");
    }

    let entry = mesh.entry();
    let told = entry.text(&["trace", "--last"])?;
    ensure!(told.contains("first byte") && told.contains(MODEL), "{told}");
    let listed = entry.json(&["trace", "--list", "50"])?;
    ensure!(listed.as_array().is_some_and(|traces| traces.len() == 19), "{listed}");
    let one = listed[0]["id"].as_str().context("an id")?;
    ensure!(entry.json(&["trace", one])?["steps"].as_array().is_some_and(|steps| steps.len() >= 3));

    // The union of the nodes' lists, which have the same model.
    let tags = entry_list(&mesh, "/api/tags")?;
    ensure!(tags.as_array().is_some_and(|models| models.len() == 1) && tags[0]["name"] == MODEL, "{tags}");
    let loaded = entry_list(&mesh, "/api/ps")?;
    ensure!(loaded.as_array().is_some_and(|models| models.len() == 1), "{loaded}");

    // To be unloaded, it is unloaded wherever it is.
    let unload = mesh.ask(json!({ "model": MODEL, "messages": [], "keep_alive": 0, "stream": false }))?;
    ensure!(unload.status == 200 && unload.lines[0]["done_reason"] == "unload", "{unload:?}");
    wait_until("nobody to have it loaded", LIMIT, || {
        let loaded = entry_list(&mesh, "/api/ps")?;
        ensure!(loaded.as_array().is_some_and(Vec::is_empty), "{loaded}");
        Ok(())
    })?;

    // A node that drains gets nothing new.
    let node = mesh.testnet.node("n2")?;
    node.text(&["nodes", "drain", "n2"])?;
    wait_until("the drain to be known", LIMIT, || {
        let offering = offering(mesh.entry())?;
        ensure!(offering == ["n1"], "{offering:?}");
        Ok(())
    })?;
    let asked = mesh.ask(turn(&[said("user", "hello again")], 3))?;
    ensure!(asked.node == "n1", "{asked:?}");
    Ok(())
}

fn entry_list(mesh: &Mesh, path: &str) -> Result<Value> {
    let text = mesh.runtime.block_on(client::get(mesh.entry().run()?.api, path))?;
    let list: Value = serde_json::from_str(&text)?;
    Ok(list["models"].clone())
}

#[test]
fn a_full_node_is_left_for_one_that_is_free() -> Result<()> {
    let mesh = Mesh::before(vec![fake(1, 20.0, Duration::from_millis(10)), fake(1, 20.0, Duration::from_millis(10))])?;
    warm(&mesh, 0)?;
    warm(&mesh, 1)?;
    let api = mesh.entry().run()?.api;
    let long = turn(&[said("user", "a long story")], 100);
    let first = mesh.runtime.spawn(async move { client::ask(api, "/api/chat", &long).await });
    let busy = wait_until("one to be busy", LIMIT, || {
        let busy = mesh.fakes.iter().position(|fake| fake.counts().running == 1);
        busy.context("none is")
    })?;
    let second = mesh.ask(turn(&[said("user", "in a hurry")], 2))?;
    ensure!(second.node == format!("n{}", 2 - busy), "{second:?}, busy is fake {busy}");
    ensure!(mesh.fakes[busy].counts().running == 1, "the first had ended before the second was asked");
    let first = mesh.runtime.block_on(first)??;
    ensure!(first.node == format!("n{}", busy + 1) && first.is_whole, "{first:?}");
    Ok(())
}
