//! Why requests went where they went, and what waits where.

use std::sync::Arc;

use axum::http::StatusCode;
use node::{Api, Trace, What};
use types::{RequestId, UnixMillis};

use crate::failure::Failure;
use crate::route::Ask;
use crate::wire;

const TRACES: usize = 20;
const TRACES_MAX: usize = 1_000;

pub(crate) async fn traces(ask: Ask<wire::Last>) -> Result<Vec<wire::Trace>, Failure> {
    let count = ask.input.last.unwrap_or(TRACES).min(TRACES_MAX);
    let traces = ask.api().inference().traces(count);
    Ok(traces.iter().map(|trace| told(ask.api(), trace)).collect())
}

pub(crate) async fn trace(ask: Ask<wire::Nothing>) -> Result<wire::Trace, Failure> {
    let text = ask.part("id");
    let id: RequestId = text.parse().map_err(|_| Failure::bad_request("a request's id is 32 hexadecimal digits"))?;
    let unknown = || {
        Failure::new(StatusCode::NOT_FOUND, "unknown_request", format!("this node has no trace of request `{id}`"))
            .hint("ask the node the request came in at; it keeps the last thousand, from their end on")
    };
    let trace = ask.api().inference().trace(id).ok_or_else(unknown)?;
    Ok(told(ask.api(), &trace))
}

pub(crate) async fn queue(ask: Ask<wire::Nothing>) -> Result<wire::Queue, Failure> {
    let (api, inference) = (ask.api(), ask.api().inference());
    let figures = inference.figures();
    let load = |(node, facts): (types::NodeId, node::NodeFacts)| wire::Load {
        node: api.name_of(node),
        up: inference.is_up(node),
        backends: facts.backends.iter().map(backend).collect(),
        models: facts.models.iter().map(model).collect(),
    };
    let nodes = inference.load().into_iter().map(load).collect();
    Ok(wire::Queue { running: figures.running, waiting: figures.waiting, nodes })
}

fn backend(backend: &node::BackendFacts) -> wire::LoadedBackend {
    wire::LoadedBackend {
        kind: format!("{:?}", backend.kind).to_lowercase(),
        state: format!("{:?}", backend.state).to_lowercase(),
        version: backend.version.clone(),
    }
}

fn model(model: &node::ModelFacts) -> wire::LoadedModel {
    wire::LoadedModel {
        name: model.name.clone(),
        digest: scheduler::ModelKey::from_bytes(model.digest).to_string(),
        backend: model.backend.into(),
        loaded: model.resident,
        context: (model.resident && model.context > 0).then_some(model.context),
        slots: model.slots.into(),
        free: model.free.into(),
        wait: model.wait.value(),
        load: model.load.value(),
        prompt_rate: model.prefill.value(),
        answer_rate: model.decode.value(),
    }
}

fn told(api: &Api, trace: &Arc<Trace>) -> wire::Trace {
    let ago = u64::try_from(api.inference().since(trace.begun).as_millis()).unwrap_or(u64::MAX);
    let phases = trace.phases();
    wire::Trace {
        id: trace.id.to_string(),
        models: api.inference().names_of(trace.model).into_iter().collect(),
        digest: trace.model.to_string(),
        class: format!("{:?}", trace.class).to_lowercase(),
        begun_at: wire::Time(UnixMillis(node::now().0.saturating_sub(ago))),
        phases: wire::Phases {
            choosing: phases.choosing.as_secs_f64(),
            lost: phases.lost.as_secs_f64(),
            waiting: phases.waiting.as_secs_f64(),
            streaming: phases.streaming.as_secs_f64(),
        },
        steps: trace
            .steps
            .iter()
            .map(|step| wire::Step { at: step.at.as_secs_f64(), ..what(api, &step.what) })
            .collect(),
    }
}

fn what(api: &Api, what: &What) -> wire::Step {
    let step = |what, node: Option<&types::NodeId>| wire::Step {
        at: 0.0,
        what,
        node: node.map(|node| api.name_of(*node)),
        score: None,
        wait_max: None,
        why: None,
    };
    let seconds = |span: &scheduler::Seconds| Some(f64::from(span.get()));
    match what {
        What::Asked { node, why, stale } => {
            let why = Some(candidate(*why).to_owned());
            wire::Step { score: seconds(stale), why, ..step(wire::What::Asked, Some(node)) }
        }
        What::Promised { node, score } => {
            wire::Step { score: seconds(score), ..step(wire::What::Promised, Some(node)) }
        }
        What::Declined { node, why } => wire::Step { why: Some(why.clone()), ..step(wire::What::Declined, Some(node)) },
        What::Sent { node, reason, score, max_wait } => wire::Step {
            score: seconds(score),
            wait_max: max_wait.map(|span| span.as_secs_f64()),
            why: Some(reason_of(*reason).to_owned()),
            ..step(wire::What::Sent, Some(node))
        },
        What::Failed { node, why } => wire::Step { why: Some(why.clone()), ..step(wire::What::Failed, Some(node)) },
        What::FirstByte { node } => step(wire::What::FirstByte, Some(node)),
        What::Lost { node, why } => wire::Step { why: Some(why.clone()), ..step(wire::What::Lost, Some(node)) },
        What::Ended => step(wire::What::Ended, None),
        What::GaveUp { why } => wire::Step { why: Some(why.clone()), ..step(wire::What::GaveUp, None) },
        What::Cancelled => step(wire::What::Cancelled, None),
    }
}

fn candidate(why: node::Why) -> &'static str {
    match why {
        node::Why::Everyone => "few have the model: all are asked",
        node::Why::Conversation => "the conversation was there",
        node::Why::Home => "prompts that begin so meet there",
        node::Why::Sampled => "drawn from the good ones",
        node::Why::Own => "this node",
        node::Why::Cold => "it would load, and may be sooner",
        node::Why::Last => "nobody better admits",
    }
}

fn reason_of(reason: node::Reason) -> &'static str {
    match reason {
        node::Reason::Best => "the best promise",
        node::Reason::Cached => "has the prompt cached, and nobody is much better",
        node::Reason::Explored => "tried for once, to learn of it",
        node::Reason::Known => "the conversation was there a moment ago",
        node::Reason::Degraded => "nobody answered in time: the best by what was heard",
    }
}
