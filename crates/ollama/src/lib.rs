//! Ollama's formats: its JSON, its model names, its folder, where it listens. What they mean to a model is the engine's business, what
//! they mean to a mesh the gateway's.

mod asked;
pub mod client;
pub mod compose;
mod digest;
mod endpoint;
pub mod folder;
mod head;
pub mod manifest;
mod name;
mod origin;
pub mod seen;
pub mod transcript;
pub mod wire;

pub use asked::Asked;
pub use digest::{Digest, InvalidDigest};
pub use endpoint::{Endpoint, ParseEndpointError};
pub use folder::Folder;
pub use head::Head;
pub use name::{InvalidName, ModelName};
pub use origin::{Origin, ParseOriginError};
pub use transcript::Transcript;
