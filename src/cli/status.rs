//! `omx status`: the mesh as this node sees it.

use clap::Args;
use gateway::wire::{self, Member, State};

use super::Session;
use crate::failure::Failure;
use crate::out::Out;
use crate::table::{Table, facts};

/// Show how the mesh is, as this node sees it: leader, quorum, members
///
/// Answers without a quorum too, and then says which machine must wake.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  omx status\n  omx status --json | jq -r '.members[] | select(.state == \"down\") | .name'"
)]
pub(super) struct Status {}

impl Status {
    pub(super) async fn run(self, session: &Session) -> Result<String, Failure> {
        let answer = session.client()?.get("/omx/v1/status").await?;
        session.out.answer(&answer, |status: wire::Status| render(&status, &session.out))
    }
}

fn render(status: &wire::Status, out: &Out) -> String {
    let mesh = match status.mesh_name.as_str() {
        "" => status.mesh_id.to_string(),
        name => format!("{name} ({})", status.mesh_id),
    };
    let leader = status.leader.as_ref().map_or_else(|| "none".to_owned(), |leader| leader.name.to_string());
    let mut rows = vec![
        ("mesh", mesh),
        ("node", format!("{} ({})", status.name, status.node)),
        ("running", format!("omx {}, since {}", status.version, out.ago(status.started_at.0))),
        ("leader", leader),
        ("quorum", quorum(status)),
        ("registry", format!("index {}, state {:.16}", status.index, status.state_hash)),
    ];
    rows.push(("models", models(&status.backend)));
    if status.disk_low {
        rows.push(("disk", "no room for changes: free some space".to_owned()));
    }
    for stranger in &status.strangers {
        rows.push(("also here", format!("a node of another mesh at {} ({})", stranger.address, stranger.id)));
    }
    format!("{}\n{}", facts(&rows), members(&status.members, out))
}

fn models(backend: &wire::Backend) -> String {
    let wire::Backend { kind, address, why, version, error } = backend;
    let at = address.as_ref().map_or_else(String::new, |address| format!(" at {address}"));
    match (kind.as_str(), version, error) {
        ("none", ..) => format!("nothing runs them: {why}"),
        (kind, Some(version), _) => format!("{kind} {version}{at}"),
        (kind, None, error) => format!("{kind}{at} is down: {}", error.as_deref().unwrap_or("it does not say why")),
    }
}

fn quorum(status: &wire::Status) -> String {
    let names: Vec<_> = status.absent_voters.iter().map(|name| name.as_str()).collect();
    if status.estranged {
        return "no: those who vote now are unknown here (`omx doctor` says the way back)".to_owned();
    }
    match (status.quorum, names.join(", ")) {
        (true, absent) if absent.is_empty() => "yes".to_owned(),
        (true, absent) => format!("yes, without {absent}"),
        (false, absent) if absent.is_empty() => "no: settings are read-only".to_owned(),
        (false, absent) => format!("no: settings are read-only until one of these wakes: {absent}"),
    }
}

fn members(members: &[Member], out: &Out) -> String {
    let mut table = Table::new(["NAME", "STATE", "ROLE", "VOTE", "JOINED", "ADDRESSES"]);
    for member in members {
        table.row([
            member.name.to_string(),
            state(member.state).to_owned(),
            member.role.to_string(),
            vote(member).to_owned(),
            out.ago(member.joined_at.0),
            member.addresses.join(" "),
        ]);
    }
    table.render(out.width)
}

pub(super) fn state(state: State) -> &'static str {
    match state {
        State::Up => "up",
        State::Down => "down",
        State::Draining => "draining",
    }
}

pub(super) fn vote(member: &Member) -> &'static str {
    match (member.leader, member.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "",
    }
}

#[cfg(test)]
mod tests {
    use types::UnixMillis;

    use super::*;

    fn sample() -> wire::Status {
        let id = types::NodeId::from_public_key([7; 32]);
        let member = |name: &str, state: &str, leader: bool| {
            serde_json::json!({
                "id": id, "name": name, "role": "node", "voter": true, "leader": leader, "state": state,
                "addresses": ["/ip4/10.0.0.7/tcp/11436", "10.0.0.7:11437"], "labels": {},
                "joined_at": "2026-11-20T15:00:00Z", "seat": 1,
            })
        };
        let status = serde_json::json!({
            "mesh_id": "000102030405060708090a0b0c0d0e0f", "mesh_name": "lab", "node": id, "name": "tower",
            "role": "node", "version": "0.1.0", "started_at": "2026-11-20T15:27:00Z",
            "leader": {"id": id, "name": "tower"}, "quorum": true, "estranged": false, "term": 3, "index": 17,
            "state_hash": "9f86d081884c7d659a2feaa0c55ad015", "absent_voters": [], "disk_low": false,
            "backend": {"kind": "engine", "address": "http://127.0.0.1:1", "why": "", "version": "0.1.0", "error": null},
            "members": [member("tower", "up", true), member("attic", "down", false)], "strangers": [],
        });
        serde_json::from_value(status).unwrap()
    }

    fn out() -> Out {
        Out { json: false, width: None, now: UnixMillis(1_795_188_600_000) }
    }

    #[test]
    fn a_person_sees_leader_quorum_and_every_member() {
        let shown = render(&sample(), &out());
        for line in [
            "mesh      lab (000102030405060708090a0b0c0d0e0f)",
            "running   omx 0.1.0, since 3 min ago",
            "leader    tower",
            "quorum    yes",
            "registry  index 17, state 9f86d081884c7d65",
            "models    engine 0.1.0 at http://127.0.0.1:1",
            "NAME   STATE  ROLE  VOTE    JOINED      ADDRESSES",
            "tower  up     node  leader  30 min ago  /ip4/10.0.0.7/tcp/11436 10.0.0.7:11437",
            "attic  down   node  voter   30 min ago  /ip4/10.0.0.7/tcp/11436 10.0.0.7:11437",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "no line `{line}` in\n{shown}");
        }
        assert!(!shown.contains("disk"), "{shown}");
    }

    #[test]
    fn without_a_quorum_the_machine_that_must_wake_is_named() {
        let absent_voters = vec!["attic".parse().unwrap(), "cellar".parse().unwrap()];
        let status = wire::Status { quorum: false, leader: None, absent_voters, disk_low: true, ..sample() };
        let shown = render(&status, &out());
        assert!(shown.contains("no: settings are read-only until one of these wakes: attic, cellar"), "{shown}");
        assert!(shown.contains("leader    none") && shown.contains("disk      no room"), "{shown}");
        let shown = render(&wire::Status { estranged: true, ..status }, &out());
        assert!(shown.contains("quorum    no: those who vote now are unknown here"), "{shown}");
    }
}
