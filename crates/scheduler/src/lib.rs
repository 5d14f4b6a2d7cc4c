//! Who should run this request: pure functions over what a gateway knows of the mesh.
//!
//! Everything is judged in seconds, never in numbers of requests: with unequal machines a count says nothing. What
//! gossip brought is old, so it only picks whom to ask; the answers to those questions decide.
//!
//! There is no clock, no random source and no IO in here: the moment and the dice are handed in, so that a simulation
//! runs the very code that a node runs. Nothing is allocated for a candidate. The crate knows no text of a request,
//! only keyed hashes of it.

mod candidates;
mod chain;
mod decide;
mod estimate;
mod host;
mod owners;
pub mod placement;
mod rendezvous;
mod time;
mod work;

pub use candidates::{Asker, CANDIDATES_MAX, Candidate, Candidates, Dice, Why};
pub use chain::{BLOCK_BYTES, Chain, ChainKey, ChainWriter, LINKS_MAX};
pub use decide::{Answer, Choice, Reason, choose, choose_known, choose_unheard, hold, probe_timeout};
pub use estimate::{Estimate, Place, Promise};
pub use host::{Facts, Fleet, Host};
pub use owners::{Owners, Turn};
pub use time::{Moment, Seconds};
pub use work::{Class, ModelKey, Tenant, Work};
