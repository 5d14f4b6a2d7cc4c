//! What a node says of itself: its backends, its models, how quick and how busy they are.

use serde::{Deserialize, Serialize};
use types::{MeshId, NodeId};

/// Beyond it, models that are not loaded are left out first.
pub const MODELS_MAX: usize = 256;
const BACKENDS_MAX: usize = 16;
const TEXT_MAX: usize = 400;
/// Before what is signed, so that a signature made for anything else is none for a record.
const PURPOSE: &[u8] = b"omx vitals 1\0";

/// What a node says of itself, without when it said so. Two that are equal need not both be told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Of `omx`.
    pub version: String,
    pub draining: bool,
    /// Of the disk that holds models, in MiB.
    pub disk_free: u32,
    /// In MiB; 0 where there is no GPU.
    pub vram_total: u32,
    /// In MiB.
    pub vram_free: u32,
    pub backends: Vec<Backend>,
    /// Those that are loaded stand first.
    pub models: Vec<Model>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub kind: BackendKind,
    pub state: BackendState,
    pub version: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendKind {
    Ollama,
    Engine,
    /// An Ollama on a machine without `omx`.
    Enrolled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendState {
    Up,
    Suspect,
    Down,
    Draining,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The first half of the manifest's SHA-256: enough to tell models apart, too little to verify one.
    pub digest: [u8; 16],
    pub name: String,
    /// Its place in [`Facts::backends`].
    pub backend: u8,
    pub resident: bool,
    pub slots: u8,
    /// Tokens a slot has room for; 0 while it is not loaded.
    pub context: u32,
    /// Prompt tokens a second.
    pub prefill: Log8,
    /// Answer tokens a second, alone in its backend.
    pub decode: Log8,
    /// Seconds a load takes.
    pub load: Log8,
    /// Slots free when this was said.
    pub free: u8,
    /// Seconds until a slot is free.
    pub wait: Log8,
}

/// A positive number to within 5 %, in a byte: an eighth of a doubling to a step, from 2⁻¹² to about 900,000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Log8(u8);

/// When a node said something: its starts are counted, and within one what it says. The greater is the newer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// Greater with each start of the node.
    pub incarnation: u64,
    pub sequence: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub node: NodeId,
    pub stamp: Stamp,
    pub facts: Facts,
}

/// An ed25519 signature, in two halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature(pub [u8; 32], pub [u8; 32]);

