//! Figures in Prometheus' text format.

use std::fmt;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
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
}

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
        Self { requests: Family::default(), connections: Gauge::default() }
    }

    pub(crate) fn answered(&self, route: &'static str, status: StatusCode) {
        self.requests.get_or_create(&Answered { route, status: status.as_u16() }).inc();
    }

    pub(crate) fn connection(&self) -> Connected {
        self.connections.inc();
        Connected(self.connections.clone())
    }

    #[cfg(test)]
    pub(crate) fn connections(&self) -> i64 {
        self.connections.get()
    }

    fn render(&self, figures: &node::Figures) -> Result<String, fmt::Error> {
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
        registry.register("http_connections", "Connections now", self.connections.clone());
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

pub(crate) async fn serve(ask: Ask<wire::Nothing>) -> Result<Response, Failure> {
    let text = ask.face.metrics().render(&ask.api().figures()).map_err(Failure::internal)?;
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response())
}
