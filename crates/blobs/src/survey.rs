//! What lies here, looked at anew and all at once: whoever asks about thousands of blobs asks the disk about those that
//! are there, not about each that might be.

use std::collections::{BTreeMap, BTreeSet};

use types::BlobHash;

use crate::error::Error;
use crate::shared::Shared;
use crate::state::State;

/// Of a blob that is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub chunks: u32,
    pub of: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Complete, and not known to be damaged.
    pub whole: BTreeSet<BlobHash>,
    pub damaged: BTreeSet<BlobHash>,
    /// Being fetched, or left by a fetch that was cut off.
    pub partial: BTreeMap<BlobHash, Part>,
}

/// Blocks: it looks at each file that is referred to.
pub(crate) fn survey(shared: &Shared) -> Result<Survey, Error> {
    let all = shared.shelf().all();
    all.iter().for_each(|hash| shared.refresh(hash));
    shared.tell_damage();
    let (whole, damaged) = {
        let shelf = shared.shelf();
        (shelf.whole().into_iter().collect(), shelf.all_damaged())
    };
    let mut partial = BTreeMap::new();
    for hash in shared.folder.scan("partial")? {
        if let State::Partial { chunks, of } = shared.state(&hash) {
            partial.insert(hash, Part { chunks, of });
        }
    }
    Ok(Survey { whole, damaged, partial })
}
