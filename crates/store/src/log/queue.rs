//! The queue between handles and writer. Unlike a channel it wakes the writer once for as many items as it waits for, and
//! not for each: of many clients that come back together all but the last cost no more than a lock.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::{Duration, Instant},
};

struct Queue<T> {
    state: Mutex<State<T>>,
    /// There are as many as are wanted, or an end is gone.
    ready: Condvar,
}

/// Bounded by who puts something in: each item holds its share of the room for all.
struct State<T> {
    items: Vec<T>,
    wanted: usize,
    /// Neither end is gone.
    joined: bool,
}

/// Dropping it ends the queue once it is empty.
pub(super) struct Sender<T>(Arc<Queue<T>>);

/// Dropping it drops what is in the queue.
pub(super) struct Receiver<T>(Arc<Queue<T>>);

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    Enough,
    /// The time was up.
    Fewer,
    /// As many as wanted will never come.
    Ended,
}

pub(super) fn queue<T>() -> (Sender<T>, Receiver<T>) {
    let state = Mutex::new(State { items: Vec::new(), wanted: 1, joined: true });
    let queue = Arc::new(Queue { state, ready: Condvar::new() });
    (Sender(queue.clone()), Receiver(queue))
}

impl<T> Queue<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no holder panics")
    }
}

impl<T> Sender<T> {
    /// Gives the item back if nobody will ever take it.
    pub(super) fn send(&self, item: T) -> Result<(), T> {
        let mut state = self.0.state();
        if !state.joined {
            return Err(item);
        }
        state.items.push(item);
        if state.items.len() == state.wanted {
            drop(state);
            self.0.ready.notify_one();
        }
        Ok(())
    }
}

impl<T> Receiver<T> {
    pub(super) fn len(&self) -> usize {
        self.0.state().items.len()
    }

    /// Waits until `wanted` items are there, which is at least one; for ever without a limit.
    pub(super) fn wait_for(&self, wanted: usize, limit: Option<Duration>) -> Waited {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut state = self.0.state();
        state.wanted = wanted;
        loop {
            if state.items.len() >= wanted {
                return Waited::Enough;
            }
            if !state.joined {
                return Waited::Ended;
            }
            state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return Waited::Fewer,
                Some(left) => self.0.ready.wait_timeout(state, left).expect("no holder panics").0,
                None => self.0.ready.wait(state).expect("no holder panics"),
            };
        }
    }

    /// The oldest items, in order.
    pub(super) fn take(&self, max: usize) -> Vec<T> {
        let mut state = self.0.state();
        let taken = max.min(state.items.len());
        let rest = state.items.split_off(taken);
        std::mem::replace(&mut state.items, rest)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.state().joined = false;
        self.0.ready.notify_one();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.state();
            state.joined = false;
            std::mem::take(&mut state.items)
        };
        // Outside the lock: an item's end may lead back here.
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(60));

    #[test]
    fn items_come_out_in_order_and_no_more_than_asked_for() {
        let (sender, receiver) = queue();
        (0..5).for_each(|item| sender.send(item).unwrap());
        assert_eq!(receiver.wait_for(5, LONG), Waited::Enough);
        assert_eq!(receiver.take(3), [0, 1, 2]);
        assert_eq!((receiver.len(), receiver.take(3)), (2, vec![3, 4]));
    }

    #[test]
    fn a_wait_ends_with_enough_items_or_with_its_time() {
        let (sender, receiver) = queue();
        sender.send(0).unwrap();
        assert_eq!(receiver.wait_for(2, Some(Duration::from_millis(1))), Waited::Fewer);
        std::thread::scope(|scope| {
            scope.spawn(|| (1..100).for_each(|item| sender.send(item).unwrap()));
            assert_eq!(receiver.wait_for(100, LONG), Waited::Enough);
        });
        assert_eq!(receiver.take(usize::MAX), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn what_was_sent_before_the_sender_went_is_still_taken() {
        let (sender, receiver) = queue();
        sender.send(1).unwrap();
        drop(sender);
        assert_eq!(receiver.wait_for(1, None), Waited::Enough);
        assert_eq!(receiver.wait_for(2, None), Waited::Ended);
        assert_eq!(receiver.take(9), [1]);
        assert_eq!(receiver.wait_for(1, None), Waited::Ended);
    }

    #[test]
    fn a_sender_going_ends_a_wait() {
        let (sender, receiver) = queue::<()>();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(sender));
            assert_eq!(receiver.wait_for(1, None), Waited::Ended);
        });
    }

    #[test]
    fn without_a_receiver_items_are_given_back_and_those_inside_dropped() {
        let (sender, receiver) = queue();
        let inside = Arc::new(());
        sender.send(inside.clone()).unwrap();
        drop(receiver);
        assert_eq!(Arc::strong_count(&inside), 1);
        assert!(sender.send(inside).is_err());
    }
}
