//! The JSON of the admin API: what is asked and what is answered, as types.
//!
//! The server writes these and the command line reads them; there is no other description of the API, and the OpenAPI
//! document is made from them. A field may be added; none is renamed or given another meaning under the same `/v1`.

mod event;
mod inference;
mod models;
mod registry;
mod status;

use std::fmt;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use types::UnixMillis;

pub use event::Event;
pub use inference::{Last, Load, LoadedBackend, LoadedModel, Phases, Queue, Step, Trace, What};
pub use models::{
    CollectGarbage, Collected, CopyModel, Holder, ImportModel, Meant, Model, ModelLayer, ModelNamed, ModelShown,
    NameModel, PinModel, PlaceModel, RollBackModel, Rule, Transfer, TransferSource, VerifyModel, WorkLine,
};
pub use registry::{
    Change, ChangeLabels, CreateKey, CreateToken, Done, EnrollBackend, EnrolledBackend, Key, NewKey, NewToken,
    RollBack, SetValue, Setting, Standing, Token,
};
pub use status::{Backend, Leader, Link, Member, Node, Part, Readiness, State, Status, Stranger};

/// A time for people, in RFC 3339 with milliseconds: `2026-11-20T15:30:00.000Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub UnixMillis);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0.0).unwrap_or(i64::MAX);
        // A clock beyond the year 9999 is as good as the end of it.
        let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{time:.3}")
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(D::Error::custom)?;
        let millis = u64::try_from(time.as_millisecond()).map_err(|_| D::Error::custom("a time before 1970"))?;
        Ok(Self(UnixMillis(millis)))
    }
}

impl JsonSchema for Time {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "date-time" })
    }
}

/// How fresh an answer must be. Without a word: as fresh as anything acknowledged anywhere before the question.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Freshness {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Wait until this node has the registry up to this index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Includes every write that was acknowledged before, anywhere.
    Linearizable,
    /// What this node has, without asking anyone.
    Local,
}

/// For a route that takes nothing: whatever is sent along is a mistake of the caller's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// What every answer that is no success says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failed {
    pub error: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// For programs; stays the same where the message changes.
    pub code: String,
    /// For people: what happened.
    pub message: String,
    /// For people: what to do next.
    pub hint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_what_it_writes() {
        let time = Time(UnixMillis(1_795_188_600_007));
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2026-11-20T15:30:00.007Z\"");
        assert_eq!(serde_json::from_str::<Time>("\"2026-11-20T15:30:00.007Z\"").unwrap(), time);
        assert!(Time(UnixMillis(u64::MAX)).to_string().starts_with("9999-12-3"));
        assert!(serde_json::from_str::<Time>("\"yesterday\"").is_err());
        assert!(serde_json::from_str::<Time>("\"1969-12-31T00:00:00Z\"").is_err());
    }
}
