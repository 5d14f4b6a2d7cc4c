//! Who should vote: a pure decision, and the leader's loop that carries it out.

pub(crate) mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use types::RaftId;

/// What the leader knows of one member that may vote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) up: bool,
    /// For how long it has been up, or down.
    pub(crate) since: Duration,
    /// Its people are taking it out of service, or it is going down by itself.
    pub(crate) leaving: bool,
    /// Its people are taking it out of service: it is not among those the number of voters is made for.
    pub(crate) drained: bool,
    pub(crate) zone: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Situation {
    pub(crate) me: RaftId,
    /// Members whose role lets them vote.
    pub(crate) members: BTreeMap<RaftId, Standing>,
    pub(crate) voters: BTreeSet<RaftId>,
    pub(crate) learners: BTreeSet<RaftId>,
    /// Learners that have (nearly) the whole log.
    pub(crate) caught_up: BTreeSet<RaftId>,
    /// A change of voters was left half-way by an earlier leader.
    pub(crate) joint: bool,
    pub(crate) voters_max: usize,
    pub(crate) replace_after: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send the log to these, so that they can vote later.
    Learn(BTreeSet<RaftId>),
    /// These vote from now on, and nobody else.
    Seat(BTreeSet<RaftId>),
    /// Stop sending the log to these.
    Forget(BTreeSet<RaftId>),
    /// Let another lead, since this node is leaving.
    HandOver(RaftId),
}

/// How many vote among so many: an odd number, with members to spare from the second step on, so that a mesh of three
/// or four does not lose its quorum with every sleeping laptop it could have done without.
fn seats_for(members: usize, most: usize) -> usize {
    let wanted = match members {
        0..=2 => 1,
        3..=6 => 3,
        7..=8 => 5,
        _ => 7,
    };
    wanted.min(most)
}

impl Situation {
    /// The next step towards the right voters, or nothing. One step at a time: the next one is decided on what this
    /// one led to.
    pub(crate) fn decide(&self) -> Option<Step> {
        if self.joint {
            return Some(Step::Seat(self.voters.clone()));
        }
        let wanted = self.wanted();
        let coming: BTreeSet<_> = wanted.difference(&self.voters).copied().collect();
        if let Some(heir) = self.heir(&wanted) {
            return Some(Step::HandOver(heir));
        }
        let unknown: BTreeSet<_> = coming.difference(&self.learners).copied().collect();
        if !unknown.is_empty() {
            return Some(Step::Learn(unknown));
        }
        if wanted != self.voters && coming.is_subset(&self.caught_up) {
            return Some(Step::Seat(wanted));
        }
        let idle: BTreeSet<_> = self.learners.difference(&wanted).copied().collect();
        (!idle.is_empty()).then_some(Step::Forget(idle))
    }

    /// Who should vote in the end. Voters stay unless there is a reason: every change costs a round of the whole group.
    fn wanted(&self) -> BTreeSet<RaftId> {
        let serving = self.members.values().filter(|standing| !standing.drained).count();
        let size = seats_for(serving, self.voters_max);
        let mut wanted: BTreeSet<_> = self.voters.iter().copied().filter(|id| self.keeps_seat(*id)).collect();
        while wanted.len() > size {
            let Some(worst) = self.worst(&wanted) else { break };
            wanted.remove(&worst);
        }
        while wanted.len() < size {
            let Some(best) = self.best(&wanted) else { break };
            wanted.insert(best);
        }
        // Who is down or leaving keeps its seat rather than leave a gap: fewer voters than wanted stand less.
        let mut absent: Vec<_> = self.voters.iter().filter(|id| self.members.contains_key(id)).copied().collect();
        absent.retain(|id| !wanted.contains(id) && !self.keeps_seat(*id));
        absent.sort_by_key(|id| self.members.get(id).map(|standing| standing.leaving));
        for id in absent {
            if wanted.len() >= size {
                break;
            }
            wanted.insert(id);
        }
        // An even group stands no more losses than the odd one below it, so growth waits for two.
        let growing = wanted.len() > self.voters.len();
        if growing && wanted.len() % 2 == 0 {
            let newest = wanted.iter().copied().rfind(|id| !self.voters.contains(id));
            newest.map(|id| wanted.remove(&id));
        }
        wanted
    }

