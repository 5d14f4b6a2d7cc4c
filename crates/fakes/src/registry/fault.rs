//! Faults on command: at which step of a transfer, what goes wrong, how often.

use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;

use crate::orders::Orders;

/// A request of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Manifest,
    /// How long a blob is.
    Head,
    /// Where a blob is.
    Locate,
    /// A part of a blob.
    Data,
    /// Anything of a push.
    Push,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    Status {
        status: u16,
    },
    /// Nothing is ever answered.
    Hang,
    /// The connection breaks after so many bytes of the body. A shorter one has it not.
    Cut {
        at: u64,
    },
    /// Nothing comes after so many bytes of the body. A shorter one has it not.
    Stall {
        at: u64,
    },
    /// So many bytes a second.
    Slow {
        rate: u64,
    },
    /// The byte that stands there in the blob, or in the manifest, is another. A part without it has it not.
    Flip {
        at: u64,
    },
    /// Another length is told for a blob than it has.
    Announce {
        size: u64,
    },
    /// So many bytes more than there should be follow.
    Overrun {
        by: u64,
    },
    /// The range that was asked for is ignored.
    Whole,
    /// What is asked for is said to be there, as in `http://169.254.169.254/latest`.
    Redirect {
        to: String,
    },
    /// Where a blob is, is not said, as other registries do it.
    Nowhere,
}

/// Orders faults. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Orders<(Step, Fault)>>);

/// What `POST /__fault` takes, such as `{"at_step":"data","fault":"cut","at":1000,"next":2}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Ordered {
    #[serde(rename = "at_step")]
    pub step: Step,
    #[serde(flatten)]
    pub fault: Fault,
    /// For so many; for all where there is none.
    pub next: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no fault of a registry: see `--help` for those there are")]
pub struct InvalidFault(String);

impl Faults {
    pub(super) fn new() -> Self {
        Self(Arc::new(Orders::new()))
    }

    /// Every request of this kind from now on has it.
    pub fn always(&self, step: Step, fault: Fault) {
        self.order(Ordered { step, fault, next: None });
    }

    pub fn next(&self, count: u32, step: Step, fault: Fault) {
        self.order(Ordered { step, fault, next: Some(count) });
    }

    pub fn order(&self, Ordered { step, fault, next }: Ordered) {
        self.0.push((step, fault), next);
    }

    /// What was ordered is forgotten. What hangs already stays so.
    pub fn clear(&self) {
        self.0.clear();
    }

    /// For a request whose body is to begin at `from` and to be `length` long.
    pub(super) fn of(&self, step: Step, from: u64, length: u64) -> Option<Fault> {
        let fits = |fault: &Fault| match fault {
            Fault::Cut { at } | Fault::Stall { at } => *at < length,
            Fault::Flip { at } => (from..from + length).contains(at),
            _ => true,
        };
        self.0.take(|(ordered, fault)| *ordered == step && fits(fault)).map(|(_, fault)| fault)
    }
}

/// `step:name` or `step:name=value`, for a command line.
impl FromStr for Ordered {
    type Err = InvalidFault;

    fn from_str(text: &str) -> Result<Self, InvalidFault> {
        let invalid = || InvalidFault(text.to_owned());
        let (step, fault) = text.split_once(':').ok_or_else(invalid)?;
        let (name, value) = fault.split_once('=').map_or((fault, None), |(name, value)| (name, Some(value)));
        let mut fields = serde_json::Map::new();
        fields.insert("at_step".to_owned(), step.into());
        fields.insert("fault".to_owned(), name.into());
        if let Some(value) = value {
            for field in ["status", "at", "rate", "size", "by"] {
                fields.insert(field.to_owned(), serde_json::from_str(value).unwrap_or_default());
            }
            fields.insert("to".to_owned(), value.into());
        }
        serde_json::from_value(fields.into()).map_err(|_| invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_waits_for_the_request_it_fits() {
        let faults = Faults::new();
        faults.next(1, Step::Data, Fault::Cut { at: 100 });
        faults.next(1, Step::Data, Fault::Flip { at: 1000 });
        assert_eq!(faults.of(Step::Head, 0, 4000), None);
        assert_eq!(faults.of(Step::Data, 0, 100), None);
        assert_eq!(faults.of(Step::Data, 901, 100), Some(Fault::Flip { at: 1000 }));
        assert_eq!(faults.of(Step::Data, 901, 101), Some(Fault::Cut { at: 100 }));
        assert_eq!(faults.of(Step::Data, 901, 101), None);
    }

    #[test]
    fn faults_are_written_as_a_step_a_word_and_a_value() {
        let order = |step, fault| Ok(Ordered { step, fault, next: None });
        assert_eq!("data:cut=7".parse(), order(Step::Data, Fault::Cut { at: 7 }));
        assert_eq!("manifest:status=404".parse(), order(Step::Manifest, Fault::Status { status: 404 }));
        assert_eq!("locate:nowhere".parse(), order(Step::Locate, Fault::Nowhere));
        let to = "http://[::1]:1/x".to_owned();
        assert_eq!("locate:redirect=http://[::1]:1/x".parse(), order(Step::Locate, Fault::Redirect { to }));
        for wrong in ["", "cut=7", "data:cut", "data:cut=x", "data:cut=-1", "lunch:hang"] {
            assert!(wrong.parse::<Ordered>().is_err(), "{wrong}");
        }
        let order: Ordered =
            serde_json::from_str(r#"{"at_step":"head","fault":"announce","size":9,"next":2}"#).unwrap();
        assert_eq!(order, Ordered { step: Step::Head, fault: Fault::Announce { size: 9 }, next: Some(2) });
    }
}
