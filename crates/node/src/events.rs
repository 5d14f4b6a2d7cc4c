//! Turns changes of the registry and of the peers into events for whoever listens.

use std::collections::BTreeMap;
use std::time::Duration;

use types::{NodeId, NodeName};

use crate::api::{Api, Event, NodeState};

/// Peers and leader are looked at so often; the registry is noticed at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What was told last.
#[derive(Default)]
struct Told {
    index: u64,
    states: BTreeMap<NodeId, NodeState>,
    leader: Option<NodeId>,
}

/// Runs for ever; may be dropped at any time.
pub(crate) async fn run(api: Api) {
    let mut changes = api.cluster().changes();
    let mut told = Told { index: api.cluster().position().0, ..Told::default() };
    loop {
        for event in told.news(&api) {
            api.tell(event);
        }
        // Either the registry moved or it is time to look at the peers.
        let _ = tokio::time::timeout(LOOK_EVERY, changes.next()).await;
    }
}

impl Told {
    fn news(&mut self, api: &Api) -> Vec<Event> {
        let after = self.index;
        let (entries, applied) = api.cluster().view(|registry| {
            let new = registry.journal().filter(|entry| entry.index > after).cloned().map(Event::Registry);
            (new.collect::<Vec<_>>(), registry.applied())
        });
        self.index = applied;
        let members = api.members();
        let mut news = entries;
        for member in &members {
            let before = self.states.insert(member.id, member.state);
            if before.is_some_and(|before| before != member.state) {
                let (node, name) = (member.id, member.name.clone());
                news.push(match member.state {
                    NodeState::Up => Event::Up { node, name },
                    NodeState::Down => Event::Down { node, name },
                });
            }
        }
        self.states.retain(|id, _| members.iter().any(|member| member.id == *id));
        let leader = members.iter().find(|member| member.leader).map(|member| (member.id, member.name.clone()));
        let id = leader.as_ref().map(|(id, _)| *id);
        if id != self.leader {
            self.leader = id;
            let name: Option<NodeName> = leader.map(|(_, name)| name);
            news.push(Event::Leader { node: id, name });
        }
        news
    }
}
