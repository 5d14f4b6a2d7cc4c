//! The bytes between a gateway and an agent on another node: a question of what a request would meet, its answer, what
//! goes ahead of a request, and why one came to nothing. How they travel is the business of whoever sends them.

use std::error::Error as _;
use std::time::Duration;

use scheduler::{Promise, Work};
use serde::{Deserialize, Serialize};

use crate::desk::{Ask, Refusal};
use crate::error::Error;
use crate::pool;

/// The name of questions, one [`Probe`] and one [`Reply`] each.
pub const PROBE: &str = "/omx/probe/1";
/// The name of streams, which carry HTTP/1.1.
pub const INFER: &str = "/omx/infer/1";

/// The record of the [`Ask`], in hex: a body goes as it came, so that what belongs to nodes stands ahead of it.
pub(crate) const ASK: &str = "omx-ask";
/// The record of the [`Failure`], in hex. Where it is missing the backend itself has answered, be it with an error.
pub(crate) const FAILURE: &str = "omx-failure";
/// The `num_ctx` that was set in place of the request's.
pub(crate) const RAISED_CONTEXT: &str = "omx-raised-context";
/// What it met that could not start at once: a number, and milliseconds.
pub(crate) const QUEUE_PLACE: &str = "omx-queue-place";
pub(crate) const EXPECTED_WAIT_MS: &str = "omx-expected-wait-ms";

/// Longer explanations are cut.
const TEXT_BYTES_MAX: usize = 256;
/// Two round trips to the farthest node that is worth asking.
const HOLD_MAX: Duration = Duration::from_secs(2);
/// An operator's weights lie far within.
const WEIGHT_MIN: f32 = 0.01;
const WEIGHT_MAX: f32 = 100.0;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    pub work: Work,
    hold: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Promise(Promise),
    Refused(Refusal),
}

/// What goes ahead of a request's body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    work: Work,
    weight: f32,
    wait_max: Option<Duration>,
    key: Option<String>,
}

/// Why a request was not answered by a backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Failure {
    Refused(Refusal),
    /// It was taken, and the backend did not answer.
    Backend(String),
    /// It could not be read.
    Malformed(String),
}

impl codec::Record for Probe {
    const VERSION: u8 = 1;
    const LIMIT: usize = 2 << 10;
}

impl codec::Record for Reply {
    const VERSION: u8 = 1;
    const LIMIT: usize = 512;
}

impl codec::Record for Envelope {
    const VERSION: u8 = 1;
    const LIMIT: usize = 2 << 10;
}

impl codec::Record for Failure {
    const VERSION: u8 = 1;
    const LIMIT: usize = 512;
}

impl Probe {
    pub fn new(work: Work, hold: Duration) -> Self {
        Self { work, hold }
    }

    /// How long a place is to be held, within reason.
    pub fn hold(&self) -> Duration {
        self.hold.min(HOLD_MAX)
    }
}

impl From<Result<Promise, Refusal>> for Reply {
    fn from(answer: Result<Promise, Refusal>) -> Self {
        match answer {
            Ok(promise) => Self::Promise(promise),
            Err(refusal) => Self::Refused(shortened(refusal)),
        }
    }
}

impl From<Reply> for Result<Promise, Refusal> {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Promise(promise) => Ok(promise),
            Reply::Refused(refusal) => Err(refusal),
        }
    }
}

impl From<Ask> for Envelope {
    fn from(Ask { work, weight, wait_max, key }: Ask) -> Self {
        Self { work, weight, wait_max, key }
    }
}

impl From<Envelope> for Ask {
    fn from(Envelope { work, weight, wait_max, key }: Envelope) -> Self {
        let weight = if weight.is_nan() { 1.0 } else { weight.clamp(WEIGHT_MIN, WEIGHT_MAX) };
        Self { work, weight, wait_max, key }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => Self::Refused(shortened(refusal)),
            // The backend has not seen it: whoever asked loses nothing by asking somebody else.
            error @ (Error::NoWay(_) | Error::Unreachable(pool::Error::Late(_) | pool::Error::Connect(_))) => {
                Self::Refused(Refusal::Down(cut(error.to_string())))
            }
            error => {
                let mut text = error.to_string();
                let mut cause = error.source();
                while let Some(error) = cause {
                    text = format!("{text}: {error}");
                    cause = error.source();
                }
                Self::Backend(cut(text))
            }
        }
    }
}

impl Failure {
    pub(crate) fn malformed(why: impl Into<String>) -> Self {
        Self::Malformed(cut(why.into()))
    }
}

fn shortened(refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Down(why) => Refusal::Down(cut(why)),
        refusal => refusal,
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

/// For a header.
pub(crate) fn to_hex<T: codec::Record>(record: &T) -> Result<String, codec::Error> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bytes = codec::encode(record)?;
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    Ok(digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect())
}