    fn keeps_seat(&self, id: RaftId) -> bool {
        self.members.get(&id).is_some_and(|standing| {
            !standing.leaving && (standing.up || id == self.me || standing.since < self.replace_after)
        })
    }

    /// Of those who could take a seat: another zone first, then whoever has been up longest, then the older number.
    fn best(&self, wanted: &BTreeSet<RaftId>) -> Option<RaftId> {
        let free = |(id, standing): &(&RaftId, &Standing)| {
            !wanted.contains(id) && !standing.leaving && (standing.up || **id == self.me)
        };
        let neighbours = |zone: &Option<String>| match zone {
            None => 0,
            Some(_) => wanted.iter().filter(|id| self.members.get(id).is_some_and(|other| other.zone == *zone)).count(),
        };
        let rank = |(id, standing): &(&RaftId, &Standing)| {
            let voting = !self.voters.contains(id);
            (voting, neighbours(&standing.zone), !self.learners.contains(id), std::cmp::Reverse(standing.since), **id)
        };
        self.members.iter().filter(free).min_by_key(rank).map(|(id, _)| *id)
    }

    /// Of those who vote, whom to drop when there are too many: one that is down, else the newest; never the leader.
    fn worst(&self, wanted: &BTreeSet<RaftId>) -> Option<RaftId> {
        let up = |id: &RaftId| self.members.get(id).is_some_and(|standing| standing.up);
        wanted.iter().copied().filter(|id| *id != self.me).min_by_key(|id| (up(id), std::cmp::Reverse(*id)))
    }

