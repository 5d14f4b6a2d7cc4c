//! A model that is dropped gives its memory back. In a process of its own, since it looks at the whole process.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::fs;

use engine::runner::{EmbedJob, Event, Job, Loader, Overlong, Prompt, Spec};
use engine::{Config, Llama};

#[path = "../src/llama/tests/tiny.rs"]
mod tiny;

/// So that their contexts take 64 MiB: up to 32 an allocator keeps for later.
const SLOTS: u32 = 128;
const ROUNDS: usize = 6;

#[tokio::test]
async fn a_dropped_model_gives_its_memory_back() {
    let folder = tempfile::tempdir().unwrap();
    let spec = Spec::new(tiny::write(folder.path()));
    let llama = Llama::new(Config { slots: Some(SLOTS), ..Config::default() });
    let mut unloaded = Vec::new();
    let mut loaded = Vec::new();
    for _ in 0..ROUNDS {
        let model = llama.load(&spec).unwrap();
        let mut answer = model.generate(Job { limit: Some(5), ..Job::new(Prompt::rendered("a")) }).await.unwrap();
        while let Some(event) = answer.next().await {
            assert!(matches!(event.unwrap(), Event::Text { .. } | Event::Done(_)));
        }
        model.embed(EmbedJob { inputs: vec!["a".to_owned()], overlong: Overlong::Cut }).await.unwrap();
        loaded.push(resident_kib());
        drop(answer);
        drop(model);
        unloaded.push(resident_kib());
    }
    // The first round also pays for what stays, such as threads' arenas.
    let (first, last) = (unloaded[0], unloaded[ROUNDS - 1]);
    let takes = loaded[0].saturating_sub(unloaded[0]);
    assert!(takes > 60 << 10, "a load takes {takes} KiB, too little to be told from noise");
    assert!(last < first + takes * 3 / 4, "{unloaded:?} KiB after each unload, {loaded:?} before");
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}
