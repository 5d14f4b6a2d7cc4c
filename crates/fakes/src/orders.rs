//! What was ordered to go wrong, and for how many more.

use std::sync::{Mutex, MutexGuard};

/// Beyond it the oldest order is dropped.
const ORDERS_MAX: usize = 64;

/// The first that fits is taken. An order without a number holds until all are forgotten.
#[derive(Debug)]
pub(crate) struct Orders<T>(Mutex<Vec<Order<T>>>);

#[derive(Debug)]
struct Order<T> {
    what: T,
    left: Option<u32>,
}

impl<T: Clone> Orders<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub(crate) fn push(&self, what: T, left: Option<u32>) {
        let mut orders = self.orders();
        if orders.len() == ORDERS_MAX {
            orders.remove(0);
        }
        orders.push(Order { what, left });
    }

    pub(crate) fn take(&self, fits: impl Fn(&T) -> bool) -> Option<T> {
        let mut orders = self.orders();
        orders.retain(|order| order.left != Some(0));
        let order = orders.iter_mut().find(|order| fits(&order.what))?;
        if let Some(left) = &mut order.left {
            *left -= 1;
        }
        Some(order.what.clone())
    }

    pub(crate) fn clear(&self) {
        self.orders().clear();
    }

    fn orders(&self) -> MutexGuard<'_, Vec<Order<T>>> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }
}