/// `None` for what is no record in hex.
pub(crate) fn from_hex<T: codec::Record>(hex: &[u8]) -> Option<T> {
    if hex.len() > 2 * T::LIMIT || !hex.len().is_multiple_of(2) {
        return None;
    }
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |pair: &[u8]| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8);
    let bytes: Vec<u8> = hex.chunks_exact(2).map(byte).collect::<Option<_>>()?;
    codec::decode(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use scheduler::{BLOCK_BYTES, Chain, ChainKey, ChainWriter, Class, Estimate, LINKS_MAX, ModelKey, Seconds, Tenant};

    use super::*;

    fn work() -> Work {
        Work {
            model: ModelKey::from_bytes([7; 16]),
            chain: Chain::default(),
            prompt: 100,
            output: 200,
            context: Some(240),
            class: Class::Batch,
            tenant: Tenant::ANONYMOUS,
            deadline: Some(Duration::new(60, 5)),
        }
    }

    fn promise() -> Promise {
        let span = Seconds::new;
        let estimate = Estimate {
            wait: span(1.0),
            load: span(2.0),
            prefill: span(0.5),
            decode: span(4.0),
            deviation: span(0.0),
            cached: 9,
        };
        Promise { estimate, free_slots: 3 }
    }

    /// The longest chain there can be, with links that take all their bytes.
    fn longest() -> Work {
        let mut writer = ChainWriter::new(&ChainKey::derive(b"mesh"), ModelKey::from_bytes([7; 16]));
        (0..Chain::blocks_up_to(LINKS_MAX - 1)).for_each(|_| writer.push(&[1; BLOCK_BYTES]));
        let chain = writer.finish(None);
        assert_eq!(chain.links().len(), LINKS_MAX);
        let (deadline, context) = (Some(Duration::MAX), Some(u32::MAX));
        let tenant = Tenant::of_key(b"anne");
        Work { chain, prompt: u32::MAX, output: u32::MAX, context, tenant, deadline, ..work() }
    }

    #[test]
    fn bytes_stay_as_they_are() {
        let model = [7; 16];
        let work_bytes = [&model[..], &[0, 0, 0], &[100, 200], &[1, 240], &[2], &[0], &[1, 60, 5]].concat();
        let probe = Probe::new(work(), Duration::new(1, 5));
        let one = 1.0_f32.to_le_bytes();
        assert_eq!(codec::encode(&probe).unwrap(), [&[1][..], &work_bytes, &[1, 5]].concat());
        let envelope =
            Envelope { work: work(), weight: 1.0, wait_max: Some(Duration::new(2, 0)), key: Some("x".to_owned()) };
        assert_eq!(codec::encode(&envelope).unwrap(), [&[1][..], &work_bytes, &one, &[1, 2, 0, 1, 1, b'x']].concat());
        let floats = [1.0_f32, 2.0, 0.5, 4.0, 0.0].map(f32::to_le_bytes).concat();
        let promise_bytes = [&floats[..], &[9, 3]].concat();
        let reply = |reply: Reply| codec::encode(&reply).unwrap();
        assert_eq!(reply(Reply::Promise(promise())), [&[1, 0][..], &promise_bytes].concat());
        let refusals = [
            (Refusal::NoModel, vec![0]),
            (Refusal::Nack(promise()), [&[1][..], &promise_bytes].concat()),
            (Refusal::Full { wait: Seconds::new(1.0) }, [&[2][..], &one].concat()),
            (Refusal::Late, vec![3]),
            (Refusal::Draining, vec![4]),
            (Refusal::Down("x".to_owned()), vec![5, 1, b'x']),
            (Refusal::Denied, vec![6]),
        ];
        for (refusal, bytes) in refusals {
            assert_eq!(reply(Reply::Refused(refusal.clone())), [&[1, 1][..], &bytes].concat());
            assert_eq!(codec::encode(&Failure::Refused(refusal)).unwrap(), [&[1, 0][..], &bytes].concat());
        }
        assert_eq!(codec::encode(&Failure::Backend("x".to_owned())).unwrap(), [1, 1, 1, b'x']);
        assert_eq!(codec::encode(&Failure::malformed("x")).unwrap(), [1, 2, 1, b'x']);
    }

    #[test]
    fn the_longest_of_each_arrives() {
        let probe = Probe::new(longest(), Duration::MAX);
        assert_eq!(codec::decode::<Probe>(&codec::encode(&probe).unwrap()).unwrap(), probe);
        let envelope =
            Envelope { work: longest(), weight: f32::MAX, wait_max: Some(Duration::MAX), key: Some("0".repeat(32)) };
        assert_eq!(from_hex::<Envelope>(to_hex(&envelope).unwrap().as_bytes()), Some(envelope));
        let down = Refusal::Down("é".repeat(1000));
        let reply = Reply::from(Err(down.clone()));
        assert_eq!(codec::decode::<Reply>(&codec::encode(&reply).unwrap()).unwrap(), reply);
        for error in [Error::Refused(down), Error::GivenUp("é".repeat(1000))] {
            let failure = Failure::from(error);
            assert_eq!(from_hex::<Failure>(to_hex(&failure).unwrap().as_bytes()), Some(failure));
        }
    }

    #[test]
    fn what_a_peer_exaggerates_is_brought_within_reason() {
        assert_eq!(Probe::new(work(), Duration::MAX).hold(), HOLD_MAX);
        let weight = |weight| Ask::from(Envelope { work: work(), weight, wait_max: None, key: None }).weight;
        for (sent, taken) in [(f32::NAN, 1.0), (f32::INFINITY, WEIGHT_MAX), (-1.0, WEIGHT_MIN), (2.0, 2.0)] {
            assert_eq!(weight(sent), taken);
        }
    }

    #[test]
    fn what_is_no_record_is_none() {
        let good = to_hex(&Failure::Refused(Refusal::Late)).unwrap();
        assert!(from_hex::<Failure>(good.as_bytes()).is_some());
        for bad in ["", "0", "zz", "010003ff", "ff0003", &good[..4], &"0".repeat(10_000)] {
            assert_eq!(from_hex::<Failure>(bad.as_bytes()), None, "{bad}");
        }
    }
}
