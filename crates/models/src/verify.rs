//! Reading again what lies here: finds bits that flipped, and repairs them from other nodes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use blobs::Report;
use cluster::Piece;
use futures::future::join_all;
use net::{ByteStream, Services, read_framed, write_framed};
use ollama::Digest;
use ollama::manifest::Layer;
use tokio::io::AsyncWriteExt;
use types::NodeId;

use crate::error::Error;
use crate::protocol::{HolderState, VERIFY, VERIFY_BYTES_MAX, Verified, VerifyAsked, VerifyTold};
use crate::site::Site;

/// A large model on a slow disk, and what is damaged of it over a slow line.
const VERIFY_MAX: Duration = Duration::from_secs(6 * 3600);
/// For a question of a few bytes.
const ASKED_MAX: Duration = Duration::from_secs(10);
/// Of what another node says went wrong.
const WHY_CHARS_MAX: usize = 500;

pub(crate) fn services(site: &Arc<Site>, services: Services) -> Services {
    let site = site.clone();
    services.on_stream(VERIFY, move |_, stream| {
        let site = site.clone();
        Box::pin(async move {
            // Whoever asked and went has no use for the answer.
            let _ = serve(&site, stream).await;
        })
    })
}

async fn serve(site: &Site, mut stream: ByteStream) -> io::Result<()> {
    let asked = tokio::time::timeout(ASKED_MAX, read_framed(&mut stream, VERIFY_BYTES_MAX));
    let asked = asked.await.map_err(|_| io::ErrorKind::TimedOut)??;
    let VerifyAsked { version, repair } = codec::decode(&asked).map_err(io::Error::other)?;
    let told = site.verify(version, repair).await;
    let told = VerifyTold(told.map_err(|error| crate::error::chain(&error).chars().take(WHY_CHARS_MAX).collect()));
    write_framed(&mut stream, &codec::encode(&told).map_err(io::Error::other)?).await?;
    stream.shutdown().await
}

impl Site {
    /// Reads all files of a version on this node again.
    pub(crate) async fn verify(&self, version: Digest, repair: bool) -> Result<Verified, Error> {
        let pieces = self.cluster.view(|registry| registry.version(&version).map(|found| found.layers.clone()));
        let pieces = pieces.ok_or(Error::UnknownVersion(version))?;
        if repair {
            self.holders.refresh().await;
        }
        let mut verified = Verified { repaired: true, ..Verified::default() };
        for piece in pieces {
            let report: Report = match repair {
                false => self.blobs.verify(&piece.hash).await?,
                true => self.repair(version, &piece).await?,
            };
            verified.bytes += piece.size;
            verified.damaged += report.damaged.len() as u64;
            verified.repaired &= report.is_good();
        }
        Ok(verified)
    }

    /// What was damaged in a store is mended there too: the blobs themselves leave files of others alone.
    async fn repair(&self, version: Digest, piece: &Piece) -> Result<Report, Error> {
        let holders = self.holders.clone();
        let report = self.blobs.repair(&piece.hash, move || holders.sources(&version)).await?;
        if report.damaged.is_empty() {
            return Ok(report);
        }
        let layer = Layer { media_type: String::new(), digest: piece.digest, size: piece.size };
        for store in &self.stores {
            let Some(good) = self.blobs.locate(&piece.hash).await else { break };
            let failed = |source| Error::Store { store: store.label().to_owned(), source: Box::new(source) };
            if let Some(mended) = store.mend(&layer, good).await.map_err(failed)? {
                self.blobs.release(&piece.hash, &mended).await?;
            }
        }
        Ok(report)
    }

    /// On every node that has files of it, all at once: each reads its own disk.
    pub(crate) async fn verify_everywhere(
        &self,
        version: Digest,
        repair: bool,
    ) -> Vec<(NodeId, Result<Verified, String>)> {
        self.holders.refresh().await;
        let holders = self.holders.of(&version).into_iter();
        let with_files = holders
            .filter(|(_, state)| matches!(state, HolderState::Verified | HolderState::Stored | HolderState::Damaged));
        join_all(with_files.map(async |(node, _)| {
            let told = async {
                match node == self.me() {
                    true => self.verify(version, repair).await.map_err(|error| crate::error::chain(&error)),
                    false => self.verify_at(node, version, repair).await,
                }
            };
            let late = || Err(format!("no answer within {} hours", VERIFY_MAX.as_secs() / 3600));
            (node, tokio::time::timeout(VERIFY_MAX, told).await.unwrap_or_else(|_| late()))
        }))
        .await
    }

    async fn verify_at(&self, node: NodeId, version: Digest, repair: bool) -> Result<Verified, String> {
        let mut stream = self.net.connect(node, VERIFY.protocol).await.map_err(|error| error.to_string())?;
        let asked = codec::encode(&VerifyAsked { version, repair }).map_err(|error| error.to_string())?;
        let told = async {
            write_framed(&mut stream, &asked).await?;
            read_framed(&mut stream, VERIFY_BYTES_MAX).await
        };
        let told: VerifyTold = codec::decode(&told.await.map_err(|error| error.to_string())?)
            .map_err(|error: codec::Error| error.to_string())?;
        told.0
    }
}
