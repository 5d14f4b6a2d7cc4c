//! Figures in Prometheus' text format.

use std::fmt;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use node::Route;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::failure::Failure;
use crate::route::Ask;
use crate::wire;

pub(crate) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is counted as it happens. Everything else is read when it is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    requests: Family<Answered, Counter>,
    connections: Gauge,
    /// Seconds from a request to the first byte of its answer, all attempts included.
    first_byte: Family<Asked, Histogram>,
    tokens: Family<Counted, Counter>,
}

/// What a model was asked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    route: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Counted {
    kind: &'static str,
}

/// Seconds; a short answer of a warm model comes within the first few, a load takes the last.
const FIRST_BYTE: [f64; 12] = [0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];

/// Few by construction: routes of the table and statuses we give.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    status: u16,
}

/// Counts a connection while it is there.
#[derive(Debug)]
pub(crate) struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            requests: Family::default(),
            connections: Gauge::default(),
            first_byte: Family::new_with_constructor(|| Histogram::new(FIRST_BYTE)),
            tokens: Family::default(),
        }
    }

    pub(crate) fn answered(&self, route: &'static str, status: StatusCode) {
        self.requests.get_or_create(&Answered { route, status: status.as_u16() }).inc();
    }

    /// An answer has begun, so long after it was asked for.
    pub(crate) fn began(&self, route: Route, after: Duration) {
        self.first_byte.get_or_create(&Asked { route: route.path() }).observe(after.as_secs_f64());
    }

    /// An answer is whole.
    pub(crate) fn ended(&self, prompt_tokens: u32, answer_tokens: u32) {
        self.tokens.get_or_create(&Counted { kind: "prompt" }).inc_by(prompt_tokens.into());
        self.tokens.get_or_create(&Counted { kind: "answer" }).inc_by(answer_tokens.into());
    }

    pub(crate) fn connection(&self) -> Connected {
        self.connections.inc();
        Connected(self.connections.clone())
    }

    #[cfg(test)]
    pub(crate) fn connections(&self) -> i64 {
        self.connections.get()
    }

    fn render(&self, figures: &node::Figures, inference: node::InferFigures) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("omx");
        let mut gauge = |name: &str, help: &str, value: u64| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            registry.register(name, help, ConstGauge::new(value));
        };
        gauge("members", "Members of the mesh", figures.members as u64);
        gauge("members_up", "Members this node reaches, itself included", figures.members_up as u64);
        gauge("voters", "Members that vote", figures.voters as u64);
        gauge("is_leader", "Whether this node leads", figures.is_leader.into());
        gauge("applied_index", "Up to which change this node has the registry", figures.applied);
        gauge("disk_low", "Whether the disk is too full for changes", figures.disk_low.into());
        gauge("snapshots_built", "Snapshots made since the start", figures.snapshots.built);
        gauge("snapshots_installed", "Snapshots taken from a leader since the start", figures.snapshots.installed);
        if let Some(term) = figures.term {
            gauge("term", "The consensus' term", term);
        }
        if let Some(free) = figures.disk_free_bytes {
            gauge("disk_free_bytes", "Free on the disk of the data folder", free);
        }
        let hash = Info::new([("hash", figures.state_hash.to_string())]);
        registry.register("state_hash", "Of the registry at the applied index; the same on every node", hash);
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What runs here", build);
        registry.register("http_requests", "Requests answered", self.requests.clone());
        let dispatched = inference.dispatched;
        let counts = [
            ("infer_requests", "Requests for models that came in here", dispatched.requests),
            ("infer_attempts", "Times one was sent to a node, refusals included", dispatched.sends),
            ("infer_retries", "Of these, the ones after a node had failed", dispatched.retries),
            ("infer_unasked", "Of these, the ones sent without asking first", dispatched.unasked),
            ("infer_unheard", "Times no node answered in time when asked", dispatched.unheard),
            ("infer_failed", "Came to nothing before the first byte", dispatched.failed),
            ("infer_continued", "Times the rest of an answer was asked of another node", dispatched.seams),
            ("infer_cut", "Broke off after the first byte", dispatched.cut),
            ("infer_cancelled", "Left by their clients", dispatched.cancelled),
        ];
        for (name, help, value) in counts {
            registry.register(name, help, ConstCounter::new(value));
        }
        let now = [
            ("infer_under_way", "Requests that came in here and are on some node", inference.under_way),
            ("infer_barred", "Pairs of node and model that are left alone after failures", inference.barred),
            ("queue_running", "Requests in this node's backends", inference.running),
            ("queue_waiting", "Requests that wait before them", inference.waiting),
        ];
        for (name, help, value) in now {
            registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
        }
        let first_byte = "Seconds to the first byte of an answer, all attempts included";
        registry.register("infer_first_byte_seconds", first_byte, self.first_byte.clone());
        registry.register("infer_tokens", "Tokens of prompts and answers that came in here", self.tokens.clone());
        registry.register("http_connections", "Connections now", self.connections.clone());
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

pub(crate) async fn serve(ask: Ask<wire::Nothing>) -> Result<Response, Failure> {
    let text =
        ask.face.metrics().render(&ask.api().figures(), ask.api().inference().figures()).map_err(Failure::internal)?;
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response())
}
