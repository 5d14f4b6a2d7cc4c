//! What it lets in, what it gives up, and that nothing is left of what was cancelled.

use std::time::Duration;

use agent::state::State;
use agent::{Answer, Config, Error, Refusal, Request};
use bytes::Bytes;
use fakes::Fault;
use ollama::seen;
use scheduler::{Seconds, Tenant};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::bench::{LIMIT, NAME, bench, model, slots};

/// All lines, and how it ended.
async fn read(answer: &mut Answer) -> (Vec<Bytes>, Result<(), Error>) {
    let mut lines = Vec::new();
    while let Some(line) = timeout(LIMIT, answer.next()).await.unwrap() {
        match line {
            Ok(line) => lines.push(line),
            Err(error) => return (lines, Err(error)),
        }
    }
    (lines, Ok(()))
}

#[tokio::test]
async fn an_answer_comes_line_by_line_as_the_backend_wrote_it() {
    let bench = bench(model(20, 5000.0), slots(1)).await;
    let mut answer = bench.run().await.unwrap();
    assert_eq!(answer.status, 200);
    let (lines, end) = read(&mut answer).await;
    end.unwrap();
    assert!(lines.iter().all(|line| line.ends_with(b"}\n")));
    let last: seen::Last = serde_json::from_slice(lines.last().unwrap()).unwrap();
    assert_eq!((last.done, last.eval_count), (true, 20));
    assert_eq!(bench.agent.running(), 0);
    let facts = bench.agent.facts();
    assert_eq!((facts.state, facts.version), (State::Up, Some(fakes::Config::default().version)));
    assert_eq!((&facts.models[0].names[..], facts.models[0].facts.slots), (&[NAME.to_owned()][..], 1));
    assert!(facts.models[0].facts.resident.is_some());
    assert!(
        bench.agent.probe(&bench.ask().work, Duration::ZERO).unwrap().estimate.load == Seconds::ZERO,
        "it is loaded now"
    );
}

#[tokio::test]
async fn no_more_are_inside_than_there_are_slots_however_many_come() {
    let bench = bench(model(5, 50_000.0), slots(4)).await;
    let mut clients = JoinSet::new();
    for _ in 0..1000 {
        let (agent, request) = (bench.agent.clone(), bench.request());
        clients.spawn(async move { read(&mut agent.run(request).await.unwrap()).await.1.unwrap() });
    }
    timeout(LIMIT, clients.join_all()).await.unwrap();
    let counts = bench.fake.counts();
    assert_eq!((counts.finished, counts.running_max), (1000, 4));
    assert!(counts.connections <= 16, "connections are kept: {counts:?}");
}

#[tokio::test]
async fn slots_that_nobody_told_are_learned_as_far_as_streams_run_side_by_side() {
    // Long as against their first tokens: a trial that meets the end of another stream says nothing.
    let config = fakes::Config { slots: 3, ..model(400, 2000.0) };
    let bench = bench(config, Config { slots: None, ..slots(1) }).await;
    let known = bench.agent.model(NAME).unwrap();
    assert_eq!(bench.agent.slots(known), Some(1));
    let mut clients = JoinSet::new();
    for _ in 0..6 {
        let (agent, known) = (bench.agent.clone(), known);
        let requests = std::iter::repeat_with(|| bench.request()).take(1000).collect::<Vec<_>>();
        clients.spawn(async move {
            for request in requests {
                read(&mut agent.run(request).await.unwrap()).await.1.unwrap();
                if agent.slots(known) >= Some(3) {
                    break;
                }
            }
        });
    }
    timeout(LIMIT, clients.join_all()).await.unwrap();
    assert_eq!(bench.agent.slots(known), Some(3));
}

#[tokio::test]
async fn an_answer_that_is_dropped_stops_the_backend_and_frees_its_slot() {
    let bench = bench(model(100_000, 1000.0), slots(1)).await;
    let mut answer = bench.run().await.unwrap();
    answer.next().await.unwrap().unwrap();
    drop(answer);
    assert_eq!(bench.agent.running(), 0, "the slot is free when the drop returns");
    let limit = Duration::from_secs(1);
    bench.fake.until(|counts| counts.cancelled == 1 && counts.running == 0, limit).await.unwrap();
    bench.run().await.unwrap().next().await.unwrap().unwrap();
}

#[tokio::test]
async fn ten_thousand_cancels_leave_nothing_behind() {
    let bench = bench(model(100_000, 1000.0), slots(2)).await;
    for _ in 0..100 {
        let mut clients = JoinSet::new();
        for at in 0..100_u32 {
            let (agent, request) = (bench.agent.clone(), bench.request());
            clients.spawn(async move {
                let running = agent.run(request);
                if at % 20 == 0 {
                    // Gone in the middle of the answer, however slow the machine is.
                    running.await.unwrap().next().await.unwrap().unwrap();
                    return;
                }
                // Some wait, some have been sent, some have begun to be answered.
                if let Ok(Ok(mut answer)) = timeout(Duration::from_micros(u64::from(at * 20)), running).await {
                    answer.next().await.unwrap().unwrap();
                }
            });
        }
        timeout(LIMIT, clients.join_all()).await.unwrap();
    }
    assert_eq!((bench.agent.running(), bench.agent.waiting()), (0, 0));
    let settled = |counts: &fakes::Counts| counts.running == 0 && counts.waiting == 0 && counts.connections_open <= 4;
    let counts = bench.fake.until(settled, Duration::from_secs(1)).await.unwrap();
    assert!(counts.cancelled >= 100 && counts.running_max <= 3, "{counts:?}");
    bench.run().await.unwrap().next().await.unwrap().unwrap();
}