/// A record as it travels: the bytes that were signed, untouched by whoever passes them on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    bytes: Vec<u8>,
    signature: Signature,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("a record cannot be read")]
    Unreadable(#[source] codec::Error),
    #[error("a record of node `{node}` has `{count}` {what}")]
    TooMuch { node: NodeId, what: &'static str, count: usize },
    #[error("a record of node `{node}` is not signed by it")]
    Forged { node: NodeId },
}

impl codec::Record for Record {
    const VERSION: u8 = 1;
    const LIMIT: usize = 24 << 10;
}

impl Facts {
    /// As much of it as a record takes, the models that are loaded first.
    pub(crate) fn bounded(mut self) -> Self {
        self.models.sort_by_key(|model| !model.resident);
        self.backends.truncate(BACKENDS_MAX);
        let backends = self.backends.len();
        self.models.retain(|model| usize::from(model.backend) < backends && model.name.len() <= TEXT_MAX);
        self.models.truncate(MODELS_MAX);
        self.version.truncate(self.version.floor_char_boundary(TEXT_MAX));
        self.backends
            .iter_mut()
            .for_each(|backend| backend.version.truncate(backend.version.floor_char_boundary(TEXT_MAX)));
        self
    }

    /// Whether what was said before misleads by now: anything but a load that is still about the same.
    pub(crate) fn differs(&self, before: &Self) -> bool {
        let mut as_before = self.clone();
        for (model, before) in as_before.models.iter_mut().zip(&before.models) {
            let full = |model: &Model| model.free == 0;
            if full(model) == full(before) && model.wait.steps_from(before.wait) < Log8::DOUBLING {
                (model.free, model.wait) = (before.free, before.wait);
            }
        }
        // Free space moves all the time; a sixteenth of it is news.
        let about = |now: u32, before: u32| if now.abs_diff(before) <= before / 16 { before } else { now };
        as_before.disk_free = about(self.disk_free, before.disk_free);
        as_before.vram_free = about(self.vram_free, before.vram_free);
        as_before != *before
    }
}

impl Log8 {
    const DOUBLING: u8 = 8;

    /// What is nothing or less, or no number, is nothing; what is too great is as great as can be said.
    pub fn of(value: f64) -> Self {
        if value.is_nan() || value <= 0.0 {
            return Self(0);
        }
        let steps = (value.log2() + 12.0) * f64::from(Self::DOUBLING);
        Self(steps.round().clamp(0.0, 254.0) as u8 + 1)
    }

    pub fn value(self) -> f64 {
        match self.0 {
            0 => 0.0,
            steps => (f64::from(steps - 1) / f64::from(Self::DOUBLING) - 12.0).exp2(),
        }
    }

    fn steps_from(self, other: Self) -> u8 {
        self.0.abs_diff(other.0)
    }
}

impl Signed {
    /// Fails where the record is longer than a reader accepts; then it is not told, and the one before it stays.
    pub fn new(record: &Record, mesh: MeshId, sign: impl Fn(&[u8]) -> Signature) -> Result<Self, RecordError> {
        let bytes = codec::encode(record).map_err(RecordError::Unreadable)?;
        let signature = sign(&signed_part(mesh, &bytes));
        Ok(Self { bytes, signature })
    }

    /// The record, if it is well-formed and the node it is about said it to this mesh.
    pub fn open(
        &self,
        mesh: MeshId,
        verify: impl Fn(NodeId, &[u8], &Signature) -> bool,
    ) -> Result<Record, RecordError> {
        let record = self.peek()?;
        if !verify(record.node, &signed_part(mesh, &self.bytes), &self.signature) {
            return Err(RecordError::Forged { node: record.node });
        }
        Ok(record)
    }

    /// What it claims. To be believed only after [`open`](Self::open).
    pub(crate) fn peek(&self) -> Result<Record, RecordError> {
        let record: Record = codec::decode(&self.bytes).map_err(RecordError::Unreadable)?;
        let (node, facts) = (record.node, &record.facts);
        let too_much =
            |what, count, max| if count > max { Err(RecordError::TooMuch { node, what, count }) } else { Ok(()) };
        too_much("models", facts.models.len(), MODELS_MAX)?;
        too_much("backends", facts.backends.len(), BACKENDS_MAX)?;
        let stray = facts.models.iter().filter(|model| usize::from(model.backend) >= facts.backends.len()).count();
        too_much("models without a backend", stray, 0)?;
        Ok(record)
    }

    /// In bytes, about as they travel.
    pub fn size(&self) -> usize {
        self.bytes.len() + size_of::<Signature>() + 2
    }
}

fn signed_part(mesh: MeshId, bytes: &[u8]) -> Vec<u8> {
    [PURPOSE, mesh.as_bytes(), bytes].concat()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn model(name: &str, resident: bool) -> Model {
        Model {
            digest: [7; 16],
            name: name.to_owned(),
            backend: 0,
            resident,
            slots: 4,
            context: 8192,
            prefill: Log8::of(2_000.0),
            decode: Log8::of(60.0),
            load: Log8::of(8.0),
            free: 4,
            wait: Log8::of(0.0),
        }
    }

    pub(crate) fn facts(models: &[&str]) -> Facts {
        Facts {
            version: "0.1.0".to_owned(),
            draining: false,
            disk_free: 400_000,
            vram_total: 24_576,
            vram_free: 12_000,
            backends: vec![Backend {
                kind: BackendKind::Ollama,
                state: BackendState::Up,
                version: "0.33.0".to_owned(),
            }],
            models: models.iter().map(|name| model(name, true)).collect(),
        }
    }

    /// Stands in for ed25519: everybody can make it, and whatever is changed shows.
    pub(crate) fn sum(node: NodeId, bytes: &[u8]) -> Signature {
        let mut halves = [[0_u8; 32]; 2];
        for (at, byte) in node.public_key().iter().chain(bytes).enumerate() {
            let place = &mut halves[at % 2][at / 2 % 32];
            *place = place.rotate_left(3).wrapping_add(*byte);
        }
        Signature(halves[0], halves[1])
    }

    pub(crate) fn node(number: u8) -> NodeId {
        NodeId::from_public_key([number; 32])
    }

    pub(crate) fn mesh() -> MeshId {
        MeshId::from_bytes([1; 16])
    }

    pub(crate) fn record(number: u8, incarnation: u64, sequence: u64) -> Record {
        Record { node: node(number), stamp: Stamp { incarnation, sequence }, facts: facts(&["llama3.2:1b"]) }
    }

    pub(crate) fn signed(record: &Record) -> Signed {
        Signed::new(record, mesh(), |bytes| sum(record.node, bytes)).unwrap()
    }

    fn opened(signed: &Signed, mesh: MeshId) -> Result<Record, RecordError> {
        signed.open(mesh, |node, bytes, signature| sum(node, bytes) == *signature)
    }

    #[test]
    fn a_record_of_two_models_takes_two_hundred_bytes() {
        let record = Record { facts: facts(&["llama3.2:1b", "qwen3:8b"]), ..record(1, 1_790_000_000_000, 1_000) };
        let size = signed(&record).size();
        assert!(size <= 220, "{size}");
    }

    #[test]
    fn the_fullest_record_can_be_told() {
        let name = "x".repeat(64);
        let facts = Facts { models: vec![model(&name, true); 2 * MODELS_MAX], ..facts(&[]) }.bounded();
        let record = Record { facts, ..record(1, u64::MAX, u64::MAX) };
        assert_eq!(opened(&signed(&record), mesh()).unwrap(), record);
        assert_eq!(record.facts.models.len(), MODELS_MAX);
    }

    #[test]
    fn loaded_models_stay_when_there_are_too_many() {
        let mut all = facts(&[]);
        all.models = vec![model("cold", false); MODELS_MAX];
        all.models.push(model("warm", true));
        all.models.push(Model { backend: 9, ..model("stray", true) });
        let bounded = all.bounded();
        assert_eq!((bounded.models.len(), bounded.models[0].name.as_str()), (MODELS_MAX, "warm"));
    }

    #[test]
    fn only_its_node_can_say_it_and_only_to_its_mesh() {
        let record = record(1, 5, 6);
        let good = signed(&record);
        assert_eq!(opened(&good, mesh()).unwrap(), record);
        assert_eq!(opened(&good, MeshId::from_bytes([2; 16])), Err(RecordError::Forged { node: node(1) }));
        for at in 0..good.bytes.len() {
            let mut bad = good.clone();
            bad.bytes[at] ^= 1;
            assert!(opened(&bad, mesh()).is_err(), "a changed byte {at} was believed");
        }
        let by_another = Signed::new(&record, mesh(), |bytes| sum(node(2), bytes)).unwrap();
        assert_eq!(opened(&by_another, mesh()), Err(RecordError::Forged { node: node(1) }));
    }

    #[test]
    fn a_record_that_does_not_hold_together_is_refused() {
        let mut stray = record(1, 1, 1);
        stray.facts.backends.clear();
        assert!(matches!(opened(&signed(&stray), mesh()), Err(RecordError::TooMuch { count: 1, .. })));
    }

    #[test]
    fn numbers_keep_within_a_twentieth() {
        for value in [0.001, 0.5, 1.0, 37.0, 2_000.0, 500_000.0] {
            let back = Log8::of(value).value();
            assert!((back / value - 1.0).abs() < 0.05, "{value} became {back}");
        }
        for (nothing, value) in [(0.0, 0.0), (-1.0, 0.0), (f64::NAN, 0.0)] {
            assert_eq!(Log8::of(nothing).value(), value);
        }
        assert!(Log8::of(f64::INFINITY).value() > 800_000.0 && Log8::of(1e-30).value() > 0.0);
    }

    #[test]
    fn a_load_is_news_when_it_doubles_or_the_last_slot_goes() {
        let before = facts(&["m"]);
        let with = |change: fn(&mut Model)| {
            let mut now = before.clone();
            change(&mut now.models[0]);
            now.differs(&before)
        };
        assert!(!with(|_| {}) && !with(|model| model.free = 1));
        assert!(with(|model| model.free = 0) && with(|model| model.wait = Log8::of(1.0)));
        assert!(with(|model| model.resident = false) && with(|model| model.slots = 5));
        assert!(!Facts { disk_free: 399_000, ..before.clone() }.differs(&before));
        assert!(Facts { disk_free: 300_000, ..before.clone() }.differs(&before));
    }
}
