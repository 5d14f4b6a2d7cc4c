mod archive;
mod damage;
mod power_cut;
mod rig;
mod space;
mod suite;
mod syncs;
