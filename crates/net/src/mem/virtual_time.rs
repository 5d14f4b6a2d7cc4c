//! The least executor that shows the fabric needs no runtime: one thread, first come first served, and a clock that jumps
//! to the next timer when nobody can go on.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::future::{BoxFuture, LocalBoxFuture};

use crate::clock::Clock;

#[derive(Clone, Default)]
pub(super) struct VirtualTime(Arc<Mutex<Timers>>);

#[derive(Default)]
struct Timers {
    now: Duration,
    /// Due time and order of asking; the waker of whoever asked.
    waiting: BTreeMap<(Duration, u64), Option<Waker>>,
    asked: u64,
}

type Ready = Arc<Mutex<VecDeque<usize>>>;

struct TaskWaker {
    task: usize,
    ready: Ready,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap();
        if !ready.contains(&self.task) {
            ready.push_back(self.task);
        }
    }
}

/// Tasks beside the main one.
#[derive(Clone, Default)]
pub(super) struct Spawner(Rc<RefCell<Vec<LocalBoxFuture<'static, ()>>>>);

impl Spawner {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.borrow_mut().push(Box::pin(task));
    }
}

impl VirtualTime {
    pub(super) fn clock(&self) -> Clock {
        let (timers, same) = (self.0.clone(), self.0.clone());
        Clock::new(move |time| sleep(timers.clone(), time), move || same.lock().unwrap().now)
    }

    /// Runs until the main future ends. Panics where nobody can go on any more.
    pub(super) fn run<T: 'static>(&self, spawner: &Spawner, main: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        let ready = Ready::default();
        let mut tasks: Vec<Option<LocalBoxFuture<'static, ()>>> = Vec::new();
        spawner.spawn(async move {
            let done = main.await;
            *slot.borrow_mut() = Some(done);
        });
        loop {
            for task in spawner.0.borrow_mut().drain(..) {
                ready.lock().unwrap().push_back(tasks.len());
                tasks.push(Some(task));
            }
            let next = ready.lock().unwrap().pop_front();
            match next {
                Some(task) => {
                    let waker = Waker::from(Arc::new(TaskWaker { task, ready: ready.clone() }));
                    let polled =
                        tasks[task].as_mut().map(|future| future.as_mut().poll(&mut Context::from_waker(&waker)));
                    if polled == Some(Poll::Ready(())) {
                        tasks[task] = None;
                    }
                }
                None => self.jump(),
            }
            if let Some(done) = result.borrow_mut().take() {
                return done;
            }
        }
    }

    fn jump(&self) {
        let mut timers = self.0.lock().unwrap();
        let ((due, _), waker) = timers.waiting.pop_first().expect("nobody can go on and nobody waits for a timer");
        timers.now = timers.now.max(due);
        drop(timers);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn sleep(timers: Arc<Mutex<Timers>>, time: Duration) -> BoxFuture<'static, ()> {
    struct Sleep {
        timers: Arc<Mutex<Timers>>,
        key: (Duration, u64),
    }
    impl Future for Sleep {
        type Output = ();
        fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            let mut timers = self.timers.lock().unwrap();
            if timers.now >= self.key.0 {
                return Poll::Ready(());
            }
            timers.waiting.insert(self.key, Some(cx.waker().clone()));
            Poll::Pending
        }
    }
    impl Drop for Sleep {
        fn drop(&mut self) {
            self.timers.lock().unwrap().waiting.remove(&self.key);
        }
    }
    let mut locked = timers.lock().unwrap();
    locked.asked += 1;
    let key = (locked.now.saturating_add(time), locked.asked);
    drop(locked);
    Box::pin(Sleep { timers, key })
}
