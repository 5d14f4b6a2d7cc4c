//! One request on its way: where it may be tried again, and where not any more.
//!
//! So far the two judges that keep failures from multiplying, both without a clock of their own: how often a gateway may
//! try again at all ([`Budget`]), and which nodes it leaves alone for a while ([`Breakers`]).

mod breaker;
mod budget;

pub use breaker::{Breakers, Failure};
pub use budget::{Budget, RETRIES_MAX};
