mod archive;
mod damage;
mod power_cut;
pub(crate) mod rig;
mod space;
mod suite;
mod syncs;
