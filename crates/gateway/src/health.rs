//! Answers for probes. Alive is whether the process answers at all; ready is whether it can do its work.

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use node::{Api, Readiness};
use schemars::SchemaGenerator;
use tokio::sync::Mutex;
use tokio::time::Instant;
use types::Scope;

use crate::access::Need;
use crate::failure::Failure;
use crate::route::{Answers, Ask, Route};
use crate::wire;

/// How long one look serves all who ask.
const FRESH: Duration = Duration::from_millis(500);

/// The last look at whether this node is ready. A look asks the leader, and anybody may ask for one: one at a time, and
/// not too often, so that strangers cannot make a node busy with it.
#[derive(Debug, Default)]
pub(crate) struct Probe(Mutex<Option<(Instant, Readiness)>>);

impl Probe {
    async fn look(&self, api: &Api) -> Readiness {
        let mut last = self.0.lock().await;
        match &*last {
            Some((at, found)) if at.elapsed() < FRESH => found.clone(),
            _ => {
                let found = api.readiness().await;
                *last = Some((Instant::now(), found.clone()));
                found
            }
        }
    }
}

pub(crate) async fn live(_: Ask<wire::Nothing>) -> Result<wire::Nothing, Failure> {
    Ok(wire::Nothing {})
}

/// The same JSON whether ready or not: probes look at the status, people at the parts.
pub(crate) fn ready_route() -> Route {
    let answer = Answers::Json(SchemaGenerator::subschema_for::<wire::Readiness>);
    Route::other("/healthz/ready", Need::Nothing, "Whether this node can do its work", answer, ready)
}

async fn ready(ask: Ask<wire::Nothing>) -> Result<Response, Failure> {
    let found = ask.face.probe().look(ask.api()).await;
    let ready = found.ready() && !ask.face.shutdown().is_cancelled();
    let told = ask.caller.may(Need::Scope(Scope::Read)).is_ok();
    let part = |(name, state): (&str, Result<(), String>)| wire::Part {
        name: name.to_owned(),
        ready: state.is_ok(),
        why: state.err().filter(|_| told),
    };
    let parts = found.parts.into_iter().map(part).collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(wire::Readiness { ready, parts })).into_response())
}
