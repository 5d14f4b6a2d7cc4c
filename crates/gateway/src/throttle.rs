//! How often a source may be wrong about a key. Pure: it is told the time.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(60);
const WRONG_MAX: u32 = 10;

/// At the limit the source whose window began first is forgotten: to be forgotten early, someone must be wrong from
/// more addresses than this within a minute.
const SOURCES_MAX: usize = 4_096;

#[derive(Debug, Default)]
pub(crate) struct Throttle(HashMap<IpAddr, Window>);

#[derive(Debug)]
struct Window {
    began: Instant,
    wrong: u32,
}

impl Throttle {
    /// How long the source must wait before a key of it is looked at again.
    pub(crate) fn wait(&self, source: IpAddr, now: Instant) -> Option<Duration> {
        let window = self.0.get(&household(source))?;
        let left = WINDOW.saturating_sub(now.saturating_duration_since(window.began));
        (window.wrong >= WRONG_MAX && !left.is_zero()).then_some(left)
    }

    pub(crate) fn wrong(&mut self, source: IpAddr, now: Instant) {
        let source = household(source);
        if !self.0.contains_key(&source) && self.0.len() >= SOURCES_MAX {
            self.0.retain(|_, window| now.saturating_duration_since(window.began) < WINDOW);
            if self.0.len() >= SOURCES_MAX
                && let Some(oldest) = self.0.iter().min_by_key(|(_, window)| window.began).map(|(source, _)| *source)
            {
                self.0.remove(&oldest);
            }
        }
        let window = self.0.entry(source).or_insert(Window { began: now, wrong: 0 });
        if now.saturating_duration_since(window.began) >= WINDOW {
            *window = Window { began: now, wrong: 0 };
        }
        window.wrong = window.wrong.saturating_add(1);
    }
}

/// Whoever has one IPv6 address has the 2^64 beside it.
fn household(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eleventh_wrong_key_of_a_minute_is_not_looked_at() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let source = "192.0.2.1".parse().unwrap();
        for second in 0..10 {
            let now = start + Duration::from_secs(second);
            assert_eq!(throttle.wait(source, now), None);
            throttle.wrong(source, now);
        }
        let now = start + Duration::from_secs(20);
        assert_eq!(throttle.wait(source, now), Some(Duration::from_secs(40)));
        assert_eq!(throttle.wait("192.0.2.2".parse().unwrap(), now), None);
        assert_eq!(throttle.wait(source, start + WINDOW), None);
        throttle.wrong(source, start + WINDOW);
        assert_eq!(throttle.wait(source, start + WINDOW), None);
    }

    #[test]
    fn neighbours_of_one_ipv6_network_are_one_source() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for host in 0..10 {
            throttle.wrong(format!("2001:db8::{host}").parse().unwrap(), now);
        }
        assert!(throttle.wait("2001:db8::ffff".parse().unwrap(), now).is_some());
        assert!(throttle.wait("2001:db8:0:1::1".parse().unwrap(), now).is_none());
    }

    #[test]
    fn the_table_stays_bounded_and_forgets_the_oldest() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        let source = |number: usize| IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
        for number in 0..SOURCES_MAX * 2 {
            throttle.wrong(source(number), start + Duration::from_micros(number as u64));
        }
        assert_eq!(throttle.0.len(), SOURCES_MAX);
        assert!(!throttle.0.contains_key(&source(0)));
        assert!(throttle.0.contains_key(&source(SOURCES_MAX * 2 - 1)));
    }
}
