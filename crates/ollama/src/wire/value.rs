//! Values with more than one spelling.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// How long a model stays after its last request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// Any negative number or duration.
    Forever,
    For(Duration),
}

/// Whether a model that can is to think before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Think {
    Off,
    On,
    /// For models that know how hard to think; for others as good as `On`.
    At(Level),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Low,
    Medium,
    High,
    Max,
}

/// What an answer has to look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    Free,
    Json,
    Schema(Value),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid format: {0:?}; expected \"json\" or a valid JSON Schema object")]
pub struct InvalidFormat(String);

/// A moment, written as RFC 3339 in UTC with as many digits of a second as it has, up to nine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(jiff::Timestamp);

impl KeepAlive {
    fn from_seconds(seconds: f64) -> Self {
        if seconds < 0.0 {
            return Self::Forever;
        }
        // Also where it is too long for a duration, or no number.
        Duration::try_from_secs_f64(seconds).map_or(Self::Forever, Self::For)
    }

    /// Go's durations: signed decimal numbers, each with its unit, such as `1h30m` or `-1s`.
    fn parse(text: &str) -> Result<Self, String> {
        let invalid = || format!("time: invalid duration {text:?}");
        let (negative, digits) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if digits == "0" {
            return Ok(Self::For(Duration::ZERO));
        }
        if digits.is_empty() {
            return Err(invalid());
        }
        let mut seconds = 0.0;
        let mut rest = digits;
        while !rest.is_empty() {
            let is_number = |character: char| character.is_ascii_digit() || character == '.';
            let number_end = rest.find(|character| !is_number(character)).unwrap_or(rest.len());
            let (number, after) = rest.split_at(number_end);
            let number: f64 = number.parse().map_err(|_| invalid())?;
            let unit_end = after.find(is_number).unwrap_or(after.len());
            let (unit, after) = after.split_at(unit_end);
            seconds += number
                * match unit {
                    "ns" => 1e-9,
                    "us" | "µs" | "μs" => 1e-6,
                    "ms" => 1e-3,
                    "s" => 1.0,
                    "m" => 60.0,
                    "h" => 3600.0,
                    "" => return Err(format!("time: missing unit in duration {text:?}")),
                    unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
                };
            rest = after;
        }
        Ok(if negative && seconds > 0.0 { Self::Forever } else { Self::from_seconds(seconds) })
    }
}

impl<'de> Deserialize<'de> for KeepAlive {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Value::deserialize(from)? {
            Value::Number(number) => Ok(Self::from_seconds(number.as_f64().unwrap_or(f64::INFINITY))),
            Value::String(text) => Self::parse(&text).map_err(D::Error::custom),
            _ => Err(D::Error::custom("keep_alive must be a number of seconds or a duration string")),
        }
    }
}

impl Think {
    pub const fn is_on(self) -> bool {
        !matches!(self, Self::Off)
    }
}

impl<'de> Deserialize<'de> for Think {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ThinkVisitor)
    }
}

struct ThinkVisitor;

impl<'de> Visitor<'de> for ThinkVisitor {
    type Value = Think;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"think to be a boolean or string ("high", "medium", "low", "max", true, or false)"#)
    }

    fn visit_bool<E>(self, on: bool) -> Result<Think, E> {
        Ok(if on { Think::On } else { Think::Off })
    }

    fn visit_str<E: serde::de::Error>(self, level: &str) -> Result<Think, E> {
        Ok(Think::At(match level {
            "low" => Level::Low,
            "medium" => Level::Medium,
            "high" => Level::High,
            "max" => Level::Max,
            level => {
                let known = r#"must be "high", "medium", "low", "max", true, or false"#;
                return Err(E::custom(format_args!("invalid think value: {level:?} ({known})")));
            }
        }))
    }
}

impl Level {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Max => "max",
        }
    }
}

impl Format {
    /// Nothing, `null` and `""` ask for nothing.
    pub fn read(value: Option<Value>) -> Result<Self, InvalidFormat> {
        match value {
            None | Some(Value::Null) => Ok(Self::Free),
            Some(Value::String(text)) if text.is_empty() => Ok(Self::Free),
            Some(Value::String(text)) if text == "json" => Ok(Self::Json),
            Some(schema @ Value::Object(_)) => Ok(Self::Schema(schema)),
            Some(other) => Err(InvalidFormat(other.to_string())),
        }
    }
}

