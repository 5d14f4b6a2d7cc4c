//! A mesh in one process on a seeded virtual clock: leaders die, networks split, machines freeze, seats move, and what
//! was acknowledged must still be there.
//!
//! A failure prints its seed; `OMX_SEED=<seed> cargo test -p testkit` replays it alone, and `OMX_SEEDS=<n>` runs every
//! scenario on so many seeds.
#![expect(clippy::unwrap_used, reason = "whatever fails here fails the test that asked for it")]
#![expect(missing_debug_implementations, reason = "a test prints what it asserts")]

mod history;
mod world;

pub use fakes;
pub use history::{Entries, History, Load};
pub use world::{Node, Random, Up, World, sleep};

/// Runs one scenario on each of these seeds, or on the one that is asked for.
pub fn on_seeds(count: u64, scenario: impl AsyncFn(&mut World)) {
    // Tasks of the library and of ours say what they do where `RUST_LOG` asks for it.
    let wanted = tracing_subscriber::EnvFilter::from_default_env();
    let log = tracing_subscriber::fmt().with_env_filter(wanted).with_ansi(false);
    let _ = log.with_test_writer().without_time().try_init();
    let asked = |name| std::env::var(name).ok().map(|seed| seed.parse().expect("a seed is a number"));
    let count = asked("OMX_SEEDS").unwrap_or(count);
    let seeds = asked("OMX_SEED").map_or(1..=count, |seed| seed..=seed);
    for seed in seeds {
        println!("seed {seed}");
        World::run(seed, &scenario);
    }
}
