//! The backends of this node, an agent before each, and which of them is for what.

use std::num::NonZeroU16;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use agent::{FindWay, Handle, Question, Way};
use bytes::Bytes;
use futures::future::{BoxFuture, join_all, ready};
use ollama::Endpoint;
use scheduler::{ModelKey, Seconds, Work};
use vitals::{BackendKind, BackendState, Log8};

/// Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Here(Arc<RwLock<Vec<Stand>>>);

/// One backend and the agent before it.
#[derive(Debug, Clone)]
pub(crate) struct Stand {
    pub(crate) kind: BackendKind,
    pub(crate) agent: Handle,
}

/// A backend an agent is to be put before.
pub(crate) struct Source {
    pub(crate) kind: BackendKind,
    pub(crate) find: FindWay,
    /// Requests it runs at once, where that is known.
    pub(crate) slots: Option<NonZeroU16>,
    /// Before it there is nothing to look at, and a first look in vain would make it one that is down.
    pub(crate) begun: BoxFuture<'static, ()>,
}

/// Whoever takes longer to list its models is left out of the list.
const LIST_MAX: Duration = Duration::from_millis(1_500);

impl Stand {
    /// The future has to run for the agent to see anything.
    pub(crate) fn before(source: Source) -> (Self, BoxFuture<'static, ()>) {
        let Source { kind, find, slots, begun } = source;
        let slots = slots.map(NonZeroU16::get);
        let (agent, task) = agent::new(agent::Config { slots, ..agent::Config::default() }, find);
        let looks = async {
            begun.await;
            task.run().await;
        };
        (Self { kind, agent }, Box::pin(looks))
    }
}

impl Source {
    pub(crate) fn ollama(at: Endpoint, slots: Option<NonZeroU16>) -> Self {
        Self { slots, ..Self::at(BackendKind::Ollama, at) }
    }

    pub(crate) fn at(kind: BackendKind, at: Endpoint) -> Self {
        let find = move || Ok(Way { at: at.clone(), secret: None });
        Self { kind, find: Box::new(find), slots: None, begun: Box::pin(ready(())) }
    }
}

impl Here {
    pub(crate) fn set(&self, stands: Vec<Stand>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = stands;
    }

    pub(crate) fn all(&self) -> Vec<Stand> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The agent before the backend that is the best for this work, where several have the model.
    pub(crate) fn find(&self, work: &Work) -> Option<Handle> {
        let stands = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let agents = stands.iter().map(|stand| &stand.agent);
        let mut with_model: Vec<&Handle> = agents.filter(|agent| agent.slots(work.model).is_some()).collect();
        if with_model.len() > 1 {
            // One that will not take it comes last: it says why.
            with_model.sort_by_cached_key(|agent| {
                let promise = agent.probe(work, Duration::ZERO).ok();
                let score = promise.map(|promise| promise.estimate.score(work.class, Seconds::ZERO));
                (score.is_none(), score)
            });
        }
        with_model.first().map(|agent| (*agent).clone())
    }

    /// The one that has promised it a place, for otherwise the place kept there would make another look better. Where none
    /// has, the best.
    pub(crate) fn find_promised(&self, work: &Work) -> Option<Handle> {
        let is_up = |stand: &Stand| !matches!(stand.agent.state(), agent::State::Down(_));
        let has_promised = |stand: &&Stand| is_up(stand) && stand.agent.has_promised(work);
        let stands = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let promised = stands.iter().find(has_promised).map(|stand| stand.agent.clone());
        drop(stands);
        promised.or_else(|| self.find(work))
    }

    /// Whether a backend of this node is down, or was not looked at yet.
    pub(crate) fn is_partly_down(&self) -> bool {
        self.all().iter().any(|stand| matches!(stand.agent.state(), agent::State::Down(_)))
    }

    /// Looks anew at what the backends list. The caller limits how long.
    pub(crate) async fn refresh(&self) {
        let stands = self.all();
        join_all(stands.iter().map(|stand| stand.agent.refresh())).await;
    }

    /// Those before a backend that answers.
    fn running(&self) -> Vec<Stand> {
        let mut stands = self.all();
        stands.retain(|stand| !matches!(stand.agent.state(), agent::State::Down(_)));
        stands
    }

    /// Takes nothing new, or takes again.
    pub(crate) fn drain(&self, draining: bool) {
        self.all().iter().for_each(|stand| stand.agent.drain(draining));
    }

