//! What a GGUF file says of itself, and whether the engine can run it.
//!
//! A file comes from a peer or from the internet, and the C++ that loads it later trusts it more than we do. So this
//! crate reads the header first: every length is checked against what is there, nothing is allocated because a file
//! announces it, and what the loader would refuse is refused here with a reason. It does no IO: callers hand it the
//! beginning of a file and the file's size.

mod architecture;
#[cfg(any(test, feature = "test-util"))]
pub mod build;
mod error;
mod facts;
mod flavour;
#[cfg(test)]
mod fuzz;
mod header;
mod probe;
mod read;
mod tensor;
mod value;

pub use error::Error;
pub use facts::{Facts, file_type_name};
pub use header::{HEADER_BYTES_MAX, Header, METADATA_MAX, TENSORS_MAX};
pub use probe::{Cannot, Host, Needs, probe};
pub use tensor::{Tensor, TensorType};
pub use value::{Array, Kind, Value};
