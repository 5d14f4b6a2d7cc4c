//! Following: how a node outside the consensus has the registry all the same.
//!
//! A leader feeds every learner every entry, so only those who vote (or are about to) take part in the consensus.
//! Everybody else keeps a stream open to some node that has the registry, hears steps or the whole, and accepts only
//! what leads to a hash signed by a voter of the registry it already holds. What it has accepted it passes on.

use std::io;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use net::{ByteStream, Caller, read_framed, verify, write_framed};
use openraft::AsyncRuntime;
use types::NodeId;

use crate::cluster::Cluster;
use crate::pack;
use crate::protocol::{Bulletin, FOLLOW, Hold, News, Word, word_statement};
use crate::raft::network::HEAD_MAX;
use crate::registry::Registry;
use crate::runtime::Runtime;
use crate::shelf::Shelf;
use crate::view::{Page, Way};

/// A followed node says at least that it is alive.
const STILL_EVERY: Duration = Duration::from_secs(1);
/// Without a word for so long, another one is followed.
const SILENCE_MAX: Duration = Duration::from_secs(4);
/// Between two pieces of news: what happens meanwhile goes into the next one.
const GATHER: Duration = Duration::from_millis(20);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// So many words in a row of nobody who votes here: perhaps all who voted are gone.
const STRANGE_MAX: u32 = 16;

const COPY: &str = "copy";

/// Keeps the registry for the next start: who the members are and where they listen must be known before any of them
/// can be asked.
pub(crate) async fn keep(shelf: &Shelf, registry: Registry) -> io::Result<()> {
    shelf.save(COPY, move || pack(&registry)).await.map(drop)
}

/// Keeps what a joiner was told, before it acts on it.
pub async fn keep_joined(shelf: &Shelf, registry: &Registry) -> Result<(), crate::Error> {
    keep(shelf, registry.clone()).await.map_err(crate::Error::Kept)
}

pub(crate) async fn kept(shelf: &Shelf) -> io::Result<Option<Registry>> {
    Ok(shelf.load(COPY).await?.map(|(registry, _)| registry))
}

/// Tells one follower all that happens until it hangs up.
pub(crate) async fn serve<R: Runtime>(cluster: Cluster<R>, caller: Caller, mut stream: ByteStream) {
    if let Err(error) = tell(&cluster, &mut stream).await {
        tracing::debug!(follower = %caller.id, %error, "no longer followed");
    }
}

async fn tell<R: Runtime>(cluster: &Cluster<R>, stream: &mut ByteStream) -> io::Result<()> {
    let hold = within::<R, _>(SILENCE_MAX, read_framed(stream, HEAD_MAX)).await?;
    let mut hold: Hold = codec::decode(&hold).map_err(io::Error::other)?;
    let mut changes = cluster.changes();
    // Once at least, also where nothing is new: without a voter's word the follower can tell nobody else.
    let mut gave_word = false;
    loop {
        let (page, word) = match signed(cluster, hold.index) {
            Some(signed) => signed,
            None => return send(cluster, stream, News::Nothing).await,
        };
        let news = match page.what {
            // The same index with another hash: the follower holds something else than we do.
            Way::Steps(steps) if steps.is_empty() && page.hash != hold.hash => {
                News::Whole { registry: Box::new(cluster.view(Registry::clone)), word }
            }
            Way::Steps(steps) if steps.is_empty() && gave_word => News::Still,
            Way::Steps(steps) => News::Steps { steps, word },
            Way::Whole(registry) => News::Whole { registry, word },
        };
        gave_word = true;
        hold = Hold { index: page.index, hash: page.hash };
        within::<R, _>(SILENCE_MAX, send(cluster, stream, news)).await?;
        <R::Async as AsyncRuntime>::sleep(GATHER).await;
        // Either something changed or it is time to say that we live.
        let _ = <R::Async as AsyncRuntime>::timeout(STILL_EVERY, changes.reach(hold.index + 1)).await;
    }
}

async fn send<R: Runtime>(cluster: &Cluster<R>, stream: &mut ByteStream, news: News) -> io::Result<()> {
    let age_ms = u64::try_from(cluster.age().as_millis()).unwrap_or(u64::MAX);
    write_framed(stream, &pack(&Bulletin { age_ms, news })).await
}

/// What this node has after `index`, with a voter's word for it: its own, or one that it has checked.
fn signed<R: Runtime>(cluster: &Cluster<R>, index: u64) -> Option<(Page, Word)> {
    if cluster.is_voter() {
        let page = cluster.0.view.voted.page_after(index);
        let signature = cluster.0.keypair.sign(&word_statement(cluster.mesh(), page.index, &page.hash));
        let word = Word { index: page.index, hash: page.hash, voter: cluster.id(), signature };
        return Some((page, word));
    }
    let page = cluster.0.view.followed.page_after(index);
    let word = cluster.0.word.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
    (word.index == page.index && word.hash == page.hash).then_some((page, word))
}

/// Whether the consensus itself keeps this node up to date. A voter that has lost its seat may be the last to learn of
/// it: the leader stops feeding it before it has said so.
fn takes_part<R: Runtime>(cluster: &Cluster<R>) -> bool {
    cluster.is_voter() && (cluster.is_leader() || cluster.0.view.fed_ago() < SILENCE_MAX)
}

