//! The admin API: each function answers one route, from `node::Api` to `wire`.

pub(crate) mod backends;
pub(crate) mod config;
pub(crate) mod events;
pub(crate) mod inference;
pub(crate) mod keys;
pub(crate) mod models;
pub(crate) mod nodes;
pub(crate) mod tokens;
