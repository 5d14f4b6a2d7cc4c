//! What every request goes through before its route and after it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use axum::response::Response;
use futures::FutureExt;
use hyper::body::Incoming;
use node::Api;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::Instrument;
use types::{RequestId, Secret};

use crate::access::{Caller, Denied, Gate, Peer};
use crate::config::{Config, Limits};
use crate::cors::Friend;
use crate::failure::Failure;
use crate::framing;
use crate::health::Probe;
use crate::host::{Foreign, Hosts};
use crate::metrics::Metrics;
use crate::route::{Errors, Matched};

const REQUEST_ID: HeaderName = HeaderName::from_static("omx-request-id");

/// What the routes share.
#[derive(Debug)]
pub(crate) struct Face {
    api: Api,
    hosts: Hosts,
    gate: Gate,
    metrics: Metrics,
    probe: Probe,
    limits: Limits,
    shutdown: CancellationToken,
}

impl Face {
    pub(crate) fn new(
        api: Api,
        hosts: Hosts,
        cookie: Option<Secret<String>>,
        config: &Config,
        shutdown: CancellationToken,
    ) -> Self {
        let gate = Gate::new(cookie, config.insecure_no_auth);
        Self {
            api,
            hosts,
            gate,
            metrics: Metrics::new(),
            probe: Probe::default(),
            limits: config.limits.clone(),
            shutdown,
        }
    }

    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn probe(&self) -> &Probe {
        &self.probe
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Told to routes that would otherwise go on for ever.
    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    pub(crate) fn caller(&self, peer: Peer, headers: &HeaderMap) -> Result<Caller, Denied> {
        self.gate.caller(&self.api, peer, headers, Instant::now())
    }

    fn of_this_house<B>(&self, peer: Peer, request: &Request<B>) -> Result<(), Foreign> {
        match peer {
            Peer::Tcp { local, .. } => self.hosts.judge(request.uri(), request.headers(), local.ip()),
            // No web page can make a browser speak to it.
            Peer::Socket { .. } => Ok(()),
        }
    }
}

/// The routes and what stands before them. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    face: Arc<Face>,
    router: Router,
}

impl Service {
    pub(crate) fn new(face: Arc<Face>, router: Router) -> Self {
        Self { face, router }
    }

    pub(crate) fn face(&self) -> &Face {
        &self.face
    }

    pub(crate) async fn answer(&self, peer: Peer, request: Request<Incoming>) -> Response {
        self.answer_any(peer, request.map(Body::new)).await
    }

    /// Always answers: a panic in a route costs its connection and nothing else.
    pub(crate) async fn answer_any(&self, peer: Peer, mut request: Request<Body>) -> Response {
        let id = RequestId::random();
        let span = tracing::debug_span!("request", %id, method = %request.method(), path = ?request.uri().path());
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(id);
        let errors = Errors::at(request.uri().path());
        let answered = AssertUnwindSafe(self.admit(peer, request).instrument(span.clone())).catch_unwind().await;
        let _entered = span.enter();
        let mut response = answered.unwrap_or_else(|_| last(errors.tell(Failure::internal("a route panicked"))));
        let id = HeaderValue::try_from(id.to_string()).expect("an id is hexadecimal digits");
        response.headers_mut().insert(REQUEST_ID, id);
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        let route = response.extensions().get::<Matched>().map_or("none", |matched| matched.0);
        self.face.metrics.answered(route, response.status());
        tracing::debug!(route, status = response.status().as_u16(), "answered");
        response
    }

    async fn admit(&self, peer: Peer, request: Request<Body>) -> Response {
        let errors = Errors::at(request.uri().path());
        if !framing::is_plain(request.headers()) {
            return last(errors.tell(Failure::framing()));
        }
        // What comes after a request that was meant for somebody else is meant for them too.
        let friend = match self.face.of_this_house(peer, &request) {
            Ok(()) => None,
            Err(Foreign::Origin) => match Friend::of(request.uri().path(), request.headers()) {
                Some(friend) => Some(friend),
                None => return last(errors.tell(Foreign::Origin.into())),
            },
            Err(Foreign::Host) => return last(errors.tell(Foreign::Host.into())),
        };
        if let Some(response) = friend.as_ref().and_then(|friend| friend.preflight(&request)) {
            return response;
        }
        let response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        match friend {
            Some(friend) => friend.may_read(response),
            None => response,
        }
    }
}

/// What else comes over the same connection is not read.
fn last(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