/// Follows somebody whenever the consensus does not keep this node up to date. Runs for ever; may be dropped at any time.
pub(crate) async fn run<R: Runtime>(cluster: Cluster<R>) {
    let mut pause = RETRY_MIN;
    let mut strange = 0_u32;
    let mut turn = usize::from(cluster.random()[0]);
    loop {
        if takes_part(&cluster) {
            cluster.0.view.estranged.store(false, Ordering::Relaxed);
            let mut changes = cluster.changes();
            let _ = <R::Async as AsyncRuntime>::timeout(STILL_EVERY, changes.next()).await;
            continue;
        }
        turn += 1;
        let heard = match choose(&cluster, turn) {
            Some(peer) => listen(&cluster, peer).await,
            None => Err(io::Error::other("no member is connected")),
        };
        match heard {
            Ok(()) => {
                pause = RETRY_MIN;
                strange = 0;
            }
            Err(error) => {
                // Others who have nothing to tell, or do not answer, prove nothing either way.
                strange += u32::from(error.kind() == io::ErrorKind::PermissionDenied);
                cluster.0.view.estranged.store(strange >= STRANGE_MAX, Ordering::Relaxed);
                if strange >= STRANGE_MAX && strange.is_power_of_two() {
                    tracing::warn!(
                        "no voter this node knows votes any more, so it believes nobody; to come back, run \
                         `omx token create` on another member, and start here with an empty `--data-dir` and `--join`; \
                         then take the old member out with `omx nodes remove`"
                    );
                }
                tracing::debug!(%error, "following somebody else");
                <R::Async as AsyncRuntime>::sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Somebody who is up; a voter most of the time, since others may have nothing signed yet.
fn choose<R: Runtime>(cluster: &Cluster<R>, turn: usize) -> Option<NodeId> {
    let connected = cluster.0.net.peers().into_iter().filter(|peer| peer.connected).map(|peer| peer.id);
    let (voters, others): (Vec<_>, Vec<_>) = cluster.view(|registry| {
        let votes = |id: &NodeId| registry.member(id).is_some_and(|m| registry.seats().voters.contains(&m.raft));
        connected.partition(votes)
    });
    let from = if voters.is_empty() || turn.is_multiple_of(4) && !others.is_empty() { others } else { voters };
    (!from.is_empty()).then(|| from[turn % from.len()])
}

/// Listens to one peer. Ends well only when the consensus keeps this node up to date.
async fn listen<R: Runtime>(cluster: &Cluster<R>, peer: NodeId) -> io::Result<()> {
    let view = &cluster.0.view;
    // Whoever has voted until now may have the newer one there.
    let voted = view.voted.registry(Registry::applied);
    if voted > view.followed.registry(Registry::applied) {
        view.followed.replace(view.voted.registry(Registry::clone));
    }
    let mut stream = cluster.0.net.connect(peer, FOLLOW).await.map_err(io::Error::other)?;
    let (index, hash) = view.followed.at();
    write_framed(&mut stream, &pack(&Hold { index, hash })).await?;
    while !takes_part(cluster) {
        let news = within::<R, _>(SILENCE_MAX, read_framed(&mut stream, <Bulletin as codec::Record>::LIMIT)).await?;
        let Bulletin { age_ms, news } = codec::decode(&news).map_err(io::Error::other)?;
        let age = Duration::from_millis(age_ms);
        if age > SILENCE_MAX {
            return Err(io::Error::other(format!("the peer has heard of no voter for {age:?}")));
        }
        accept(cluster, news)?;
        view.estranged.store(false, Ordering::Relaxed);
        view.heard(age);
    }
    Ok(())
}

fn accept<R: Runtime>(cluster: &Cluster<R>, news: News) -> io::Result<()> {
    let followed = &cluster.0.view.followed;
    let word = match news {
        News::Still => return Ok(()),
        News::Nothing => return Err(io::Error::other("the peer has nothing signed")),
        News::Steps { steps, word } => {
            check_word(cluster, &word)?;
            followed.take_all(steps, word.index, word.hash).map_err(io::Error::other)?;
            word
        }
        News::Whole { registry, word } => {
            check_word(cluster, &word)?;
            let same = (registry.applied(), registry.hash()) == (word.index, word.hash);
            let mesh = registry.mesh().map(|mesh| mesh.id);
            if !same || mesh != Some(cluster.mesh()) || registry.applied() < followed.registry(Registry::applied) {
                return Err(io::Error::other("the registry it sent is not what a voter signed, or an older one"));
            }
            followed.replace(*registry);
            word
        }
    };
    *cluster.0.word.lock().unwrap_or_else(PoisonError::into_inner) = Some(word);
    cluster.0.view.announce();
    Ok(())
}

fn check_word<R: Runtime>(cluster: &Cluster<R>, word: &Word) -> io::Result<()> {
    let votes = cluster
        .0
        .view
        .followed
        .registry(|held| held.member(&word.voter).is_some_and(|member| held.seats().voters.contains(&member.raft)));
    let statement = word_statement(cluster.mesh(), word.index, &word.hash);
    if votes && verify(word.voter, &statement, &word.signature) {
        return Ok(());
    }
    let why = format!("`{}` does not vote in the registry held here, or did not sign", word.voter);
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

async fn within<R: Runtime, T: Send>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>> + Send,
) -> io::Result<T> {
    let done = <R::Async as AsyncRuntime>::timeout(limit, work).await;
    done.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the peer fell silent")))
}
