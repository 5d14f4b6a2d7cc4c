//! Room for chunks on their way, reused.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::chunks::CHUNK_BYTES;

/// As many chunks as it was made for; who wants one more waits for another to be given back.
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
        // Those nobody uses any more go with the last holder of the pool.
        self.free.lock().expect("no holder panics").push(bytes);
    }
}
