//! How badly a member behaves. Pure: the time comes with every call.
//!
//! Points are for broken rules only. A peer that does not answer in time is slow, frozen or cut off; were that a breach,
//! a healed partition would be followed by everybody shunning everybody. Such failures show in the peer's last error.

use std::collections::BTreeMap;
use std::time::Duration;

use types::NodeId;

/// A rule broken by an authenticated member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offence {
    /// Bytes that are no frame of ours.
    Malformed,
    /// A message larger than its protocol allows.
    Oversize,
    /// A protocol or topic its role must not use.
    Forbidden,
    /// Gossip on a topic that does not exist, or that the topic's owner rejects.
    BadGossip,
    /// It opened a connection or stream and then did not say what for.
    Silent,
}

impl Offence {
    const fn points(self) -> f64 {
        match self {
            Self::Malformed | Self::Oversize | Self::Forbidden => 20.0,
            Self::BadGossip => 10.0,
            // May also be bad luck: a link that broke at the wrong moment.
            Self::Silent => 2.0,
        }
    }
}

/// Points at which a peer is cut off.
const LIMIT: f64 = 100.0;
/// Points count half after this time.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// How long a peer is cut off. Then it starts anew.
const CUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
enum Standing {
    Good { points: f64, at: Duration },
    Cut { until: Duration },
}

/// The standing of the peers that broke a rule lately. Bounded by the number of members: `retain` drops the others, and
/// only members can gain points.
#[derive(Debug, Default)]
pub(crate) struct Scores(BTreeMap<NodeId, Standing>);

impl Scores {
    /// Returns whether the peer is to be cut off now.
    pub(crate) fn add(&mut self, peer: NodeId, offence: Offence, now: Duration) -> bool {
        if self.is_cut(&peer, now) {
            return false;
        }
        let points = self.points(&peer, now) + offence.points();
        let cut = points >= LIMIT;
        let standing =
            if cut { Standing::Cut { until: now.saturating_add(CUT) } } else { Standing::Good { points, at: now } };
        self.0.insert(peer, standing);
        cut
    }

    /// 0 for a peer without fault, rising to 100 for one that is cut off.
    pub(crate) fn points(&self, peer: &NodeId, now: Duration) -> f64 {
        match self.0.get(peer) {
            Some(Standing::Good { points, at }) => {
                points * 0.5f64.powf(now.saturating_sub(*at).as_secs_f64() / HALF_LIFE.as_secs_f64())
            }
            Some(Standing::Cut { until }) if now < *until => LIMIT,
            Some(Standing::Cut { .. }) | None => 0.0,
        }
    }

    pub(crate) fn is_cut(&self, peer: &NodeId, now: Duration) -> bool {
        matches!(self.0.get(peer), Some(Standing::Cut { until }) if now < *until)
    }

    /// When the next peer that is cut off now comes back.
    pub(crate) fn next_return(&self, now: Duration) -> Option<Duration> {
        let until = |standing: &Standing| match standing {
            Standing::Cut { until } if now < *until => Some(*until),
            _ => None,
        };
        self.0.values().filter_map(until).min()
    }

    pub(crate) fn retain(&mut self, is_member: impl Fn(&NodeId) -> bool) {
        self.0.retain(|peer, _| is_member(peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::from_public_key([1; 32]);

    #[test]
    fn a_peer_that_keeps_breaking_rules_is_cut_off_and_comes_back_clean() {
        let mut scores = Scores::default();
        let start = Duration::from_secs(5);
        let breaches = (1..).find(|_| scores.add(PEER, Offence::Oversize, start)).unwrap();
        assert_eq!(breaches, 5);
        assert!(scores.is_cut(&PEER, start));
        assert_eq!(scores.next_return(start), Some(start + CUT));
        assert!(!scores.add(PEER, Offence::Oversize, start), "cut off once, not again and again");
        assert!(!scores.is_cut(&PEER, start + CUT));
        assert_eq!(scores.points(&PEER, start + CUT), 0.0);
        assert_eq!(scores.next_return(start + CUT), None);
    }

    #[test]
    fn a_rare_breach_is_forgiven() {
        let mut scores = Scores::default();
        for hour in 0..100 {
            assert!(!scores.add(PEER, Offence::Malformed, Duration::from_secs(hour * 3600)));
        }
        let now = Duration::from_secs(100 * 3600);
        assert!(scores.points(&PEER, now) < 0.1);
    }

    #[test]
    fn who_is_no_member_is_not_remembered() {
        let mut scores = Scores::default();
        scores.add(PEER, Offence::Silent, Duration::ZERO);
        scores.retain(|_| false);
        assert_eq!(scores.points(&PEER, Duration::ZERO), 0.0);
    }
}