    /// The backends' own lists, of those that answer.
    pub(crate) async fn lists(&self, question: Question) -> Vec<Bytes> {
        let asked = self.running().into_iter().map(async |stand| {
            match tokio::time::timeout(LIST_MAX, stand.agent.question(question.clone())).await {
                Ok(Ok((status, body))) if status.is_success() => Some(body),
                Ok(_) | Err(_) => None,
            }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// What the agent before a backend with this model hears when it asks for it, status and body.
    pub(crate) async fn show(&self, model: ModelKey, body: Bytes) -> Option<Result<(u16, Bytes), agent::Error>> {
        let stands = self.running();
        let stand = stands.iter().find(|stand| stand.agent.slots(model).is_some())?;
        let answer = stand.agent.question(Question::Show(body)).await;
        Some(answer.map(|(status, body)| (status.as_u16(), body)))
    }

    /// What this node says of its backends and models.
    pub(crate) fn facts(&self) -> (Vec<vitals::Backend>, Vec<vitals::Model>) {
        let (mut backends, mut models) = (Vec::new(), Vec::new());
        for Stand { kind, agent, .. } in self.all() {
            let agent::Facts { state, version, models: of_agent } = agent.facts();
            let Ok(backend) = u8::try_from(backends.len()) else { break };
            let state = match state {
                agent::State::Up => BackendState::Up,
                agent::State::Suspect => BackendState::Suspect,
                agent::State::Down(_) => BackendState::Down,
                agent::State::Draining => BackendState::Draining,
            };
            backends.push(vitals::Backend { kind, state, version: version.unwrap_or_default() });
            for of_model in of_agent {
                let facts = of_model.facts;
                let small = |count: u16| u8::try_from(count).unwrap_or(u8::MAX);
                let seconds = |span: Seconds| Log8::of(f64::from(span.get()));
                let model = vitals::Model {
                    digest: *of_model.key.as_bytes(),
                    name: String::new(),
                    backend,
                    resident: facts.resident.is_some(),
                    slots: small(facts.slots),
                    context: facts.resident.unwrap_or(0),
                    prefill: Log8::of(f64::from(facts.prefill_rate)),
                    decode: Log8::of(1.0 / f64::from(facts.step.get())),
                    load: seconds(facts.load),
                    free: small(facts.free_slots),
                    wait: seconds(facts.wait),
                };
                models.extend(of_model.names.into_iter().map(|name| vitals::Model { name, ..model.clone() }));
            }
        }
        (backends, models)
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use scheduler::{Chain, Class, Tenant};
    use tokio::task::JoinSet;

    use super::*;

    /// The agents before these, once each knows its model.
    async fn before(backends: &[fakes::Ollama], looks: &mut JoinSet<()>) -> (Here, ModelKey) {
        let here = Here::default();
        let stand = |backend: &fakes::Ollama| {
            let at = backend.address().to_string().parse().unwrap();
            let (stand, task) = Stand::before(Source::ollama(at, NonZeroU16::new(1)));
            looks.spawn(task);
            stand
        };
        here.set(backends.iter().map(stand).collect());
        loop {
            here.refresh().await;
            let first = here.all()[0].agent.facts().models.first().map(|model| model.key);
            if let Some(model) = first
                && here.all().iter().all(|stand| stand.agent.slots(model).is_some())
            {
                return (here, model);
            }
        }
    }

    #[tokio::test]
    async fn a_request_goes_to_the_backend_that_keeps_a_place_for_it_even_where_another_looks_better_by_that() {
        let backends = [fakes::Config::default(), fakes::Config::default()].map(fakes::Ollama::start);
        let backends = futures::future::try_join_all(backends).await.unwrap();
        let mut looks = JoinSet::new();
        let (here, model) = before(&backends, &mut looks).await;
        let work = |prompt| Work {
            model,
            chain: Chain::default(),
            prompt,
            output: 100,
            context: None,
            class: Class::Interactive,
            tenant: Tenant::ANONYMOUS,
            deadline: None,
        };
        let long = Duration::from_secs(60);
        let mut taken = Vec::new();
        for prompt in [100, 200] {
            let chosen = here.find(&work(prompt)).unwrap();
            chosen.probe(&work(prompt), long).unwrap();
            let has = |stand: &Stand| stand.agent.has_promised(&work(prompt));
            taken.push(here.all().iter().position(has).unwrap());
        }
        taken.sort_unstable();
        assert_eq!(taken, [0, 1], "the place kept at one makes the other look better");
        for prompt in [100, 200] {
            assert!(here.find_promised(&work(prompt)).unwrap().has_promised(&work(prompt)));
        }
        assert!(here.find_promised(&work(300)).is_some(), "one that nobody promised a place goes to the best");
    }
}
