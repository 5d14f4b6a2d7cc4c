//! Moments, and spans as numbers that can be compared without fear.

use std::fmt;
use std::ops::{Add, Mul};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment on the clock of whoever calls: the time since a start of the caller's choice. It means nothing elsewhere,
/// so it is never sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(Duration);

impl Moment {
    pub const fn since_start(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// Nothing, where `earlier` is the later one.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The time from the caller's start.
    pub const fn elapsed(self) -> Duration {
        self.0
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

/// An estimated span: finite, not negative, at most [`Seconds::MAX`]. Whatever else arrives, from a peer or from a division
/// by a rate nobody has measured, becomes one of the ends; not-a-number becomes the worst.
#[derive(Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "f32", into = "f32")]
pub struct Seconds(f32);

impl Seconds {
    pub const ZERO: Self = Self(0.0);
    /// Eleven days: longer than anything that is worth comparing.
    pub const MAX: Self = Self(1e6);

    pub const fn new(seconds: f32) -> Self {
        if seconds.is_nan() { Self::MAX } else { Self(seconds.clamp(0.0, Self::MAX.0)) }
    }

    pub const fn get(self) -> f32 {
        self.0
    }

    pub fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0))
    }

    pub fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// How much more this is than `other`, or nothing.
    pub fn over(self, other: Self) -> Self {
        Self::new(self.0 - other.0)
    }
}

// None of them is not-a-number, so the order is total; `-0.0` cannot be told from `0.0` by either.
impl Eq for Seconds {}

impl Ord for Seconds {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.partial_cmp(&other.0).expect("both are numbers")
    }
}

impl PartialOrd for Seconds {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl From<f32> for Seconds {
    fn from(seconds: f32) -> Self {
        Self::new(seconds)
    }
}

impl From<Seconds> for f32 {
    fn from(seconds: Seconds) -> Self {
        seconds.0
    }
}

impl From<Duration> for Seconds {
    fn from(span: Duration) -> Self {
        Self::new(span.as_secs_f32())
    }
}

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Self {
        Self::from_secs_f32(seconds.0)
    }
}

impl Add for Seconds {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self::new(self.0 + other.0)
    }
}

impl Mul<f32> for Seconds {
    type Output = Self;

    fn mul(self, factor: f32) -> Self {
        Self::new(self.0 * factor)
    }
}

impl std::iter::Sum for Seconds {
    fn sum<I: Iterator<Item = Self>>(spans: I) -> Self {
        spans.fold(Self::ZERO, Add::add)
    }
}

impl fmt::Debug for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}s", self.0)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_always_a_number_that_can_be_compared() {
        for (given, kept) in [(f32::NAN, 1e6), (f32::INFINITY, 1e6), (-3.0, 0.0), (f32::NEG_INFINITY, 0.0), (1.5, 1.5)]
        {
            assert_eq!(Seconds::new(given).get(), kept, "{given}");
        }
        assert_eq!(Seconds::MAX + Seconds::MAX, Seconds::MAX);
        assert_eq!(Seconds::MAX * f32::INFINITY, Seconds::MAX);
        assert_eq!(Seconds::ZERO * f32::INFINITY, Seconds::MAX);
        assert_eq!(Seconds::new(1.0).over(Seconds::new(2.0)), Seconds::ZERO);
    }

    #[test]
    fn what_a_peer_sends_is_a_span_too() {
        for (sent, heard) in [(f32::NAN, Seconds::MAX), (f32::INFINITY, Seconds::MAX), (-1.0, Seconds::ZERO)] {
            let bytes = codec::to_bytes(&sent).unwrap();
            assert_eq!(codec::from_bytes::<Seconds>(&bytes).unwrap(), heard);
        }
    }
}
