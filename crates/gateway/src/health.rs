//! Answers for probes. Alive is whether the process answers at all; ready is whether it can do its work.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::SchemaGenerator;
use types::Scope;

use crate::access::Need;
use crate::failure::Failure;
use crate::route::{Answers, Ask, Route};
use crate::wire;

pub(crate) async fn live(_: Ask<wire::Nothing>) -> Result<wire::Nothing, Failure> {
    Ok(wire::Nothing {})
}

/// The same JSON whether ready or not: probes look at the status, people at the parts.
pub(crate) fn ready_route() -> Route {
    let answer = Answers::Json(SchemaGenerator::subschema_for::<wire::Readiness>);
    Route::other("/healthz/ready", Need::Nothing, "Whether this node can do its work", answer, ready)
}

async fn ready(ask: Ask<wire::Nothing>) -> Result<Response, Failure> {
    let found = ask.api().readiness().await;
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
