//! What this node knows of who holds which model: the fleets that the dispatcher chooses from, and the names they go by.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ollama::ModelName;
use scheduler::{Fleet, ModelKey, Moment, Seconds};
use tokio::time::Instant;
use types::NodeId;
use vitals::{BackendState, Facts};

/// Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Hosts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    me: NodeId,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of the models somebody holds who can be asked now.
    fleets: HashMap<ModelKey, Fleet>,
    /// The models of each fleet a node is in.
    held: BTreeMap<NodeId, BTreeSet<ModelKey>>,
    /// What each member said last, whether it can be asked now or not.
    said: BTreeMap<NodeId, Facts>,
    /// The names in it.
    named: BTreeMap<NodeId, BTreeSet<(ModelName, ModelKey)>>,
    /// How many members use a name for a model.
    names: HashMap<ModelName, BTreeMap<ModelKey, usize>>,
    up: BTreeSet<NodeId>,
}

impl Hosts {
    pub(crate) fn new(me: NodeId) -> Self {
        Self(Arc::new(Shared { me, start: Instant::now(), state: Mutex::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the node said of itself last. `takes_work` is false for one that was told to take none.
    pub(crate) fn hear(&self, node: NodeId, facts: &Facts, rtt: Duration, takes_work: bool) {
        let now = Moment::since_start(self.0.start.elapsed());
        let mut state = self.lock();
        state.name(node, facts);
        state.said.insert(node, facts.clone());
        let is_up = node == self.0.me || state.up.contains(&node);
        let offers = if is_up && takes_work && !facts.draining { offers(facts) } else { BTreeMap::new() };
        state.offer(node, &offers, rtt.into(), now);
    }

    pub(crate) fn set_up(&self, node: NodeId, is_up: bool) {
        let mut state = self.lock();
        if is_up {
            state.up.insert(node);
        } else {
            state.up.remove(&node);
            state.offer(node, &BTreeMap::new(), Seconds::ZERO, Moment::default());
        }
    }

    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        node == self.0.me || self.lock().up.contains(&node)
    }

    /// It is no member any more.
    pub(crate) fn forget(&self, node: NodeId) {
        self.set_up(node, false);
        let mut state = self.lock();
        state.said.remove(&node);
        state.name(node, &Facts::default());
    }

    /// The model that is meant by a name. Where members mean different ones by it: what most of those mean who can be
    /// asked now, then what most of all mean, and of as many the same at every node.
    pub(crate) fn resolve(&self, name: &ModelName) -> Option<ModelKey> {
        let state = self.lock();
        let keys = state.names.get(name)?;
        let rank = |key: &ModelKey, members: usize| {
            (state.fleets.get(key).map_or(0, Fleet::len), members, std::cmp::Reverse(*key))
        };
        keys.iter().max_by_key(|(key, members)| rank(key, **members)).map(|(key, _)| *key)
    }

    /// Who has it loaded, of those that can be asked for it.
    pub(crate) fn loaded(&self, model: ModelKey) -> Vec<NodeId> {
        let state = self.lock();
        let hosts = state.fleets.get(&model).map(Fleet::hosts).unwrap_or_default();
        hosts.iter().filter(|host| host.facts.resident.is_some()).map(|host| host.node).collect()
    }

    /// What each member said last of itself.
    pub(crate) fn said(&self) -> Vec<(NodeId, Facts)> {
        self.lock().said.iter().map(|(node, facts)| (*node, facts.clone())).collect()
    }

    /// The names a model goes by.
    pub(crate) fn names_of(&self, model: ModelKey) -> BTreeSet<String> {
        let state = self.lock();
        let models = state.said.values().flat_map(|facts| &facts.models);
        models.filter(|known| known.digest == *model.as_bytes()).map(|known| known.name.clone()).collect()
    }

    pub(crate) fn knows_models(&self) -> bool {
        !self.lock().names.is_empty()
    }

    /// Who can be asked for a model now.
    pub(crate) fn holders(&self, model: ModelKey) -> Vec<NodeId> {
        self.lock().held.iter().filter(|(_, models)| models.contains(&model)).map(|(node, _)| *node).collect()
    }
}

impl dispatch::Hosts for Hosts {
    fn with<T>(&self, model: ModelKey, see: impl FnOnce(&mut Fleet) -> T) -> T {
        match self.lock().fleets.get_mut(&model) {
            Some(fleet) => see(fleet),
            None => see(&mut Fleet::default()),
        }
    }

    fn is_missed(&self, node: NodeId) -> bool {
        !self.is_up(node)
    }
}

impl State {
    fn name(&mut self, node: NodeId, facts: &Facts) {
        let name = |model: &vitals::Model| Some((model.name.parse().ok()?, ModelKey::from_bytes(model.digest)));
        let new: BTreeSet<(ModelName, ModelKey)> = facts.models.iter().filter_map(name).collect();
        let old = self.named.remove(&node).unwrap_or_default();
        for (name, key) in old.difference(&new) {
            let Some(keys) = self.names.get_mut(name) else { continue };
            if let Some(members) = keys.get_mut(key) {
                *members -= 1;
                if *members == 0 {
                    keys.remove(key);
                }
            }
            if keys.is_empty() {
                self.names.remove(name);
            }
        }
        for (name, key) in new.difference(&old) {
            *self.names.entry(name.clone()).or_default().entry(*key).or_default() += 1;
        }
        if !new.is_empty() {
            self.named.insert(node, new);
        }
    }

    fn offer(&mut self, node: NodeId, offers: &BTreeMap<ModelKey, scheduler::Facts>, rtt: Seconds, now: Moment) {
        let models: BTreeSet<ModelKey> = offers.keys().copied().collect();
        let before = self.held.remove(&node).unwrap_or_default();
        for gone in before.difference(&models) {
            if let Some(fleet) = self.fleets.get_mut(gone) {
                fleet.forget(node);
                if fleet.is_empty() {
                    self.fleets.remove(gone);
                }
            }
        }
        for (model, facts) in offers {
            self.fleets.entry(*model).or_default().hear(node, *facts, rtt, now);
        }
        if !models.is_empty() {
            self.held.insert(node, models);
        }
    }
}

/// The models of backends that run. A model that several of them have is one: a request finds the better there.
fn offers(facts: &Facts) -> BTreeMap<ModelKey, scheduler::Facts> {
    let mut offers: BTreeMap<ModelKey, scheduler::Facts> = BTreeMap::new();
    for model in &facts.models {
        let runs = facts
            .backends
            .get(usize::from(model.backend))
            .is_some_and(|backend| matches!(backend.state, BackendState::Up | BackendState::Suspect));
        if !runs {
            continue;
        }
        let seconds = |value: f64| Seconds::new(value as f32);
        let offer = scheduler::Facts {
            resident: model.resident.then_some(model.context),
            slots: model.slots.into(),
            free_slots: model.free.into(),
            wait: seconds(model.wait.value()),
            load: seconds(model.load.value()),
            prefill_rate: model.prefill.value() as f32,
            step: seconds(1.0 / model.decode.value().max(1e-3)),
        };
        let better = |known: &scheduler::Facts| {
            (offer.resident.is_some(), offer.free_slots) > (known.resident.is_some(), known.free_slots)
        };
        let key = ModelKey::from_bytes(model.digest);
        if offers.get(&key).is_none_or(better) {
            offers.insert(key, offer);
        }
    }
    offers
}

#[cfg(test)]
mod tests {
    use vitals::{Backend, BackendKind, Log8, Model};

    use super::*;

    fn node(id: u8) -> NodeId {
        NodeId::from_public_key([id; 32])
    }

    fn key(digest: u8) -> ModelKey {
        ModelKey::from_bytes([digest; 16])
    }

    fn name(name: &str) -> ModelName {
        name.parse().unwrap()
    }

    fn facts(state: BackendState, models: &[(&str, u8)]) -> Facts {
        let model = |(name, digest): &(&str, u8)| Model {
            digest: [*digest; 16],
            name: (*name).to_owned(),
            backend: 0,
            resident: true,
            slots: 4,
            context: 4096,
            prefill: Log8::of(1000.0),
            decode: Log8::of(50.0),
            load: Log8::of(3.0),
            free: 4,
            wait: Log8::of(0.0),
        };
        Facts {
            backends: vec![Backend { kind: BackendKind::Ollama, state, version: String::new() }],
            models: models.iter().map(model).collect(),
            ..Facts::default()
        }
    }

    /// This node is the first.
    fn hosts() -> Hosts {
        let hosts = Hosts::new(node(0));
        (1..4).for_each(|id| hosts.set_up(node(id), true));
        hosts
    }

    fn hear(hosts: &Hosts, id: u8, models: &[(&str, u8)]) {
        hosts.hear(node(id), &facts(BackendState::Up, models), Duration::from_millis(1), true);
    }

    #[test]
    fn a_name_means_what_most_members_mean_by_it() {
        let hosts = hosts();
        assert_eq!(hosts.resolve(&name("m")), None);
        hear(&hosts, 0, &[("m:latest", 7)]);
        assert_eq!(hosts.resolve(&name("M")), Some(key(7)));
        hear(&hosts, 1, &[("m:latest", 9)]);
        assert_eq!(hosts.resolve(&name("m")), Some(key(7)), "of as many the same at every node");
        hear(&hosts, 2, &[("m:latest", 9)]);
        assert_eq!(hosts.resolve(&name("m")), Some(key(9)));
        (1..3).for_each(|id| hosts.set_up(node(id), false));
        assert_eq!(hosts.resolve(&name("m")), Some(key(7)), "who sleeps does not decide for those who are awake");
        (1..3).for_each(|id| hosts.set_up(node(id), true));
        (1..3).for_each(|id| hear(&hosts, id, &[("m:latest", 9)]));
        assert_eq!(hosts.resolve(&name("m")), Some(key(9)));
        hosts.forget(node(1));
        hear(&hosts, 2, &[("other", 9)]);
        assert_eq!(hosts.resolve(&name("m")), Some(key(7)));
        hear(&hosts, 0, &[]);
        assert_eq!(hosts.resolve(&name("m")), None);
        assert!(hosts.lock().names.len() == 1 && hosts.lock().named.len() == 1, "what nobody says is forgotten");
    }

    #[test]
    fn who_cannot_be_asked_is_in_no_fleet_but_its_models_are_known() {
        let hosts = hosts();
        hear(&hosts, 1, &[("m", 7)]);
        assert_eq!(hosts.holders(key(7)), [node(1)]);
        hosts.set_up(node(1), false);
        assert!(hosts.holders(key(7)).is_empty() && dispatch::Hosts::is_missed(&hosts, node(1)));
        assert_eq!(hosts.resolve(&name("m")), Some(key(7)));
        hear(&hosts, 1, &[("m", 7)]);
        assert!(hosts.holders(key(7)).is_empty(), "word of a node that is down does not make it up");
        hosts.set_up(node(1), true);
        hear(&hosts, 1, &[("m", 7)]);
        assert_eq!(hosts.holders(key(7)), [node(1)]);
        for state in [BackendState::Down, BackendState::Draining] {
            hosts.hear(node(1), &facts(state, &[("m", 7)]), Duration::ZERO, true);
            assert!(hosts.holders(key(7)).is_empty(), "{state:?}");
        }
        hosts.hear(node(1), &facts(BackendState::Up, &[("m", 7)]), Duration::ZERO, false);
        assert!(hosts.holders(key(7)).is_empty(), "drained");
        assert!(hosts.lock().fleets.is_empty());
    }

    #[test]
    fn of_two_backends_with_one_model_the_better_speaks_for_both() {
        let mut both = facts(BackendState::Up, &[("m", 7), ("m", 7)]);
        (both.models[0].free, both.models[0].resident) = (4, false);
        both.models[1].free = 2;
        assert_eq!(offers(&both)[&key(7)].free_slots, 2);
        both.models[0].resident = true;
        assert_eq!(offers(&both)[&key(7)].free_slots, 4);
    }
}
