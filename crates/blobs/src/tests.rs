//! Nodes on a network in memory, and once on loopback.

mod crash;
mod fetch;
mod flips;
mod full;
mod keep;
mod lies;
mod loopback;
mod rig;
