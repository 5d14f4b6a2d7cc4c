//! What one decision costs a gateway, without the network: whom to ask, and whom to take once they answered.
//!
//!     cargo bench -p scheduler --bench decide
//!
//! Times are of the wall; with a batch so short, what others take of the processor shows in the last percentiles only.

use std::time::Instant;

use scheduler::{
    Answer, Asker, CANDIDATES_MAX, Candidate, Candidates, Chain, Class, Dice, Facts, Fleet, ModelKey, Moment, Promise,
    Seconds, Tenant, Work, choose,
};
use types::NodeId;

const DECISIONS: usize = 100_000;

fn main() {
    println!("| nodes | p50 µs | p99 µs | p99.9 µs | first, with the order made µs |");
    println!("|--:|--:|--:|--:|--:|");
    for nodes in [10_u64, 100, 1_000, 10_000] {
        let mut dice = Dice::new(nodes);
        let mut fleet = Fleet::default();
        let ids: Vec<NodeId> = (0..nodes).map(|_| node(&mut dice)).collect();
        ids.iter().for_each(|id| fleet.hear(*id, facts(&mut dice), Seconds::new(0.001), Moment::default()));
        let asker = Asker { own: ids.first().copied(), owner: None };
        let first = Instant::now();
        decide(&mut fleet, asker, &mut dice);
        let first = first.elapsed();
        let mut took: Vec<u64> = (0..DECISIONS)
            .map(|_| {
                let start = Instant::now();
                std::hint::black_box(decide(&mut fleet, asker, &mut dice));
                start.elapsed().as_nanos() as u64
            })
            .collect();
        took.sort_unstable();
        let at = |permille: usize| took[DECISIONS * permille / 1000] as f64 / 1000.0;
        println!("| {nodes} | {:.2} | {:.2} | {:.2} | {:.0} |", at(500), at(990), at(999), first.as_secs_f64() * 1e6);
    }
}

/// Every promise is what was heard: what an answer contains does not change what it costs to compare it.
fn decide(fleet: &mut Fleet, asker: Asker, dice: &mut Dice) -> Option<NodeId> {
    let work = Work {
        model: ModelKey::from_bytes([1; 16]),
        chain: chain(dice),
        prompt: 1000,
        output: 200,
        context: None,
        class: Class::Interactive,
        tenant: Tenant::ANONYMOUS,
        deadline: None,
    };
    let candidates = Candidates::choose(fleet, &work, asker, Moment::default(), dice, |_| true);
    let mut answers = [None; CANDIDATES_MAX];
    for (slot, candidate) in answers.iter_mut().zip(candidates.iter()) {
        *slot = Some(answer(*candidate));
    }
    // All candidates stand at the front.
    let known = candidates.iter().next().map(|first| answers.map(|each| each.unwrap_or(answer(*first))))?;
    choose(&work, &known[..candidates.len()], false, dice).map(|choice| choice.node)
}

fn answer(candidate: Candidate) -> Answer {
    Answer { candidate, promise: Promise { estimate: candidate.stale, free_slots: 1 } }
}

/// Another head and conversation each time, so that no home is found in a cache of the processor.
fn chain(dice: &mut Dice) -> Chain {
    let key = scheduler::ChainKey::derive(b"bench");
    let mut writer = scheduler::ChainWriter::new(&key, ModelKey::from_bytes([1; 16]));
    writer.push(&dice.roll().to_le_bytes());
    writer.finish(None)
}

fn node(dice: &mut Dice) -> NodeId {
    let mut key = [0; 32];
    key.chunks_mut(8).for_each(|part| part.copy_from_slice(&dice.roll().to_le_bytes()));
    NodeId::from_public_key(key)
}

/// Unequal machines; one in five would have to load the model.
fn facts(dice: &mut Dice) -> Facts {
    let quick = 1.0 + dice.below(40) as f32;
    let free_slots = dice.below(4) as u16;
    Facts {
        resident: (dice.below(5) > 0).then_some(8192),
        slots: 4,
        free_slots,
        wait: if free_slots > 0 { Seconds::ZERO } else { Seconds::new(dice.below(30) as f32) },
        load: Seconds::new(5.0),
        prefill_rate: quick * 100.0,
        step: Seconds::new(0.4 / quick),
    }
}
