//! How many connections may knock at once, before it is known whose they are. Pure: the time comes with every call.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::admission::household;
use crate::config::Limits;

/// Addresses of strangers that are remembered. With more than these knocking, new ones are turned away.
const ADDRESSES_MAX: usize = 1024;

#[derive(Debug)]
pub(super) struct Gate {
    limits: Limits,
    members: usize,
    strangers: usize,
    visitors: BTreeMap<IpAddr, Visitor>,
}

/// A stranger's address. Each attempt costs its share of a minute; who has used up a whole minute in advance waits.
#[derive(Debug, Default)]
struct Visitor {
    knocking: usize,
    paid_until: Duration,
}

const MINUTE: Duration = Duration::from_secs(60);

/// A place at the gate, to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Member,
    Stranger(IpAddr),
}

impl Gate {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, members: 0, strangers: 0, visitors: BTreeMap::new() }
    }

    /// `None`: close the connection without a word.
    ///
    /// An address of a member has places of its own, which strangers elsewhere cannot use up.
    pub(super) fn enter(&mut self, ip: IpAddr, of_member: bool, now: Duration) -> Option<Place> {
        if of_member {
            let free = self.members < self.limits.handshakes_max;
            self.members += usize::from(free);
            return free.then_some(Place::Member);
        }
        if self.strangers >= self.limits.stranger_handshakes_max {
            return None;
        }
        let household = household(ip);
        self.make_room(&household, now)?;
        let visitor = self.visitors.entry(household).or_default();
        let price = MINUTE / self.limits.stranger_connections_per_minute.max(1);
        let paid_until = visitor.paid_until.max(now) + price;
        if paid_until > now + MINUTE || visitor.knocking >= self.limits.stranger_handshakes_per_address_max {
            return None;
        }
        visitor.paid_until = paid_until;
        visitor.knocking += 1;
        self.strangers += 1;
        Some(Place::Stranger(household))
    }

    pub(super) fn leave(&mut self, place: Place) {
        match place {
            Place::Member => self.members -= 1,
            Place::Stranger(household) => {
                self.strangers -= 1;
                if let Some(visitor) = self.visitors.get_mut(&household) {
                    visitor.knocking -= 1;
                }
            }
        }
    }

    /// Forgets those who owe nothing: a fresh entry would say the same of them.
    fn make_room(&mut self, household: &IpAddr, now: Duration) -> Option<()> {
        if self.visitors.len() < ADDRESSES_MAX || self.visitors.contains_key(household) {
            return Some(());
        }
        self.visitors.retain(|_, visitor| visitor.knocking > 0 || visitor.paid_until > now);
        (self.visitors.len() < ADDRESSES_MAX).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        handshake: Duration::from_secs(10),
        handshakes_max: 2,
        stranger_handshakes_max: 3,
        stranger_handshakes_per_address_max: 2,
        stranger_connections_per_minute: 6,
        mesh_connections_max: 1,
    };

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn strangers_cannot_use_up_the_places_of_members() {
        let mut gate = Gate::new(LIMITS);
        let now = Duration::ZERO;
        assert!(gate.enter(ip(1), false, now).is_some());
        let second = gate.enter(ip(1), false, now).unwrap();
        assert_eq!(gate.enter(ip(1), false, now), None, "one address has two places");
        assert!(gate.enter(ip(2), false, now).is_some());
        assert_eq!(gate.enter(ip(3), false, now), None, "all strangers have three");
        assert_eq!(gate.enter(ip(4), true, now), Some(Place::Member));
        assert_eq!(gate.enter(ip(4), true, now), Some(Place::Member));
        assert_eq!(gate.enter(ip(4), true, now), None);
        gate.leave(second);
        assert!(gate.enter(ip(3), false, now).is_some());
        gate.leave(Place::Member);
        assert_eq!(gate.enter(ip(4), true, now), Some(Place::Member));
    }

    #[test]
    fn an_address_that_keeps_coming_is_slowed_down() {
        let mut gate = Gate::new(LIMITS);
        let mut visit = |now| gate.enter(ip(1), false, Duration::from_secs(now)).map(|place| gate.leave(place));
        assert!((0..6).all(|_| visit(0).is_some()));
        assert!(visit(0).is_none() && visit(9).is_none());
        assert!(visit(10).is_some() && visit(10).is_none(), "one more every ten seconds");
        assert!((0..6).all(|_| visit(100).is_some()));
    }

    #[test]
    fn the_memory_of_addresses_is_bounded_and_forgets_the_harmless_first() {
        let mut gate = Gate::new(Limits { stranger_handshakes_max: usize::MAX, ..LIMITS });
        let address = |n: usize| IpAddr::from(u32::try_from(n).unwrap().to_be_bytes());
        for n in 0..ADDRESSES_MAX {
            let place = gate.enter(address(n), false, Duration::ZERO).unwrap();
            if n > 0 {
                gate.leave(place);
            }
        }
        assert_eq!(gate.enter(ip(1), false, Duration::ZERO), None);
        assert!(gate.enter(ip(1), false, Duration::from_secs(60)).is_some());
        assert_eq!(gate.visitors.len(), 2, "the one still knocking and the new one");
    }
}
