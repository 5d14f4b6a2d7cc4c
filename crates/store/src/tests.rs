mod archive;
mod rig;
mod suite;
