//! How entries get to followers, and from whom they are taken.
#![expect(clippy::unwrap_used, reason = "whatever fails here fails the test that asked for it")]

use bytes::Bytes;
use net::Protocol;
use testkit::{World, on_seeds};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CALLS: Protocol = Protocol::new("/omx/raft/1");
const APPENDS: Protocol = Protocol::new("/omx/append/1");

#[test]
fn entries_go_to_followers_on_streams_and_not_as_requests() {
    on_seeds(2, async |world| {
        world.mesh(3).await;
        let writes = 100;
        let leader = world.leader().unwrap();
        world.set(leader, "mesh.name", "opens the streams").await.unwrap();
        let before = world.fabric.stats().sent;
        for number in 0..writes {
            world.set(leader, "mesh.name", &number.to_string()).await.unwrap();
        }
        let messages = world.fabric.stats().sent - before;
        assert!(messages < writes, "{messages} messages beside the streams: heartbeats alone are far fewer");
    });
}

#[test]
fn a_follower_that_starts_again_is_fed_on_a_new_stream() {
    on_seeds(2, async |world| {
        world.mesh(3).await;
        let leader = world.leader().unwrap();
        let follower = world.voters().into_iter().find(|voter| *voter != leader).unwrap();
        world.set(leader, "mesh.name", "opens the streams").await.unwrap();
        world.kill(follower).await;
        world.set(leader, "mesh.name", "one is down").await.unwrap();
        world.start(follower).await;
        world.converge().await;
        let before = world.fabric.stats().sent;
        let mut last = 0;
        for number in 0..100 {
            last = world.set(leader, "mesh.name", &number.to_string()).await.unwrap();
        }
        let messages = world.fabric.stats().sent - before;
        assert!(messages < 100, "{messages} messages beside the streams: heartbeats alone are far fewer");
        world.settle("the follower to have it all", |world| world.log_end(follower) >= last).await;
    });
}

/// As a leader of this term tells a seat that it is alive. Versioned, all numbers below 251 take one byte.
fn heartbeat(to: u64, term: u64, from: u64) -> Bytes {
    let byte = |number: u64| u8::try_from(number).unwrap();
    Bytes::from(vec![2, byte(to), 0, byte(term), byte(from), 1, 0, 0, 0])
}

async fn say(world: &World, from: usize, to: usize, what: Bytes) -> Result<Bytes, net::Error> {
    let to = world.nodes[&to].id;
    world.nodes[&from].up.as_ref().unwrap().net.request(to, CALLS, what).await
}

/// What is answered to a message on a stream of entries; `None` if the stream is closed on it.
async fn say_on_a_stream(world: &World, from: usize, to: usize, what: &[u8]) -> Option<u8> {
    let to = world.nodes[&to].id;
    let mut stream = world.nodes[&from].up.as_ref().unwrap().net.connect(to, APPENDS).await.unwrap();
    stream.write_u32(u32::try_from(what.len()).unwrap()).await.unwrap();
    stream.write_all(what).await.unwrap();
    stream.flush().await.unwrap();
    stream.read_u8().await.ok()
}

#[test]
fn a_member_without_a_seat_leads_nobody_however_high_its_term() {
    on_seeds(2, async |world| {
        world.mesh(4).await;
        let leader = world.leader().unwrap();
        let voters = world.voters();
        let follower = voters.iter().copied().find(|voter| *voter != leader).unwrap();
        let outside = (0..4).find(|number| !voters.contains(number)).unwrap();
        let number = |node: usize| world.cluster(node).belonging().raft.0;
        let term = world.cluster(leader).term().unwrap();

        let honest = heartbeat(number(follower), term, number(leader));
        assert!(say(world, leader, follower, honest.clone()).await.is_ok(), "the message is well formed");
        assert!(say_on_a_stream(world, leader, follower, &honest).await.is_some());

        for claimed in [number(outside), number(leader)] {
            let forged = heartbeat(number(follower), term + 100, claimed);
            let refused = say(world, outside, follower, forged.clone()).await.unwrap_err();
            assert!(matches!(refused, net::Error::Refused { .. }), "{refused}");
            assert_eq!(say_on_a_stream(world, outside, follower, &forged).await, None);
        }
        assert_eq!(world.cluster(follower).term(), Some(term));
    });
}

#[test]
fn a_message_for_another_seat_is_not_taken_even_from_the_leader() {
    on_seeds(2, async |world| {
        world.mesh(3).await;
        let leader = world.leader().unwrap();
        let follower = world.voters().into_iter().find(|voter| *voter != leader).unwrap();
        let number = |node: usize| world.cluster(node).belonging().raft.0;
        let term = world.cluster(leader).term().unwrap();

        let misplaced = heartbeat(number(follower) + 10, term + 100, number(leader));
        let refused = say(world, leader, follower, misplaced.clone()).await.unwrap_err();
        assert!(matches!(refused, net::Error::Refused { .. }), "{refused}");
        assert_eq!(say_on_a_stream(world, leader, follower, &misplaced).await, None);
        assert_eq!(world.cluster(follower).term(), Some(term));
    });
}
