//! Reading again what lies here: finds bits that flipped, and repairs them from other nodes.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use blobs::State;
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
    /// Reads all files of a version on this node again, and sees to what is wrong if that is asked for.
    pub(crate) async fn verify(&self, version: Digest, repair: bool) -> Result<Verified, Error> {
        let pieces = self.cluster.view(|registry| registry.version(&version).map(|found| found.layers.clone()));
        let pieces = pieces.ok_or(Error::UnknownVersion(version))?;
        let _alone = match repair {
            true => Some(self.mending.lock().await),
            false => None,
        };
        if repair {
            self.holders.refresh().await;
        }
        let mut verified = Verified { repaired: true, ..Verified::default() };
        for piece in &pieces {
            verified.damaged += self.verify_blob(version, piece, repair).await?;
            verified.damaged += self.verify_stores(version, piece, repair).await?;
            verified.bytes += piece.size;
        }
        verified.repaired = repair || verified.damaged == 0;
        if verified.repaired {
            self.wrong().remove(&version);
        }
        Ok(verified)
    }

    /// What the blobs of this node say: how many chunks were wrong. With `repair` all of it is here and good afterwards.
    async fn verify_blob(&self, version: Digest, piece: &Piece, repair: bool) -> Result<u64, Error> {
        let (damaged, report) = match self.blobs.verify(&piece.hash).await {
            Ok(report) if report.is_good() => return Ok(0),
            Ok(report) => (report.damaged.len() as u64, Some(report)),
            Err(blobs::Error::Absent { .. }) => match self.read_in_stores(piece).await? {
                Some(true) => return Ok(0),
                Some(false) => (1, None),
                // A repair that was cut off.
                None if repair && matches!(self.blobs.state(&piece.hash), State::Partial { .. }) => (0, None),
                None => return Err(Error::Unseen(version)),
            },
            Err(error) => return Err(error.into()),
        };
        if !repair {
            return Ok(damaged);
        }
        // What is good of it stays where it is as long as there is nothing to go with it.
        if self.holders.sources(&version).is_empty() {
            return Err(Error::NoSources(version));
        }
        if let Some(report) = &report {
            self.blobs.set_aside(report).await?;
        }
        self.fetch_piece(version, piece, &|_, _| ()).await?;
        Ok(damaged)
    }

    /// Whether what lies in a store by the piece's name is the piece, where it was not read yet or has changed since.
    /// `None` where nothing lies there that could be read.
    async fn read_in_stores(&self, piece: &Piece) -> Result<Option<bool>, Error> {
        let layer = layer(piece);
        let Some(path) = self.stores.iter().find_map(|store| store.file(&layer)) else { return Ok(None) };
        let found = self.blobs.refer(path, |_| ()).await?;
        Ok(Some(found.hash == piece.hash && found.sha256 == piece.digest))
    }

    /// What lies in the stores by the piece's name and is something else: the blobs leave files of others alone.
    async fn verify_stores(&self, version: Digest, piece: &Piece, repair: bool) -> Result<u64, Error> {
        let layer = layer(piece);
        let mut wrong = 0;
        for store in &self.stores {
            let Some(there) = store.file(&layer) else { continue };
            match self.blobs.lies_at(&piece.hash, &there).await {
                Ok(true) => continue,
                // With nothing to compare it with it was read by its SHA-256 alone, and counted.
                Err(blobs::Error::Absent { .. }) => {}
                Ok(false) => wrong += 1,
                Err(error) => return Err(error.into()),
            }
            self.wrong().insert(version);
            if repair {
                let good = self.blobs.locate(&piece.hash).await;
                let good = good.ok_or(blobs::Error::Absent { hash: piece.hash })?;
                let failed = |source| Error::Store { store: store.label().to_owned(), source: Box::new(source) };
                store.mend(&layer, good).await.map_err(failed)?;
                self.blobs.release(&piece.hash, &there).await?;
            }
        }
        Ok(wrong)
    }

    /// On every node that should have files of it or says that it has, all at once: each reads its own disk. Those that
    /// cannot be looked at are among them, with the reason.
    pub(crate) async fn verify_everywhere(
        &self,
        version: Digest,
        repair: bool,
    ) -> Vec<(NodeId, Result<Verified, String>)> {
        self.holders.refresh().await;
        let mut looks: BTreeMap<NodeId, Look> = self.cluster.view(|registry| {
            let assigned = registry.assigned(&version).copied().filter(|node| registry.member(node).is_some());
            assigned.map(|node| (node, Look::Missing)).collect()
        });
        let heard = self.holders.all();
        looks.iter_mut().filter(|(node, _)| heard.contains_key(node)).for_each(|(_, look)| *look = Look::Absent);
        let of_version = heard.iter().filter_map(|(node, versions)| Some((*node, Look::of(*versions.get(&version)?))));
        looks.extend(of_version);
        join_all(looks.into_iter().map(async |(node, look)| {
            let told = async {
                match look {
                    Look::Missing => Err("it does not answer".to_owned()),
                    Look::Absent => Err("it is to have it, and does not have it yet".to_owned()),
                    Look::Coming => Err("it is still being fetched there".to_owned()),
                    Look::Files if node == self.me() => {
                        self.verify(version, repair).await.map_err(|error| crate::error::chain(&error))
                    }
                    Look::Files => self.verify_at(node, version, repair).await,
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

fn layer(piece: &Piece) -> Layer {
    Layer { media_type: String::new(), digest: piece.digest, size: piece.size }
}

/// Whether a node can look at its files.
enum Look {
    Files,
    Coming,
    Absent,
    /// Nothing was heard of it.
    Missing,
}

impl Look {
    fn of(state: HolderState) -> Self {
        match state {
            // Its files may not have been read yet, or it may be that they cannot be: it will say so.
            HolderState::Verified | HolderState::Stored | HolderState::Damaged | HolderState::Listed => Self::Files,
            HolderState::Fetching { .. } => Self::Coming,
        }
    }
}
