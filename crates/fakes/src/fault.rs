//! Faults on command: what goes wrong, for which requests, how often.

use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::watch;

use crate::orders::Orders;

/// Lines are those of a stream. An answer in one piece has no inside: what is to happen there happens before it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// The connection is reset as soon as it is there. To be refused outright, stop the fake.
    Refuse,
    Status {
        status: u16,
    },
    /// Nothing is ever answered.
    Hang,
    /// Nothing comes after so many lines.
    HangInside {
        after: u32,
    },
    /// A line that says so ends the stream after so many, as when a runner crashes.
    ErrorInside {
        after: u32,
    },
    /// The stream ends cleanly after so many lines, without `done`.
    EndEarly {
        after: u32,
    },
    /// The connection breaks after so many bytes of the body.
    Cut {
        at: u64,
    },
    /// What comes is no JSON.
    Garbage,
    /// Everything takes so many times as long.
    Slow {
        factor: f64,
    },
    /// The answer is another model's.
    WrongModel,
    /// What was pulled is not what its digest says.
    Mismatch,
    /// Connections are taken and nothing is answered on any route; streams stand still.
    Freeze,
}

/// Orders faults. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Faults(Arc<State>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no fault: see `--help` for those there are")]
pub struct InvalidFault(String);

/// What `POST /__fault` takes.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Order {
    #[serde(flatten)]
    fault: Fault,
    /// For so many; for all where there is none.
    next: Option<u32>,
    #[serde(default)]
    of: Routes,
}

/// Requests an order is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Routes {
    #[default]
    Inference,
    /// Those that change which models there are: pull, push, create, blobs, copy, delete.
    Models,
    All,
}

#[derive(Debug)]
struct State {
    orders: Orders<Order>,
    frozen: watch::Sender<bool>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self(Arc::new(State { orders: Orders::new(), frozen: watch::Sender::new(false) }))
    }

    /// Every request for inference from now on, or every connection, has it.
    pub fn always(&self, fault: Fault) {
        self.order(Order { fault, next: None, of: Routes::Inference });
    }

    /// The next `count` requests for inference, or connections, have it. Freezing has no number.
    pub fn next(&self, count: u32, fault: Fault) {
        self.order(Order { fault, next: Some(count), of: Routes::Inference });
    }

    /// The next `count` requests that change models have it; all of them from now on where there is no number.
    pub fn of_models(&self, count: Option<u32>, fault: Fault) {
        self.order(Order { fault, next: count, of: Routes::Models });
    }

    /// Every request of any route has it.
    pub fn everywhere(&self, fault: Fault) {
        self.order(Order { fault, next: None, of: Routes::All });
    }

    /// What was ordered is forgotten; what is frozen goes on. Requests that hang already stay so.
    pub fn clear(&self) {
        self.0.orders.clear();
        self.0.frozen.send_replace(false);
    }

    pub(crate) fn order(&self, order: Order) {
        if order.fault == Fault::Freeze {
            self.0.frozen.send_replace(true);
            return;
        }
        let next = order.next;
        self.0.orders.push(order, next);
    }

    /// Whether the connection that just came is to be reset.
    pub(crate) fn refuses(&self) -> bool {
        self.take(|order| order.fault == Fault::Refuse).is_some()
    }

    pub(crate) fn of_request(&self, to: Routes) -> Option<Fault> {
        self.take(|order| order.fault != Fault::Refuse && (order.of == to || order.of == Routes::All))
    }

    pub(crate) async fn thawed(&self) {
        let mut frozen = self.0.frozen.subscribe();
        // An error would mean the sender is gone, and nothing is frozen then.
        let _ = frozen.wait_for(|frozen| !frozen).await;
    }

    fn take(&self, fits: impl Fn(&Order) -> bool) -> Option<Fault> {
        self.0.orders.take(fits).map(|order| order.fault)
    }
}

/// `name` or `name=number`, for a command line.
impl FromStr for Fault {
    type Err = InvalidFault;

    fn from_str(text: &str) -> Result<Self, InvalidFault> {
        let invalid = || InvalidFault(text.to_owned());
        let (name, number) = text.split_once('=').map_or((text, None), |(name, number)| (name, Some(number)));
        let value = number.map(serde_json::from_str::<serde_json::Value>).transpose().map_err(|_| invalid())?;
        let mut fields = serde_json::Map::new();
        fields.insert("fault".to_owned(), name.replace('-', "_").into());
        if let Some(value) = value {
            for field in ["status", "after", "at", "factor"] {
                fields.insert(field.to_owned(), value.clone());
            }
        }
        serde_json::from_value(fields.into()).map_err(|_| invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_holds_for_as_many_as_it_says() {
        let faults = Faults::new();
        faults.next(2, Fault::Hang);
        faults.always(Fault::Garbage);
        let taken: Vec<_> = (0..3).map(|_| faults.of_request(Routes::Inference)).collect();
        assert_eq!(taken, [Some(Fault::Hang), Some(Fault::Hang), Some(Fault::Garbage)]);
        assert_eq!(faults.of_request(Routes::Models), None);
        assert!(!faults.refuses());
        faults.clear();
        assert_eq!(faults.of_request(Routes::Inference), None);
    }

    #[test]
    fn connections_and_other_routes_have_their_own() {
        let faults = Faults::new();
        faults.next(1, Fault::Refuse);
        faults.everywhere(Fault::Status { status: 500 });
        assert_eq!(faults.of_request(Routes::Models), Some(Fault::Status { status: 500 }));
        faults.clear();
        faults.of_models(Some(1), Fault::Mismatch);
        faults.next(1, Fault::Refuse);
        let taken = [Routes::Inference, Routes::Models, Routes::Models].map(|routes| faults.of_request(routes));
        assert_eq!(taken, [None, Some(Fault::Mismatch), None]);
        assert_eq!((faults.refuses(), faults.refuses()), (true, false));
    }

    #[test]
    fn faults_are_written_as_a_word_and_a_number() {
        for (text, fault) in [
            ("hang", Fault::Hang),
            ("hang-inside=3", Fault::HangInside { after: 3 }),
            ("cut=100", Fault::Cut { at: 100 }),
            ("slow=2.5", Fault::Slow { factor: 2.5 }),
            ("status=503", Fault::Status { status: 503 }),
        ] {
            assert_eq!(text.parse(), Ok(fault), "{text}");
        }
        for wrong in ["", "cut", "cut=x", "cut=-1", "melt"] {
            assert!(wrong.parse::<Fault>().is_err(), "{wrong}");
        }
        let order: Order = serde_json::from_str(r#"{"fault":"cut","at":7,"next":2,"of":"all"}"#).unwrap();
        assert_eq!((order.fault, order.next, order.of), (Fault::Cut { at: 7 }, Some(2), Routes::All));
    }
}
