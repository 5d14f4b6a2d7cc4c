//! `omx trace`: why a request went where it went.

use clap::Args;
use gateway::wire::{Step, Trace, What};

use super::Session;
use crate::client::segment;
use crate::failure::Failure;
use crate::out::Out;
use crate::table::{Table, facts};

/// Show why a request went to its node: who was asked, what they promised, what failed, where the time went
///
/// A node keeps the last thousand requests that came in at it, from their end on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  omx trace --last\n  omx trace 5f0c…    (as in the answer's `omx-request-id`)\n  \
    omx trace --list 50")]
#[group(required = true, multiple = false)]
pub(super) struct TraceOf {
    /// As the answer's header `omx-request-id` has it
    id: Option<String>,
    /// The last one that ended
    #[arg(long)]
    last: bool,
    /// So many of the last ones, a line each
    #[arg(long, value_name = "COUNT")]
    list: Option<usize>,
}

impl TraceOf {
    pub(super) async fn run(self, session: &Session) -> Result<String, Failure> {
        let (client, out) = (session.client()?, &session.out);
        if let Some(id) = &self.id {
            let answer = client.get(&format!("/omx/v1/traces/{}", segment(id))).await?;
            return out.answer(&answer, |trace: Trace| render(&trace, out));
        }
        let count = self.list.unwrap_or(1);
        let answer = client.get(&format!("/omx/v1/traces?last={count}")).await?;
        out.answer(&answer, |traces: Vec<Trace>| match (self.list, traces.first()) {
            (None, Some(trace)) => render(trace, out),
            (None, None) => "no request for a model has come in at this node and ended since it started\n".to_owned(),
            (Some(_), _) => list(&traces, out),
        })
    }
}

fn list(traces: &[Trace], out: &Out) -> String {
    let mut table = Table::new(["REQUEST", "MODEL", "BEGUN", "NODE", "SENT", "FIRST BYTE", "IN ALL", "END"]);
    for trace in traces {
        let phases = trace.phases;
        let before = phases.choosing + phases.lost + phases.waiting;
        let first = trace.steps.iter().find(|step| step.what == What::FirstByte);
        table.row([
            trace.id.clone(),
            model(trace),
            out.ago(trace.begun_at.0),
            first.and_then(|step| step.node.clone()).unwrap_or_default(),
            trace.steps.iter().filter(|step| step.what == What::Sent).count().to_string(),
            first.map_or_else(String::new, |_| seconds(before)),
            seconds(before + phases.streaming),
            trace.steps.last().map_or("", |step| word(step.what)).to_owned(),
        ]);
    }
    table.render(out.width)
}

fn render(trace: &Trace, out: &Out) -> String {
    let phases = trace.phases;
    let rows = [
        ("request", trace.id.clone()),
        ("model", format!("{} ({})", model(trace), trace.digest)),
        ("class", trace.class.clone()),
        ("begun", out.ago(trace.begun_at.0)),
        ("choosing", seconds(phases.choosing)),
        ("lost", seconds(phases.lost)),
        ("waiting", seconds(phases.waiting)),
        ("streaming", seconds(phases.streaming)),
    ];
    let mut table = Table::new(["AT", "WHAT", "NODE", "SCORE", "WHY"]);
    for Step { at, what, node, score, wait_max, why } in &trace.steps {
        let limit = wait_max.map(|span| format!(", unless it has to wait {}", seconds(span))).unwrap_or_default();
        table.row([
            seconds(*at),
            word(*what).to_owned(),
            node.clone().unwrap_or_default(),
            score.map(seconds).unwrap_or_default(),
            format!("{}{limit}", why.as_deref().unwrap_or_default()),
        ]);
    }
    format!("{}\n{}", facts(&rows), table.render(out.width))
}

fn model(trace: &Trace) -> String {
    if trace.models.is_empty() { "gone meanwhile".to_owned() } else { trace.models.join(", ") }
}

fn seconds(span: f64) -> String {
    match span {
        span if span < 0.001 => format!("{:.0} µs", span * 1e6),
        span if span < 1.0 => format!("{:.1} ms", span * 1e3),
        span => format!("{span:.2} s"),
    }
}

fn word(what: What) -> &'static str {
    match what {
        What::Asked => "candidate",
        What::Promised => "promised",
        What::Declined => "declined",
        What::Sent => "sent",
        What::Failed => "failed",
        What::FirstByte => "first byte",
        What::Lost => "broke off",
        What::Ended => "ended",
        What::GaveUp => "gave up",
        What::Cancelled => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_short_as_they_can_be_read() {
        let told = [0.000_004, 0.0251, 12.345].map(seconds);
        assert_eq!(told, ["4 µs", "25.1 ms", "12.35 s"]);
    }
}
