//! What an agent takes to answer a probe, from bytes to bytes, without the network: idle, and at its fullest.
//!
//!     cargo bench -p agent --bench probe
//!
//! Times are of the wall; with a batch so short, what others take of the processor shows in the last percentiles only.

use std::time::{Duration, Instant};

use agent::desk::{Desk, Ending};
use agent::{Ask, Config, Probe, Reply};
use ollama::seen::Listed;
use scheduler::{BLOCK_BYTES, ChainKey, ChainWriter, Class, ModelKey, Moment, Tenant, Work};

const PROBES: u32 = 10_000;
const SLOTS: u16 = 32;

fn main() {
    println!("| waiting | links of the prompt | p50 µs | p99 µs | p99.9 µs |");
    println!("|--:|--:|--:|--:|--:|");
    for (waiting, blocks) in [(0, 4), (0, 128), (64, 128), (512, 128)] {
        let mut desk = desk(waiting, blocks);
        let mut took: Vec<u64> = (0..PROBES)
            .map(|at| {
                // Each comes from another, and what was promised before has not run out.
                let bytes =
                    codec::encode(&Probe::new(work(at, blocks), Duration::from_millis(12))).expect("a work is short");
                let now = Moment::since_start(Duration::from_secs(1) + Duration::from_micros(u64::from(at) * 200));
                let start = Instant::now();
                std::hint::black_box(answer(&mut desk, now, &bytes));
                start.elapsed().as_nanos() as u64
            })
            .collect();
        took.sort_unstable();
        let at = |permille: usize| took[took.len() * permille / 1000] as f64 / 1000.0;
        println!("| {waiting} | {blocks} | {:.1} | {:.1} | {:.1} |", at(500), at(990), at(999));
    }
}

fn answer(desk: &mut Desk, now: Moment, bytes: &[u8]) -> Vec<u8> {
    let probe: Probe = codec::decode(bytes).expect("it was encoded here");
    codec::encode(&Reply::from(desk.probe(now, &probe.work, probe.hold()))).expect("a reply is short")
}

/// All slots taken where somebody waits, and a prompt cache that knows as many prompts as it may.
fn desk(waiting: u32, blocks: u32) -> Desk {
    let mut desk = Desk::new(Config { slots: Some(SLOTS), cached_tokens_max: u32::MAX, ..Config::default() });
    let listed = serde_json::json!({ "name": "m:latest", "digest": "07".repeat(32), "size": 4_500_000_000_u64 });
    let listed: Listed = serde_json::from_value(listed).expect("it has what a listed one has");
    desk.listed(&[listed]);
    desk.answered(Moment::default());
    let start = Moment::default();
    let enter = |desk: &mut Desk, at| {
        let ask = Ask { work: work(at, blocks), weight: 1.0, wait_max: None, key: None };
        desk.enter(start, ask, None).expect("there is room").0
    };
    for at in 0..256 {
        let ticket = enter(&mut desk, at);
        desk.spoke(start, ticket);
        desk.end(start, ticket, &Ending::Cut { written: 0 });
    }
    if waiting > 0 {
        (0..waiting + u32::from(SLOTS)).for_each(|at| _ = enter(&mut desk, at));
        assert_eq!(desk.waiting(), waiting as usize);
    }
    desk
}

fn work(at: u32, blocks: u32) -> Work {
    let mut writer = ChainWriter::new(&ChainKey::derive(b"mesh"), ModelKey::from_bytes([7; 16]));
    writer.push(&at.to_le_bytes());
    (0..blocks).for_each(|_| writer.push(&[1; BLOCK_BYTES]));
    Work {
        model: ModelKey::from_bytes([7; 16]),
        chain: writer.finish(None),
        prompt: blocks * 256,
        output: 200,
        context: None,
        class: Class::Interactive,
        tenant: Tenant::of_key(&[(at % 16) as u8]),
        deadline: None,
    }
}
