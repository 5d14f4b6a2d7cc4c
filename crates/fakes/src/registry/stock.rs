//! What a registry holds. A blob is there once, and can be had in each repository it is linked to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;

use crate::digest::Digest;
use crate::name::Name;
use crate::release::{Content, Release};

#[derive(Debug, Default)]
pub(super) struct Stock(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By repository and tag.
    manifests: BTreeMap<(String, String), Bytes>,
    links: BTreeSet<(String, Digest)>,
    blobs: BTreeMap<Digest, Content>,
}

impl Stock {
    pub(super) fn publish(&self, name: &Name, release: &Release) {
        for blob in release.blobs() {
            self.put(&name.repository(), blob.digest.clone(), blob.content.clone());
        }
        self.put_manifest(name, release.manifest().clone());
    }

    pub(super) fn put_manifest(&self, name: &Name, manifest: Bytes) {
        self.state().manifests.insert((name.repository(), name.tag().to_owned()), manifest);
    }

    pub(super) fn put(&self, repository: &str, digest: Digest, content: Content) {
        let mut state = self.state();
        state.links.insert((repository.to_owned(), digest.clone()));
        state.blobs.insert(digest, content);
    }

    /// Whether it is in the other repository, and so in this one now.
    pub(super) fn mount(&self, repository: &str, from: &str, digest: &Digest) -> bool {
        let mut state = self.state();
        let there = state.links.contains(&(from.to_owned(), digest.clone()));
        if there {
            state.links.insert((repository.to_owned(), digest.clone()));
        }
        there
    }

    pub(super) fn manifest(&self, repository: &str, tag: &str) -> Option<Bytes> {
        self.state().manifests.get(&(repository.to_owned(), tag.to_owned())).cloned()
    }

    pub(super) fn linked(&self, repository: &str, digest: &Digest) -> Option<Content> {
        let state = self.state();
        state.links.get(&(repository.to_owned(), digest.clone())).and_then(|_| state.blobs.get(digest)).cloned()
    }

    pub(super) fn blob(&self, digest: &Digest) -> Option<Content> {
        self.state().blobs.get(digest).cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }
}
