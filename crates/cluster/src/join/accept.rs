//! The member's side of a join.

use net::{ByteStream, Caller, read_framed, write_framed};
use openraft::AsyncRuntime;

use super::{CONVERSATION_MAX, Hello, Knock, Reply, Welcome};
use crate::cluster::{Cluster, Consistency};
use crate::error::Error;
use crate::pack;
use crate::registry::{Actor, Done, Proof, Refused, Registry, Verb};
use crate::runtime::Runtime;

/// Speaks with one joiner to the end. Whoever stalls is dropped.
pub(crate) async fn accept<R: Runtime>(cluster: Cluster<R>, caller: Caller, mut stream: ByteStream) {
    let talk = talk(&cluster, &caller, &mut stream);
    match <R::Async as AsyncRuntime>::timeout(CONVERSATION_MAX, talk).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::info!(joiner = %caller.id, address = ?caller.address, %error, "join broke off"),
        Err(_) => tracing::info!(joiner = %caller.id, address = ?caller.address, "joiner fell silent"),
    }
}

async fn talk<R: Runtime>(cluster: &Cluster<R>, caller: &Caller, stream: &mut ByteStream) -> std::io::Result<()> {
    let mesh = cluster.mesh();
    let hello = Hello { mesh, nonce: cluster.random(), clock: cluster.wall_clock() };
    write_framed(stream, &pack(&hello)).await?;
    let knock = read_framed(stream, <Knock as codec::Record>::LIMIT).await?;
    let knock: Knock = codec::decode(&knock).map_err(std::io::Error::other)?;
    let reply = answer(cluster, caller, &hello, knock).await;
    match &reply {
        Reply::Welcome(welcome) => tracing::info!(node = %caller.id, name = %welcome.name, "joined"),
        Reply::WouldWelcome => {}
        Reply::Refused(refused) => {
            tracing::warn!(node = %caller.id, address = ?caller.address, why = %refused, "join refused");
        }
        Reply::NotNow(why) => tracing::warn!(node = %caller.id, why, "join put off"),
    }
    write_framed(stream, &pack(&reply)).await
}

async fn answer<R: Runtime>(cluster: &Cluster<R>, caller: &Caller, hello: &Hello, knock: Knock) -> Reply {
    let Knock { token, joiner, signature, only_ask } = knock;
    // The connection proved who speaks; a message that names another is not worth an entry in the log.
    if joiner.id != caller.id {
        return Reply::Refused(Refused::TokenProof);
    }
    let proof = Proof { token, joiner, acceptor: cluster.id(), nonce: hello.nonce, signature };
    // Whoever cannot sign for a token costs nobody a question to the others.
    if let Err(refused) = cluster.view(|registry| registry.judge_proof(&proof, proof.acceptor)) {
        return Reply::Refused(refused);
    }
    // A token this node has not heard of may have been made a moment ago elsewhere.
    let known = cluster.view(|registry| registry.tokens().any(|(id, _)| *id == proof.token));
    let freshness = if known { Consistency::Local } else { Consistency::Linearizable };
    match cluster.read(freshness, |registry| preview(registry, &proof, hello)).await {
        Ok(Ok(())) => {}
        Ok(Err(refused)) => return Reply::Refused(refused),
        Err(error) => return Reply::NotNow(error.to_string()),
    }
    if only_ask {
        return Reply::WouldWelcome;
    }
    match cluster.write(Actor::Node(cluster.id()), Verb::AddMember(Box::new(proof))).await {
        Ok(Done::Joined { index, raft, name, role }) => {
            cluster.changes().reach(index).await;
            let registry = cluster.view(Registry::clone);
            Reply::Welcome(Box::new(Welcome { mesh: hello.mesh, raft, role, name, registry }))
        }
        Ok(Done::Changed { .. }) => Reply::NotNow("the registry gave an answer that does not fit".to_owned()),
        Err(Error::Refused(refused)) => Reply::Refused(refused),
        Err(error) => Reply::NotNow(error.to_string()),
    }
}

/// Turns away at the door what the registry would refuse anyway, so that a stranger cannot fill the log.
fn preview(registry: &Registry, proof: &Proof, hello: &Hello) -> Result<(), Refused> {
    registry.judge_proof(proof, proof.acceptor)?;
    registry.preview_join(proof, hello.clock).map(|_| ())
}
