//! Every route there is. What is not here is not served.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::{MethodFilter, on};
use types::Scope;

use crate::access::Need;
use crate::face::{Face, Service};
use crate::failure::Failure;
use crate::quota::Quota;
use crate::route::{Answers, Errors, GENERATE_WITHIN, Route};
use crate::{admin, health, metrics, ollama, openai, openapi};

const READ: Need = Need::Scope(Scope::Read);
const ADMIN: Need = Need::Scope(Scope::Admin);
const INFER: Need = Need::Scope(Scope::Infer);
const MODELS: Need = Need::Scope(Scope::Models);

pub(crate) fn routes() -> Vec<Route> {
    known().into_iter().chain(not_yet()).collect()
}

fn known() -> Vec<Route> {
    use admin::{backends, config, events, inference, keys, models, nodes, tokens};
    use ollama::{infer, lists, manage};
    vec![
        Route::read("/omx/v1/status", READ, "How the mesh is, as this node sees it now", nodes::status),
        Route::read("/omx/v1/nodes", READ, "The members", nodes::list),
        Route::read("/omx/v1/nodes/{node}", READ, "One member, by name, id or the beginning of its id", nodes::show),
        Route::change(Method::POST, "/omx/v1/nodes/{node}/drain", ADMIN, "Give it no new work", nodes::drain),
        Route::change(Method::POST, "/omx/v1/nodes/{node}/undrain", ADMIN, "Give it work again", nodes::undrain),
        Route::change(Method::PATCH, "/omx/v1/nodes/{node}/labels", ADMIN, "Set and remove labels", nodes::label),
        Route::change(
            Method::DELETE,
            "/omx/v1/nodes/{node}",
            ADMIN,
            "Remove a member and bar its key on all nodes",
            nodes::remove,
        ),
        Route::read("/omx/v1/queue", READ, "What the nodes have loaded, and what waits before them", inference::queue),
        Route::read("/omx/v1/traces", READ, "Why the last requests went where they went", inference::traces),
        Route::read("/omx/v1/traces/{id}", READ, "What became of one request", inference::trace),
        Route::read("/omx/v1/models", READ, "The models of the mesh, and who has each", models::list),
        Route::read("/omx/v1/models/show", READ, "All about one model", models::show),
        Route::change(Method::POST, "/omx/v1/models/place", MODELS, "Say where a model should be", models::place),
        Route::change(Method::POST, "/omx/v1/models/pin", MODELS, "Keep a name from moving, or let it", models::pin),
        Route::change(
            Method::POST,
            "/omx/v1/models/rollback",
            MODELS,
            "Make a name mean again what it meant before",
            models::roll_back,
        ),
        Route::change(Method::POST, "/omx/v1/models/copy", MODELS, "Give a model one more name", models::copy),
        Route::change(
            Method::POST,
            "/omx/v1/models/remove",
            MODELS,
            "Remove a name from the mesh, restorable until its files are collected",
            models::remove,
        ),
        Route::change(Method::POST, "/omx/v1/models/restore", MODELS, "Bring back a removed name", models::restore),
        Route::change(
            Method::POST,
            "/omx/v1/models/gc",
            ADMIN,
            "Free what no model needs any more, on this node",
            models::collect,
        )
        .within(GENERATE_WITHIN),
        Route::work(
            "/omx/v1/models/import",
            Need::Machine,
            "Make a model of a GGUF file of this machine",
            models::import,
        ),
        Route::work(
            "/omx/v1/models/verify",
            MODELS,
            "Read all files of a model again, on all nodes that have it",
            models::verify,
        ),
        Route::read("/omx/v1/transfers", READ, "What comes in to this node just now", models::transfers),
        Route::read("/omx/v1/tokens", ADMIN, "The open join tokens, without their secrets", tokens::list),
        Route::change(Method::POST, "/omx/v1/tokens", ADMIN, "Make a join token", tokens::create).creates(),
        Route::change(Method::DELETE, "/omx/v1/tokens/{id}", ADMIN, "Revoke a join token", tokens::revoke),
        Route::read("/omx/v1/config", READ, "All settings of the mesh", config::list),
        Route::read("/omx/v1/config/{key}", READ, "One setting", config::get),
        Route::change(Method::PUT, "/omx/v1/config/{key}", ADMIN, "Change a setting", config::set),
        Route::change(Method::DELETE, "/omx/v1/config/{key}", ADMIN, "Return to the default", config::reset),
        Route::read("/omx/v1/config/{key}/history", READ, "A setting's changes, oldest first", config::history),
        Route::change(
            Method::POST,
            "/omx/v1/config/{key}/rollback",
            ADMIN,
            "Make an earlier value hold again",
            config::roll_back,
        ),
        Route::read("/omx/v1/keys", ADMIN, "The API keys, without their secrets", keys::list),
        Route::change(Method::POST, "/omx/v1/keys", ADMIN, "Make an API key", keys::create).creates(),
        Route::change(Method::DELETE, "/omx/v1/keys/{id}", ADMIN, "Revoke an API key", keys::revoke),
        Route::read("/omx/v1/backends", READ, "The Ollamas on machines without a node", backends::list),
        Route::change(Method::POST, "/omx/v1/backends", ADMIN, "Enroll an Ollama", backends::enroll).creates(),
        Route::change(Method::DELETE, "/omx/v1/backends/{name}", ADMIN, "Take an Ollama out", backends::remove),
        Route::other(
            "/omx/v1/events",
            READ,
            "What happens, as it happens; resumed after `Last-Event-ID`",
            Answers::Other("text/event-stream"),
            events::listen,
        ),
        Route::change(Method::POST, "/omx/v1/leave", Need::Machine, "Take this node out of the mesh", nodes::leave)
            .within(Duration::from_secs(60)),
        Route::other(
            "/omx/v1/openapi.json",
            READ,
            "This description",
            Answers::Other("application/json"),
            openapi::serve,
        ),
        Route::ollamas(Method::GET, "/", READ, "That somebody is here, as Ollama says it", ollama::root),
        Route::ollamas(Method::GET, "/api/version", READ, "The version of the Ollama that is spoken", lists::version),
        Route::ollamas(Method::GET, "/api/tags", READ, "The models of all nodes", lists::tags),
        Route::ollamas(Method::GET, "/api/ps", READ, "The models that are loaded somewhere", lists::loaded),
        Route::ollamas(Method::POST, "/api/show", READ, "All about one model", lists::show),
        Route::ollamas(Method::POST, "/api/pull", MODELS, "Bring a model into the mesh", manage::pull),
        Route::ollamas(Method::POST, "/api/copy", MODELS, "Give a model one more name", manage::copy),
        Route::ollamas(Method::DELETE, "/api/delete", MODELS, "Remove a name from the mesh", manage::delete),
        Route::ollamas(Method::POST, "/api/generate", INFER, "Continue a prompt", infer::generate),
        Route::ollamas(Method::POST, "/api/chat", INFER, "Answer in a conversation", infer::chat),
        Route::ollamas(Method::POST, "/api/embed", INFER, "Vectors of texts", infer::embed),
        Route::ollamas(
            Method::POST,
            "/api/embeddings",
            INFER,
            "The vector of one text, in the older form",
            infer::embeddings,
        ),
        Route::openais(
            Method::POST,
            "/v1/chat/completions",
            INFER,
            "Answer in a conversation, as OpenAI's API",
            openai::chat,
        ),
        Route::openais(
            Method::POST,
            "/v1/completions",
            INFER,
            "Continue a prompt, as OpenAI's API",
            openai::completions,
        ),
        Route::openais(Method::POST, "/v1/embeddings", INFER, "Vectors of texts, as OpenAI's API", openai::embeddings),
        Route::openais(Method::GET, "/v1/models", READ, "The models there are, as OpenAI's API", openai::models),
        Route::openais(Method::GET, "/v1/models/{model}", READ, "One model, as OpenAI's API", openai::model),
        Route::read("/healthz/live", Need::Nothing, "Whether this process answers", health::live),
        health::ready_route(),
        Route::other("/metrics", READ, "Figures for Prometheus", Answers::Other(metrics::MEDIA_TYPE), metrics::serve),
    ]
}

