//! What the backend's prompt cache probably holds: nobody can look into it, but every prompt went past here.
//!
//! The backend keeps the last prompt of each slot, and newer ones park what they evict in memory. So the shadow is a
//! list of beginnings of prompts, the last used first, cut off where the backend's memory ends. Hashes cover all that
//! lies before them, so the longest match is the last of a chain's links that is known.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use scheduler::{BLOCK_BYTES, Chain, Moment};

/// Prompts kept per model; older ones are forgotten.
const PROMPTS_MAX: usize = 256;
/// Four of five reuses come within ten minutes; what is older was probably evicted by what we do not see.
const KEEP: Duration = Duration::from_secs(30 * 60);

#[derive(Debug)]
pub struct Shadow {
    tokens_max: u32,
    /// The newest last.
    prompts: VecDeque<Prompt>,
    /// How many prompts have a link.
    links: HashMap<u64, u32>,
    tokens: u64,
}

#[derive(Debug)]
struct Prompt {
    chain: Chain,
    used: Moment,
}

impl Prompt {
    fn tokens(&self) -> u32 {
        self.chain.links().len().checked_sub(1).map_or(0, |last| tokens(Chain::blocks_up_to(last)))
    }
}

impl Shadow {
    /// `tokens_max` is what slots and parked prompts hold together; the last prompt is kept however long it is.
    pub fn new(tokens_max: u32) -> Self {
        Self { tokens_max, prompts: VecDeque::new(), links: HashMap::new(), tokens: 0 }
    }

    /// Tokens of this prompt that need not be read, by the length of its text: they may be more than it has.
    pub fn cached(&self, prompt: &Chain) -> u32 {
        tokens(prompt.known_blocks(|link| self.links.contains_key(&link)))
    }

    /// The backend has read this prompt. A shorter beginning of it lives on in it and takes no room of its own.
    pub fn remember(&mut self, now: Moment, prompt: &Chain) {
        if prompt.links().is_empty() {
            return;
        }
        let begins = |known: &Prompt| known.chain.links().last().is_some_and(|end| prompt.links().contains(end));
        while let Some(at) = self.prompts.iter().position(begins) {
            self.forget_at(at);
        }
        for link in prompt.links() {
            *self.links.entry(*link).or_insert(0) += 1;
        }
        let prompt = Prompt { chain: prompt.clone(), used: now };
        self.tokens += u64::from(prompt.tokens());
        self.prompts.push_back(prompt);
        self.age(now);
    }

    /// What was said to be cached was read anew: the backend dropped it.
    pub fn missed(&mut self, prompt: &Chain) {
        let Some(known) = prompt.links().iter().rev().find(|link| self.links.contains_key(link)) else { return };
        while let Some(at) = self.prompts.iter().position(|prompt| prompt.chain.links().contains(known)) {
            self.forget_at(at);
        }
    }

    /// Forgets what is too old or no longer fits.
    pub fn age(&mut self, now: Moment) {
        while let Some(oldest) = self.prompts.front() {
            let is_old = now.since(oldest.used) > KEEP;
            let is_too_much = self.prompts.len() > PROMPTS_MAX || self.tokens > u64::from(self.tokens_max);
            if !(is_old || is_too_much && self.prompts.len() > 1) {
                break;
            }
            self.forget_at(0);
        }
    }

    /// The model was unloaded, its cache is gone.
    pub fn clear(&mut self) {
        *self = Self::new(self.tokens_max);
    }

    fn forget_at(&mut self, at: usize) {
        let Some(prompt) = self.prompts.remove(at) else { return };
        self.tokens -= u64::from(prompt.tokens());
        for link in prompt.chain.links() {
            if let Some(count) = self.links.get_mut(link) {
                *count -= 1;
                if *count == 0 {
                    self.links.remove(link);
                }
            }
        }
    }
}

/// A chain does not say how many tokens its text has; what nobody counted has one in four bytes everywhere here.
const fn tokens(blocks: u32) -> u32 {
    blocks * (BLOCK_BYTES as u32 / 4)
}

#[cfg(test)]
mod tests {
    use scheduler::{ChainKey, ChainWriter, ModelKey};

    use super::*;

    /// Each letter is a block, of 256 tokens.
    fn chain(text: &str) -> Chain {
        let mut writer = ChainWriter::new(&ChainKey::derive(b"mesh"), ModelKey::from_bytes([1; 16]));
        text.bytes().for_each(|byte| writer.push(&[byte; BLOCK_BYTES]));
        writer.finish(None)
    }

    const fn at(seconds: u64) -> Moment {
        Moment::since_start(Duration::from_secs(seconds))
    }

    #[test]
    fn the_longest_beginning_is_found() {
        let mut shadow = Shadow::new(100_000);
        assert_eq!(shadow.cached(&chain("abc")), 0);
        shadow.remember(at(0), &chain("abcd"));
        shadow.remember(at(1), &chain("abxy"));
        for (prompt, cached) in [("abcde", 4), ("abx", 3), ("ab", 2), ("abz", 2), ("b", 0), ("", 0)] {
            assert_eq!(shadow.cached(&chain(prompt)), cached * 256, "{prompt}");
        }
    }

    #[test]
    fn a_conversation_that_grows_takes_room_once() {
        let mut shadow = Shadow::new(100_000);
        for end in 1..=10 {
            shadow.remember(at(end), &chain(&"conversation"[..end as usize]));
        }
        assert_eq!((shadow.prompts.len(), shadow.tokens), (1, 2560));
    }

    #[test]
    fn memory_has_an_end_and_so_has_time() {
        let mut shadow = Shadow::new(1024);
        shadow.remember(at(0), &chain("abc"));
        shadow.remember(at(1), &chain("xyz"));
        assert_eq!((shadow.cached(&chain("abc")), shadow.cached(&chain("xyz"))), (0, 768));
        shadow.remember(at(2), &chain("much-too-long"));
        assert_eq!(shadow.cached(&chain("much")), 1024);
        shadow.age(at(3600));
        assert_eq!(shadow.cached(&chain("much")), 0);
        assert!(shadow.links.is_empty() && shadow.tokens == 0);
        let mut shadow = Shadow::new(u32::MAX);
        for prompt in 0..1000_u32 {
            shadow.remember(at(4000), &chain(&char::from_u32(0x4e00 + prompt).unwrap().to_string()));
        }
        assert_eq!(shadow.prompts.len(), PROMPTS_MAX);
    }

    #[test]
    fn a_miss_and_an_unloading_are_believed() {
        let mut shadow = Shadow::new(100_000);
        shadow.remember(at(0), &chain("abcd"));
        shadow.remember(at(0), &chain("abxy"));
        shadow.missed(&chain("abcdef"));
        assert_eq!(shadow.cached(&chain("abcd")), 512, "what another one holds stays");
        shadow.clear();
        assert_eq!(shadow.cached(&chain("abxy")), 0);
    }
}