#[tokio::test]
async fn two_tenants_are_served_alike_though_one_of_them_asks_for_more() {
    let bench = bench(model(5, 50_000.0), slots(1)).await;
    let (sender, mut served) = tokio::sync::mpsc::unbounded_channel();
    let mut clients = JoinSet::new();
    for at in 0..120_u64 {
        let (agent, mut request, sender) = (bench.agent.clone(), bench.request(), sender.clone());
        request.ask.work.tenant = Tenant::of_key(&[u8::from(at >= 100)]);
        request.ask.work.prompt = 3000;
        clients.spawn(async move {
            let mut answer = agent.run(request).await.unwrap();
            sender.send(at >= 100).unwrap();
            read(&mut answer).await.1.unwrap();
        });
    }
    timeout(LIMIT, clients.join_all()).await.unwrap();
    drop(sender);
    let mut order = Vec::new();
    while let Some(is_modest) = served.recv().await {
        order.push(is_modest);
    }
    let last = order.iter().rposition(|is_modest| *is_modest).unwrap();
    assert!(last < 60, "the twenty of the modest one were done after `{last}` of 120");
}

#[tokio::test]
async fn who_waits_too_long_is_sent_away_and_who_will_not_wait_is_refused_at_once() {
    let bench = bench(model(100_000, 1000.0), slots(1)).await;
    let _inside = bench.run().await.unwrap();
    let mut request = bench.request();
    request.ask.work.deadline = Some(Duration::from_millis(50));
    let started = Instant::now();
    let late = bench.agent.run(request).await;
    assert!(matches!(late, Err(Error::Refused(Refusal::Late))), "{late:?}");
    assert!(started.elapsed() < Duration::from_secs(1));
    let mut request = bench.request();
    request.ask.wait_max = Some(Duration::ZERO);
    let nack = bench.agent.run(request).await;
    assert!(
        matches!(nack, Err(Error::Refused(Refusal::Nack(promise))) if promise.estimate.wait > Seconds::ZERO),
        "{nack:?}"
    );
    assert_eq!(bench.agent.waiting(), 0);
}

#[tokio::test]
async fn a_frozen_backend_is_left_within_five_seconds_by_those_inside_and_those_who_wait() {
    let bench = bench(model(100_000, 1000.0), slots(1)).await;
    let mut inside = bench.run().await.unwrap();
    inside.next().await.unwrap().unwrap();
    let waits = bench.agent.run(bench.request());
    bench.fake.faults().always(Fault::Freeze);
    let started = Instant::now();
    let ((_, inside), waits) = tokio::join!(read(&mut inside), waits);
    assert!(matches!(inside, Err(Error::GivenUp(_))), "{inside:?}");
    assert!(matches!(waits, Err(Error::Refused(Refusal::Down(_)))), "{waits:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    bench.fake.faults().clear();
    bench.until(|agent| agent.state() == State::Up).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_like_one_that_ended() {
    let bench = bench(model(200, 5000.0), slots(1)).await;
    bench.fake.faults().next(1, Fault::Cut { at: 700 });
    let (lines, end) = read(&mut bench.run().await.unwrap()).await;
    assert!(matches!(end, Err(Error::Broken(_))), "{end:?}");
    assert!(!lines.is_empty() && lines.iter().all(|line| line.ends_with(b"\n")), "whole lines only");
    bench.fake.faults().next(1, Fault::Status { status: 500 });
    assert_eq!(bench.run().await.unwrap().status, 500);
    let mut answer = bench.run().await.unwrap();
    assert!(read(&mut answer).await.1.is_ok());
}

#[tokio::test]
async fn a_smaller_context_is_raised_to_the_loaded_one_and_nothing_is_loaded_anew() {
    let bench = bench(model(5, 5000.0), slots(1)).await;
    let with = |context: u32| {
        let body = format!(r#"{{"model":"{NAME}","prompt":"hello","options":{{"num_ctx":{context}}}}}"#);
        Request { body: Bytes::from(body), ..bench.request() }
    };
    read(&mut bench.agent.run(with(4096)).await.unwrap()).await.1.unwrap();
    let known = bench.agent.model(NAME).unwrap();
    bench.until(|agent| agent.loaded_context(known) == Some(4096)).await;
    let mut answer = bench.agent.run(with(2048)).await.unwrap();
    assert_eq!(answer.raised_context, Some(4096));
    read(&mut answer).await.1.unwrap();
    assert_eq!(bench.fake.counts().loads, 1);
    let mut answer = bench.agent.run(with(8192)).await.unwrap();
    assert_eq!(answer.raised_context, None, "more is not made less");
    read(&mut answer).await.1.unwrap();
    assert_eq!(bench.fake.counts().loads, 2);
}

#[tokio::test]
async fn draining_lets_those_inside_finish_and_takes_nobody() {
    let bench = bench(model(50, 1000.0), slots(1)).await;
    let mut inside = bench.run().await.unwrap();
    bench.agent.drain(true);
    let refused = bench.run().await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::Draining))), "{refused:?}");
    assert!(read(&mut inside).await.1.is_ok());
}