/// What Ollama has beyond that. Its clients are told that it is not here, rather than that it does not exist.
fn not_yet() -> impl Iterator<Item = Route> {
    let of_ollama = [
        (Method::POST, "/api/push", MODELS),
        (Method::POST, "/api/create", MODELS),
        (Method::POST, "/api/blobs/{digest}", MODELS),
        (Method::HEAD, "/api/blobs/{digest}", MODELS),
        (Method::GET, "/api/status", READ),
        (Method::POST, "/api/me", READ),
        (Method::POST, "/api/signout", ADMIN),
        (Method::DELETE, "/api/user/keys/{key}", ADMIN),
        (Method::POST, "/api/experimental/web_search", READ),
        (Method::POST, "/api/experimental/web_fetch", READ),
        (Method::GET, "/api/experimental/model-recommendations", READ),
    ];
    let of_openai = ["/v1/responses", "/v1/messages", "/v1/audio/transcriptions"];
    let about = "Not supported yet";
    let of_ollama = of_ollama
        .into_iter()
        .map(move |(method, path, need)| Route::ollamas(method, path, need, about, ollama::not_yet));
    let of_openai = of_openai.map(move |path| Route::openais(Method::POST, path, INFER, about, ollama::not_yet));
    of_ollama.chain(of_openai).map(Route::passes_body_over)
}

/// The routes and what stands before them, ready to be asked.
pub(crate) fn service(face: Arc<Face>) -> Service {
    Service::new(face.clone(), router(face, routes()))
}

pub(crate) fn router(face: Arc<Face>, routes: Vec<Route>) -> Router {
    let quota = Quota::default();
    let routes = routes.into_iter().fold(Router::new(), |router, route| {
        let filter = MethodFilter::try_from(route.method.clone()).expect("the table holds common methods only");
        let (path, route, quota) = (route.path, Arc::new(route), quota.clone());
        let serve = move |State(face): State<Arc<Face>>, request: Request<Body>| {
            let (route, quota) = (route.clone(), quota.clone());
            async move { route.serve(face, &quota, request).await }
        };
        router.route(path, on(filter, serve))
    });
    routes
        .fallback(async |uri: Uri| match is_ollamas(&uri) {
            true => (StatusCode::NOT_FOUND, PLAIN, "404 page not found").into_response(),
            false => Failure::no_route().into_response(),
        })
        .method_not_allowed_fallback(async |uri: Uri| match is_ollamas(&uri) {
            true => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "405 method not allowed").into_response(),
            false => Failure::method().into_response(),
        })
        .with_state(face)
}

/// Ollama's router names no charset.
const PLAIN: [(HeaderName, HeaderValue); 1] = [(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"))];

/// Whether its clients would look for it there; they are told as it tells them.
fn is_ollamas(uri: &Uri) -> bool {
    Errors::at(uri.path()) != Errors::Ours
}

#[cfg(test)]
mod tests;
