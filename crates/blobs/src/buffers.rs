//! Room for chunks on their way, reused.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::chunks::CHUNK_BYTES;

/// Buffers that are kept while nobody uses them: enough for a steady stream, little enough for an idle node.
const KEPT_MAX: usize = 4;

/// As many chunks as it was made for; who wants one more waits for another to be given back, or does without.
#[derive(Clone)]
pub(crate) struct Buffers {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    permits: Arc<Semaphore>,
}

/// Room for one chunk. Goes back by itself.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
    _permit: OwnedSemaphorePermit,
}

impl Buffers {
    pub(crate) fn new(max: usize) -> Self {
        Self { free: Arc::default(), permits: Arc::new(Semaphore::new(max)) }
    }

    /// May be dropped while it waits.
    pub(crate) async fn get(&self, length: usize) -> Buffer {
        assert!(length <= CHUNK_BYTES, "a buffer holds one chunk");
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        self.with(permit, length)
    }

    /// `None` where one would have to be waited for.
    pub(crate) fn try_get(&self, length: usize) -> Option<Buffer> {
        assert!(length <= CHUNK_BYTES, "a buffer holds one chunk");
        self.permits.clone().try_acquire_owned().ok().map(|permit| self.with(permit, length))
    }

    fn with(&self, permit: OwnedSemaphorePermit, length: usize) -> Buffer {
        let bytes = self.free.lock().expect("no holder panics").pop();
        let bytes = bytes.unwrap_or_else(|| vec![0; CHUNK_BYTES]);
        Buffer { bytes, length, free: self.free.clone(), _permit: permit }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut free = self.free.lock().expect("no holder panics");
        if free.len() < KEPT_MAX {
            free.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    #[tokio::test]
    async fn there_are_as_many_as_it_was_made_for_and_few_are_kept() {
        let buffers = Buffers::new(6);
        let mut held = Vec::new();
        for length in 0..6 {
            held.push(buffers.get(length).await);
        }
        assert!(buffers.try_get(1).is_none() && poll!(Box::pin(buffers.get(1))).is_pending());
        assert_eq!(held.pop().unwrap().len(), 5);
        let again = buffers.try_get(CHUNK_BYTES).unwrap();
        assert_eq!(again.len(), CHUNK_BYTES);
        drop((again, held));
        assert_eq!(buffers.free.lock().unwrap().len(), KEPT_MAX);
    }
}
