//! What two requests have in common, without their text: keyed hashes of ever longer beginnings of the prompt.
//!
//! A backend keeps the evaluated beginning of earlier prompts. Who holds the longest beginning of a new one saves the
//! most work, and a chain says which that is: link by link it commits to everything before. The hashes are keyed with a
//! secret of the mesh, since equal links tell that two prompts are equal that far.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::ModelKey;

/// Text between two links where they are densest; about 256 tokens.
pub const BLOCK_BYTES: usize = 1024;

/// So many beginnings have a link each; then four for each doubling of the length.
const DENSE: u32 = 128;

/// Links of a chain, at most: enough for 32 MiB of prompt, what lies behind is not compared.
pub const LINKS_MAX: usize = DENSE as usize + 32;

/// The mesh's secret, or a tenant's part of it, in the form that hashes are keyed with.
#[derive(Clone)]
pub struct ChainKey([u8; 32]);

impl ChainKey {
    pub fn derive(mesh_secret: &[u8]) -> Self {
        Self(blake3::derive_key("omx prefix chain 1", mesh_secret))
    }

    /// For tenants that must not learn by timing what others asked: their chains match nobody else's.
    pub fn apart(&self, salt: &[u8]) -> Self {
        Self(*blake3::keyed_hash(&self.0, salt).as_bytes())
    }
}

impl fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChainKey(…)")
    }
}

/// The beginnings of one prompt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Chain {
    head: u64,
    conversation: u64,
    links: Box<[u64]>,
}

impl Chain {
    /// What an application sends with every request, system text and tools; requests with the same head meet at the same
    /// homes.
    pub const fn head(&self) -> u64 {
        self.head
    }

    /// The same for all turns of a conversation.
    pub const fn conversation(&self) -> u64 {
        self.conversation
    }

    pub fn links(&self) -> &[u64] {
        &self.links
    }

    /// Blocks of the prompt that the links up to this one cover.
    pub const fn blocks_up_to(link: usize) -> u32 {
        let link = link as u32;
        if link < DENSE {
            return link + 1;
        }
        let (doubling, quarter) = ((link - DENSE) / 4, (link - DENSE) % 4 + 1);
        (DENSE + DENSE / 4 * quarter) << doubling
    }

    /// The blocks of the longest beginning that is known. The last links are asked first, since a cache may have lost
    /// what lay between.
    pub fn known_blocks(&self, known: impl Fn(u64) -> bool) -> u32 {
        self.links.iter().rposition(|link| known(*link)).map_or(0, Self::blocks_up_to)
    }

    /// The blocks of the longest beginning that both have. Equal links stand at equal places and come before all unequal
    /// ones.
    pub fn shared_blocks(&self, other: &Self) -> u32 {
        let shared = self.links.iter().zip(&other.links).take_while(|(ours, theirs)| ours == theirs).count();
        shared.checked_sub(1).map_or(0, Self::blocks_up_to)
    }

    /// Of `prompt` tokens of `bytes` bytes, those in so many blocks.
    pub fn tokens_in(blocks: u32, prompt: u32, bytes: u64) -> u32 {
        let covered = u64::from(blocks) * BLOCK_BYTES as u64;
        if covered >= bytes {
            return prompt;
        }
        u32::try_from(u64::from(prompt) * covered / bytes).unwrap_or(prompt)
    }
}

impl<'de> Deserialize<'de> for Chain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename = "Chain")]
        struct Sent {
            head: u64,
            conversation: u64,
            links: Box<[u64]>,
        }
        let Sent { head, conversation, links } = Sent::deserialize(deserializer)?;
        if links.len() > LINKS_MAX {
            return Err(D::Error::custom("a chain has too many links"));
        }
        Ok(Self { head, conversation, links })
    }
}

/// Takes a prompt's text in its canonical order and makes its chain: the head first, then turn by turn.
pub struct ChainWriter {
    hasher: blake3::Hasher,
    links: Vec<u64>,
    bytes: u64,
    head: Option<u64>,
    conversation: Option<u64>,
}

impl ChainWriter {
    pub fn new(key: &ChainKey, model: ModelKey) -> Self {
        // The model stands in the key, not in the text: blocks stay aligned with the hash's own, where a link is cheap.
        let keyed = blake3::keyed_hash(&key.0, model.as_bytes());
        let hasher = blake3::Hasher::new_keyed(keyed.as_bytes());
        Self { hasher, links: Vec::new(), bytes: 0, head: None, conversation: None }
    }

    /// More of the prompt. However it is cut into pieces, the chain is the same.
    pub fn push(&mut self, mut text: &[u8]) {
        while self.links.len() < LINKS_MAX {
            let boundary = u64::from(Chain::blocks_up_to(self.links.len())) * BLOCK_BYTES as u64;
            // Fits: it is at most the length of a slice in memory, or the slice is shorter.
            let missing = usize::try_from(boundary - self.bytes).unwrap_or(usize::MAX);
            if text.len() < missing {
                break;
            }
            let (block, rest) = text.split_at(missing);
            self.hasher.update(block);
            self.bytes = boundary;
            self.links.push(self.digest());
            text = rest;
        }
        self.hasher.update(text);
        self.bytes += text.len() as u64;
    }

    /// System text and tools end here. Only the first call counts.
    pub fn end_head(&mut self) {
        let digest = self.digest();
        self.head.get_or_insert(digest);
    }

    /// The user's first message ends here: what follows changes from turn to turn. Only the first call counts.
    pub fn end_opening(&mut self) {
        let digest = self.digest();
        self.conversation.get_or_insert(digest);
    }

