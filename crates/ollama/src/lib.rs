//! Ollama's formats: its JSON, its model names, its folder. What they mean to a model is the engine's business, what
//! they mean to a mesh the gateway's.

mod digest;
pub mod folder;
mod head;
pub mod manifest;
mod name;
pub mod wire;

pub use digest::{Digest, InvalidDigest};
pub use folder::Folder;
pub use head::Head;
pub use name::{InvalidName, ModelName};