impl Time {
    pub fn now() -> Self {
        Self(jiff::Timestamp::now())
    }

    /// The last moment there is, where a moment lies beyond it.
    pub fn of(moment: SystemTime) -> Self {
        Self(jiff::Timestamp::try_from(moment).unwrap_or(jiff::Timestamp::MAX))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Durations are whole nanoseconds. For `#[serde(serialize_with)]`.
pub(super) fn nanoseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep_alive(json: &str) -> Result<KeepAlive, String> {
        serde_json::from_str(json).map_err(|error: serde_json::Error| error.to_string())
    }

    #[test]
    fn keep_alive_takes_seconds_and_go_s_durations() {
        for (json, millis) in [
            ("0", 0),
            ("300", 300_000),
            ("0.5", 500),
            (r#""0""#, 0),
            (r#""5m""#, 300_000),
            (r#""1h30m""#, 5_400_000),
            (r#""1.5s""#, 1_500),
            (r#""250ms""#, 250),
            (r#""+1s""#, 1_000),
            (r#""0s""#, 0),
            (r#""-0s""#, 0),
        ] {
            assert_eq!(keep_alive(json), Ok(KeepAlive::For(Duration::from_millis(millis))), "{json}");
        }
        for json in ["-1", "-0.5", r#""-1s""#, r#""-1h""#, "1e300", r#""99999999999999999999h""#] {
            assert_eq!(keep_alive(json), Ok(KeepAlive::Forever), "{json}");
        }
        for (json, words) in [
            (r#""""#, r#"time: invalid duration """#),
            (r#""soon""#, r#"time: invalid duration "soon""#),
            (r#""-""#, r#"time: invalid duration "-""#),
            (r#""5""#, r#"time: missing unit in duration "5""#),
            (r#""5x""#, r#"time: unknown unit "x" in duration "5x""#),
            (r#""1.2.3s""#, r#"time: invalid duration "1.2.3s""#),
            ("true", "keep_alive must be"),
            ("[]", "keep_alive must be"),
        ] {
            let error = keep_alive(json).unwrap_err();
            assert!(error.starts_with(words), "{json}: {error}");
        }
    }

    #[test]
    fn think_is_a_boolean_or_a_level() {
        let think = |json: &str| serde_json::from_str::<Think>(json).map_err(|error| error.to_string());
        assert_eq!(think("true"), Ok(Think::On));
        assert_eq!(think("false"), Ok(Think::Off));
        for level in [Level::Low, Level::Medium, Level::High, Level::Max] {
            assert_eq!(think(&format!("{:?}", level.as_str())), Ok(Think::At(level)));
        }
        let words = r#"invalid think value: "hard" (must be "high", "medium", "low", "max", true, or false)"#;
        assert!(think(r#""hard""#).unwrap_err().starts_with(words));
        assert!(think("7").is_err());
        assert!(Think::At(Level::Low).is_on() && !Think::Off.is_on());
    }

    #[test]
    fn a_format_is_json_or_a_schema() {
        let read = |json: &str| Format::read(Some(serde_json::from_str(json).unwrap()));
        assert_eq!(
            (Format::read(None), read("null"), read(r#""""#)),
            (Ok(Format::Free), Ok(Format::Free), Ok(Format::Free))
        );
        assert_eq!(read(r#""json""#), Ok(Format::Json));
        assert!(matches!(read(r#"{"type":"object"}"#), Ok(Format::Schema(_))));
        let words = r#"invalid format: "\"xml\""; expected "json" or a valid JSON Schema object"#;
        assert_eq!(read(r#""xml""#).unwrap_err().to_string(), words);
        assert!(read("7").is_err() && read("[]").is_err());
    }

    #[test]
    fn times_are_rfc_3339_with_nanoseconds() {
        let moment = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        assert_eq!(serde_json::to_string(&Time::of(moment)).unwrap(), r#""2023-11-14T22:13:20.123456789Z""#);
        let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(serde_json::to_string(&Time::of(whole)).unwrap(), r#""2023-11-14T22:13:20Z""#);
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert!(serde_json::to_string(&Time::of(far)).unwrap().starts_with(r#""9999-"#));
    }
}