    /// Length of the text so far.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// `session`: the client's own name for the conversation, where it gave one. A prompt that marked no end of its head
    /// or its opening is all of it: then only an equal prompt meets it.
    pub fn finish(self, session: Option<&[u8]>) -> Chain {
        let whole = self.digest();
        let named = session.map(|session| {
            let mut hasher = self.hasher.clone();
            hasher.reset();
            // No prompt gives this hash: a session's name is hashed as a key's derivation is, not as text.
            hasher.update(&blake3::derive_key("omx session 1", session));
            first_eight(&hasher.finalize())
        });
        Chain {
            head: self.head.unwrap_or(whole),
            conversation: named.or(self.conversation).unwrap_or(whole),
            links: self.links.into_boxed_slice(),
        }
    }

    fn digest(&self) -> u64 {
        first_eight(&self.hasher.finalize())
    }
}

impl fmt::Debug for ChainWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainWriter").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

fn first_eight(hash: &blake3::Hash) -> u64 {
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model(byte: u8) -> ModelKey {
        ModelKey::of_manifest(&[byte; 32])
    }

    fn chain_of(text: &[u8]) -> Chain {
        let mut writer = ChainWriter::new(&ChainKey::derive(b"mesh"), model(1));
        writer.push(text);
        writer.finish(None)
    }

    #[test]
    fn links_stand_closer_at_the_beginning() {
        let blocks: Vec<u32> = (0..LINKS_MAX).map(Chain::blocks_up_to).collect();
        assert!(blocks.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((blocks[0], blocks[127], blocks[128], blocks[131]), (1, 128, 160, 256));
        assert_eq!(*blocks.last().unwrap(), 128 << 8);
    }

    #[test]
    fn a_later_turn_shares_what_the_earlier_had() {
        let first = vec![b'a'; 5 * BLOCK_BYTES + 100];
        let mut second = first.clone();
        second.extend(vec![b'b'; 3 * BLOCK_BYTES]);
        assert_eq!(chain_of(&first).shared_blocks(&chain_of(&second)), 5);
        let known = chain_of(&first);
        assert_eq!(chain_of(&second).known_blocks(|link| known.links().contains(&link)), 5);
    }

    #[test]
    fn one_changed_byte_ends_what_is_shared() {
        let text = vec![b'a'; 6 * BLOCK_BYTES];
        let mut other = text.clone();
        other[2 * BLOCK_BYTES] = b'b';
        assert_eq!(chain_of(&text).shared_blocks(&chain_of(&other)), 2);
        other[0] = b'b';
        assert_eq!(chain_of(&text).shared_blocks(&chain_of(&other)), 0);
    }

    #[test]
    fn another_secret_model_or_tenant_shares_nothing() {
        let text = [b'a'; 4 * BLOCK_BYTES];
        let key = ChainKey::derive(b"mesh");
        let of = |key: &ChainKey, model| {
            let mut writer = ChainWriter::new(key, model);
            writer.push(&text);
            writer.finish(None)
        };
        let one = of(&key, model(1));
        for other in [of(&ChainKey::derive(b"other"), model(1)), of(&key, model(2)), of(&key.apart(b"key"), model(1))] {
            assert_eq!(one.shared_blocks(&other), 0);
            assert_ne!(one.head(), other.head());
        }
    }

    #[test]
    fn turns_of_a_conversation_have_one_key_and_applications_one_head() {
        let turn = |question: &str, more: &str, session: Option<&[u8]>| {
            let mut writer = ChainWriter::new(&ChainKey::derive(b"mesh"), model(1));
            writer.push(b"you are helpful");
            writer.end_head();
            writer.push(question.as_bytes());
            writer.end_opening();
            writer.push(more.as_bytes());
            writer.end_opening();
            writer.finish(session)
        };
        let (first, second, other) = (turn("hello", "", None), turn("hello", "more", None), turn("hi", "", None));
        assert_eq!(first.conversation(), second.conversation());
        assert_ne!(first.conversation(), other.conversation());
        assert_eq!(first.head(), other.head());
        assert_eq!(turn("hello", "", Some(b"s")).conversation(), turn("hi", "", Some(b"s")).conversation());
    }

    #[test]
    fn a_chain_longer_than_any_prompt_gives_is_refused() {
        let chain = |links| Chain { head: 1, conversation: 2, links: vec![7; links].into() };
        let there = |chain: &Chain| codec::from_bytes::<Chain>(&codec::to_bytes(chain).unwrap());
        assert_eq!(there(&chain(LINKS_MAX)).unwrap(), chain(LINKS_MAX));
        assert!(there(&chain(LINKS_MAX + 1)).is_err());
    }

    #[test]
    fn tokens_follow_the_share_of_the_text() {
        assert_eq!(Chain::tokens_in(2, 1000, 4 * BLOCK_BYTES as u64), 500);
        assert_eq!(Chain::tokens_in(9, 1000, 4 * BLOCK_BYTES as u64), 1000);
        assert_eq!(Chain::tokens_in(0, 0, 0), 0);
    }

    proptest! {
        #[test]
        fn how_the_text_is_cut_changes_nothing(
            text in proptest::collection::vec(any::<u8>(), 0..5000),
            cuts in proptest::collection::vec(0_usize..5000, 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut writer = ChainWriter::new(&ChainKey::derive(b"mesh"), model(1));
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                writer.push(&text[from..cut]);
                from = cut;
            }
            prop_assert_eq!(writer.bytes(), text.len() as u64);
            prop_assert_eq!(writer.finish(None), chain_of(&text));
        }
    }
}