    /// Who leads when this node must not any more.
    fn heir(&self, wanted: &BTreeSet<RaftId>) -> Option<RaftId> {
        let leaving = self.members.get(&self.me).is_none_or(|standing| standing.leaving) || !wanted.contains(&self.me);
        if !leaving {
            return None;
        }
        let fit = |id: &RaftId| {
            *id != self.me && self.members.get(id).is_some_and(|standing| standing.up && !standing.leaving)
        };
        self.voters.iter().copied().find(fit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(up: bool, seconds: u64) -> Standing {
        Standing { up, since: Duration::from_secs(seconds), leaving: false, drained: false, zone: None }
    }

    fn ids(ids: impl IntoIterator<Item = u64>) -> BTreeSet<RaftId> {
        ids.into_iter().map(RaftId).collect()
    }

    fn situation(members: u64, voters: impl IntoIterator<Item = u64>) -> Situation {
        Situation {
            me: RaftId(1),
            members: (1..=members).map(|id| (RaftId(id), standing(true, 100))).collect(),
            voters: ids(voters),
            learners: BTreeSet::new(),
            caught_up: BTreeSet::new(),
            joint: false,
            voters_max: 5,
            replace_after: Duration::from_secs(30),
        }
    }

    /// Carries out steps until there are none, as if every learner caught up at once.
    fn settle(mut situation: Situation) -> BTreeSet<RaftId> {
        for _ in 0..50 {
            match situation.decide() {
                None => return situation.voters,
                Some(Step::Learn(new)) => {
                    situation.learners.extend(&new);
                    situation.caught_up.extend(&new);
                }
                Some(Step::Seat(voters)) => {
                    situation.learners.retain(|id| !voters.contains(id));
                    situation.voters = voters;
                    situation.joint = false;
                }
                Some(Step::Forget(idle)) => situation.learners.retain(|id| !idle.contains(id)),
                Some(Step::HandOver(heir)) => situation.me = heir,
            }
        }
        panic!("does not settle: {situation:?}");
    }

    #[test]
    fn the_number_of_voters_follows_the_number_of_members() {
        for (members, voters) in [(1, 1), (2, 1), (3, 3), (6, 3), (7, 5), (12, 5), (50, 5)] {
            assert_eq!(settle(situation(members, [1])).len(), voters, "{members} members");
        }
        let mut seven = situation(12, [1]);
        seven.voters_max = 7;
        assert_eq!(settle(seven).len(), 7);
    }

    #[test]
    fn nobody_votes_before_it_has_the_log() {
        let mut situation = situation(3, [1]);
        assert_eq!(situation.decide(), Some(Step::Learn(ids([2, 3]))));
        situation.learners = ids([2, 3]);
        situation.caught_up = ids([2]);
        assert_eq!(situation.decide(), None);
        situation.caught_up = ids([2, 3]);
        assert_eq!(situation.decide(), Some(Step::Seat(ids([1, 2, 3]))));
    }

    #[test]
    fn a_voter_that_is_down_long_enough_loses_its_seat_to_one_that_is_up() {
        let mut situation = situation(4, [1, 2, 3]);
        situation.members.insert(RaftId(2), standing(false, 29));
        assert_eq!(situation.decide(), None);
        situation.members.insert(RaftId(2), standing(false, 31));
        assert_eq!(settle(situation), ids([1, 3, 4]));
    }

    #[test]
    fn a_voter_that_is_down_keeps_its_seat_where_nobody_can_take_it() {
        let mut situation = situation(3, [1, 2, 3]);
        situation.members.insert(RaftId(2), standing(false, 3_600));
        assert_eq!(situation.decide(), None);
    }

    #[test]
    fn a_removed_member_loses_its_seat_even_without_a_successor() {
        let mut situation = situation(3, [1, 2, 3]);
        situation.members.remove(&RaftId(2));
        assert_eq!(settle(situation), ids([1]));
    }

    #[test]
    fn a_leader_that_leaves_hands_over_before_it_gives_up_its_seat() {
        let mut situation = situation(4, [1, 2, 3]);
        situation.members.get_mut(&RaftId(1)).unwrap().leaving = true;
        assert_eq!(situation.decide(), Some(Step::HandOver(RaftId(2))));
        assert_eq!(settle(situation), ids([2, 3, 4]));
    }

    #[test]
    fn the_last_voter_keeps_its_seat_while_it_leaves_alone() {
        let mut situation = situation(1, [1]);
        situation.members.get_mut(&RaftId(1)).unwrap().leaving = true;
        assert_eq!(situation.decide(), None);
    }

    #[test]
    fn seats_are_spread_over_zones() {
        let mut situation = situation(5, [1]);
        for (id, zone) in [(1, "attic"), (2, "attic"), (3, "attic"), (4, "cellar"), (5, "shed")] {
            situation.members.get_mut(&RaftId(id)).unwrap().zone = Some(zone.to_owned());
        }
        assert_eq!(settle(situation), ids([1, 4, 5]));
    }

    #[test]
    fn a_change_left_half_way_is_finished_first() {
        let mut situation = situation(5, [1, 2, 3]);
        situation.joint = true;
        assert_eq!(situation.decide(), Some(Step::Seat(ids([1, 2, 3]))));
    }

    #[test]
    fn every_situation_settles_and_leaves_an_odd_group_or_the_one_there_was() {
        // All 4,096 ways in which six members are up or down, and all sets of voters among them.
        for up in 0..64_u64 {
            for voting in 1..64_u64 {
                let mut situation = situation(6, (1..=6).filter(|id| voting & (1 << (id - 1)) != 0));
                for id in 1..=6 {
                    situation.members.insert(RaftId(id), standing(up & (1 << (id - 1)) != 0, 100));
                }
                if !situation.voters.contains(&RaftId(1)) {
                    continue;
                }
                let before = situation.voters.clone();
                let after = settle(situation);
                assert!(after.contains(&RaftId(1)), "the leader stays: {up:b} {voting:b}");
                assert!(after.len() % 2 == 1 || after.len() <= before.len(), "{before:?} -> {after:?} {up:b}");
            }
        }
    }
}
