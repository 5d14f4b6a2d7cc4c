//! The registry as the consensus drives it: applies committed entries, makes and takes snapshots.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use types::RaftId;

use super::wire::Image;
use super::{LogId, Membership, Snapshot, SnapshotMeta, StoredMembership, Types};
use crate::pack;
use crate::registry::Seats;
use crate::runtime::Runtime;
use crate::shelf::Shelf;
use crate::view::{Step, View};

const SNAPSHOT: &str = "registry";

/// Free beside twice the last snapshot before another is begun: under load the next is larger, and the old one stays
/// until the new one is whole.
const ROOM_MIN: u64 = 8 << 20;

/// Keeps the newest snapshot. A slow build never takes the place of a newer one that came in meanwhile.
#[derive(Clone)]
struct Keeper {
    shelf: Shelf,
    newest: Arc<futures::lock::Mutex<Option<LogId>>>,
    /// Of the newest: how much room the next may want.
    bytes: Arc<AtomicU64>,
}

impl Keeper {
    async fn save(&self, last: Option<LogId>, make: impl FnOnce() -> Bytes + Send + 'static) -> io::Result<Bytes> {
        let mut newest = self.newest.lock().await;
        if last < *newest {
            return Ok(make());
        }
        let bytes = self.shelf.save(SNAPSHOT, make).await?;
        self.bytes.store(bytes.len() as u64, Ordering::Relaxed);
        *newest = last;
        Ok(bytes)
    }

    async fn load(&self) -> io::Result<Option<(Image, Bytes)>> {
        let found = self.shelf.load(SNAPSHOT).await?;
        if let Some((_, bytes)) = &found {
            self.bytes.store(Bytes::len(bytes) as u64, Ordering::Relaxed);
        }
        Ok(found)
    }
}

pub(crate) struct Machine<R: Runtime> {
    view: Arc<View<R>>,
    last: Option<LogId>,
    seats: StoredMembership,
    keeper: Keeper,
    log: store::Log,
}

impl<R: Runtime> Machine<R> {
    /// Starts from the newest snapshot, if there is one.
    pub(crate) async fn open(view: Arc<View<R>>, shelf: Shelf, log: store::Log) -> io::Result<Self> {
        let keeper = Keeper { shelf, newest: Arc::default(), bytes: Arc::default() };
        let image = keeper.load().await?.map(|(image, _)| image);
        let mut machine = Self { view, last: None, seats: StoredMembership::default(), keeper, log };
        if let Some(image) = image {
            machine.take_over(image)?;
        }
        Ok(machine)
    }

    /// Makes a snapshot's state this machine's own, in memory.
    fn take_over(&mut self, image: Image) -> io::Result<()> {
        self.seats = image.stored_membership().map_err(io::Error::other)?;
        self.last = image.last();
        self.view.voted.replace(image.registry);
        self.view.announce();
        Ok(())
    }

    fn image(&self) -> Image {
        Image::new(self.last, &self.seats, self.view.voted.registry(Clone::clone))
    }
}

fn seats(membership: &Membership) -> Seats {
    Seats {
        voters: membership.voter_ids().map(RaftId).collect(),
        learners: membership.learner_ids().map(RaftId).collect(),
        changing: membership.get_joint_config().len() > 1,
    }
}

impl<R: Runtime> RaftStateMachine<Types<R>> for Machine<R> {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder<R>;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.last, self.seats.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types<R>>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let id = entry.log_id;
            let step = match &entry.payload {
                EntryPayload::Blank => Step::Blank,
                EntryPayload::Normal(sealed) => Step::command(sealed.0.clone()),
                EntryPayload::Membership(membership) => {
                    self.seats = StoredMembership::new(Some(id), membership.clone());
                    Step::Seats(seats(membership))
                }
            };
            let outcome = self.view.voted.take(id.index, step).map_err(io::Error::other)?;
            self.last = Some(id);
            if let Some(responder) = responder {
                let unasked = Ok(crate::registry::Done::Changed { index: id.index });
                responder.send(outcome.unwrap_or(unasked));
            }
        }
        self.view.announce();
        Ok(())
    }

    /// A snapshot only saves room, and where there is none it can wait: the consensus takes a write that fails for a
    /// broken disk and stops for good. `force` is for a start that found none, and cannot go on without.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder<R>> {
        let wanted = ROOM_MIN + 2 * self.keeper.bytes.load(Ordering::Relaxed);
        if !force && !self.log.has_room_for(wanted) {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder<R> {
        Builder { image: Arc::new(self.image()), keeper: self.keeper.clone(), view: self.view.clone() }
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: Bytes) -> io::Result<()> {
        let image: Image = codec::decode(&snapshot).map_err(io::Error::other)?;
        self.keeper.save(image.last(), move || snapshot).await?;
        self.take_over(image)?;
        self.view.installed.add_one();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let Some((image, bytes)) = self.keeper.load().await? else { return Ok(None) };
        Ok(Some(Snapshot { meta: meta(&image)?, snapshot: bytes }))
    }
}

fn meta(image: &Image) -> io::Result<SnapshotMeta> {
    let last_membership = image.stored_membership().map_err(io::Error::other)?;
    Ok(SnapshotMeta { last_log_id: image.last(), last_membership })
}

/// Writes one snapshot while the machine goes on.
pub(crate) struct Builder<R: Runtime> {
    image: Arc<Image>,
    keeper: Keeper,
    view: Arc<View<R>>,
}

impl<R: Runtime> RaftSnapshotBuilder<Types<R>> for Builder<R> {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let image = self.image.clone();
        let bytes = self.keeper.save(self.image.last(), move || pack(&*image)).await?;
        self.view.built.add_one();
        tracing::debug!(applied = self.image.registry.applied(), "snapshot written");
        Ok(Snapshot { meta: meta(&self.image)?, snapshot: bytes })
    }
}
