//! Who is connected, and who gives way when there are too many. Pure: it knows connections by a key and holds, without
//! using it, what ends them.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use crate::pace::Pace;

/// The connections of one listener.
#[derive(Debug)]
pub(crate) struct Crowd<K, H> {
    guests: HashMap<K, Guest<H>>,
    total_max: usize,
    per_ip_max: usize,
}

#[derive(Debug)]
struct Guest<H> {
    /// Nothing for those who come through the local socket.
    source: Option<IpAddr>,
    pace: Arc<Pace>,
    handle: H,
}

/// What a new connection meets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room<K> {
    Free,
    /// This one, which has asked for nothing for the longest time, must go first.
    InsteadOf(K),
    /// All are being served.
    None,
}

impl<K: Copy + Eq + Hash, H> Crowd<K, H> {
    pub(crate) fn new(total_max: usize, per_ip_max: usize) -> Self {
        Self { guests: HashMap::new(), total_max, per_ip_max }
    }

    /// Slow sockets cannot keep others out: at a limit it is they who give way, to others or to their own kind.
    pub(crate) fn room(&self, source: Option<IpAddr>) -> Room<K> {
        let same = |guest: &&Guest<H>| source.is_some() && guest.source == source;
        if self.guests.values().filter(same).count() >= self.per_ip_max {
            return self.longest_waiting(|guest| same(&guest));
        }
        if self.guests.len() >= self.total_max {
            return self.longest_waiting(|_| true);
        }
        Room::Free
    }

    fn longest_waiting(&self, among: impl Fn(&Guest<H>) -> bool) -> Room<K> {
        let candidates = self.guests.iter().filter(|(_, guest)| among(guest));
        let waiting = candidates.filter_map(|(key, guest)| Some((guest.pace.waiting_since()?, *key)));
        waiting.min_by_key(|(since, _)| *since).map_or(Room::None, |(_, key)| Room::InsteadOf(key))
    }

    pub(crate) fn enter(&mut self, key: K, source: Option<IpAddr>, pace: Arc<Pace>, handle: H) {
        self.guests.insert(key, Guest { source, pace, handle });
    }

    pub(crate) fn leave(&mut self, key: K) -> Option<H> {
        self.guests.remove(&key).map(|guest| guest.handle)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;

    fn source(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    #[test]
    fn at_the_limit_the_one_that_has_asked_for_nothing_longest_gives_way() {
        let (mut crowd, start) = (Crowd::new(3, 3), Instant::now());
        let paces: Vec<_> = (0..3).map(|n| Arc::new(Pace::new(start + Duration::from_secs(n)))).collect();
        for (key, pace) in paces.iter().enumerate() {
            assert_eq!(crowd.room(source(1)), Room::Free);
            crowd.enter(key, source(1), pace.clone(), ());
        }
        paces[0].asked();
        assert_eq!(crowd.room(source(2)), Room::InsteadOf(1));
        paces[1].asked();
        paces[2].asked();
        assert_eq!(crowd.room(source(2)), Room::None);
        assert_eq!(crowd.leave(0), Some(()));
        assert_eq!(crowd.room(source(2)), Room::Free);
    }

    #[test]
    fn one_source_at_its_limit_takes_nothing_from_another() {
        let (mut crowd, start) = (Crowd::new(100, 2), Instant::now());
        crowd.enter(0, source(9), Arc::new(Pace::new(start)), ());
        for key in 1..3 {
            crowd.enter(key, source(1), Arc::new(Pace::new(start + Duration::from_secs(key))), ());
        }
        assert_eq!(crowd.room(source(1)), Room::InsteadOf(1));
        assert_eq!(crowd.room(source(9)), Room::Free);
    }

    #[test]
    fn those_at_the_local_socket_are_limited_in_total_only() {
        let mut crowd = Crowd::new(3, 1);
        for key in 0..3 {
            assert_eq!(crowd.room(None), Room::Free);
            crowd.enter(key, None, Arc::new(Pace::new(Instant::now())), ());
        }
        assert!(matches!(crowd.room(None), Room::InsteadOf(_)));
    }
}
