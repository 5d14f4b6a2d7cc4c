//! Who gets in, who stays out, who votes.

use std::time::Duration;

use cluster::{Actor, Consistency, Error, JoinError, Refused, Verb};
use testkit::{World, on_seeds, sleep};
use types::Role;

const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn one_of_a_hundred_uses_of_a_one_use_token_gets_in() {
    on_seeds(1, async |world| {
        world.mesh(3).await;
        let token = world.cluster(0).create_token(world.admin(0), Role::Node, 1, HOUR).await.unwrap();
        let clock = world.wall_clock();
        let joiners: Vec<_> = (100..200)
            .map(|number| {
                let candidate = world.candidate(number);
                let (net, task) = world.fabric.join(candidate.id);
                (candidate, net, task)
            })
            .collect();
        let stop = tokio_util::sync::CancellationToken::new();
        let attempts = joiners.into_iter().map(|(candidate, net, task)| {
            let (token, stop) = (token.clone(), stop.clone());
            async move {
                let serving = task.run(net::Services::new(), stop.clone());
                let joining = async {
                    // Turned away because too many knock at once: knock again.
                    loop {
                        match cluster::join::<cluster::Sim>(&net, &token, &candidate, clock).await {
                            Err(error) if error.retry() => sleep(Duration::from_millis(50)).await,
                            done => return done,
                        }
                    }
                };
                let (mut serving, joining) = (std::pin::pin!(serving), std::pin::pin!(joining));
                match futures::future::select(joining, &mut serving).await {
                    futures::future::Either::Left((done, _)) => done,
                    futures::future::Either::Right(_) => panic!("the network ended first"),
                }
            }
        });
        let outcomes = futures::future::join_all(attempts).await;
        let joined = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let used_up = outcomes.iter().filter(|o| matches!(o, Err(JoinError::Refused(Refused::TokenUsedUp)))).count();
        assert_eq!((joined, used_up), (1, 99), "{outcomes:?}");
        let members = world.cluster(0).read(Consistency::Linearizable, |r| r.members().count()).await.unwrap();
        assert_eq!(members, 4);
        stop.cancel();
    });
}

#[test]
fn a_token_refused_says_why() {
    on_seeds(1, async |world| {
        world.mesh(1).await;
        world.settle("an address", |w| !w.cluster(0).view(|r| r.members().all(|m| m.addresses.bulk.is_empty()))).await;
        let (cluster, admin) = (world.cluster(0), world.admin(0));
        let short = cluster.create_token(admin.clone(), Role::Node, 1, Duration::from_secs(5)).await.unwrap();
        sleep(Duration::from_secs(6)).await;
        let expired = world.join_with(1, &short).await.unwrap_err();
        assert!(matches!(expired, JoinError::Refused(Refused::TokenExpired)), "{expired}");
        let revoked = cluster.create_token(admin.clone(), Role::Node, 1, HOUR).await.unwrap();
        cluster.write(admin, Verb::RevokeToken { id: revoked.id() }).await.unwrap();
        let revoked = world.join_with(2, &revoked).await.unwrap_err();
        assert!(matches!(revoked, JoinError::Refused(Refused::UnknownToken)), "{revoked}");
    });
}

#[test]
fn a_joiner_that_dies_half_way_gets_in_with_the_same_token_and_costs_one_use() {
    on_seeds(1, async |world| {
        world.mesh(3).await;
        let token = world.cluster(0).create_token(world.admin(0), Role::Node, 1, HOUR).await.unwrap();
        // The join is carried out, the joiner dies before it has kept anything of it.
        world.join_with(3, &token).await.unwrap();
        world.kill(3).await;
        // What becomes of the token meanwhile does not matter to it.
        let (cluster, admin) = (world.cluster(0), world.admin(0));
        cluster.create_token(admin.clone(), Role::Node, 1, HOUR).await.unwrap();
        cluster.write(admin, Verb::RevokeToken { id: token.id() }).await.unwrap();
        world.join_with(3, &token).await.expect("the same joiner is known");
        let refused = world.join_with(4, &token).await.unwrap_err();
        assert!(matches!(refused, JoinError::Refused(Refused::UnknownToken)), "{refused}");
    });
}

#[test]
fn a_voter_that_lost_its_disk_comes_back_at_once_and_keeps_no_promise_of_before() {
    on_seeds(10, async |world| {
        world.mesh(3).await;
        let leader = world.leader().unwrap();
        let lost = world.voters().into_iter().find(|voter| *voter != leader).unwrap();
        let (other, before) = (3 - leader - lost, world.cluster(lost).belonging().raft);
        world.set(leader, "mesh.name", "before").await.unwrap();
        let token = world.cluster(leader).create_token(world.admin(leader), Role::Node, 1, HOUR).await.unwrap();
        world.kill(lost).await;
        world.lose_disk(lost);
        world.join_with(lost, &token).await.unwrap();
        assert_ne!(world.cluster(lost).belonging().raft, before);
        for number in 0..20 {
            world.set(leader, "mesh.name", &number.to_string()).await.unwrap();
        }
        world.settle("its new seat", |world| world.voters().len() == 3).await;
        world.kill(other).await;
        world.set(lost, "mesh.name", "after").await.expect("two of three are up, and it is one of them");
        world.start(other).await;
        world.converge().await;
    });
}

#[test]
fn voters_that_lose_their_seats_go_on_hearing_of_everything() {
    on_seeds(3, async |world| {
        world.mesh(3).await;
        let leader = world.leader().unwrap();
        world.set(leader, "voters.max", "1").await.unwrap();
        world.settle("one voter", |world| world.voters().len() == 1).await;
        let leader = world.leader().unwrap();
        world.set(leader, "mesh.name", "smaller").await.unwrap();
        let name = |world: &World, number: usize| world.cluster(number).view(|r| r.settings().mesh_name().to_owned());
        world.settle("all to hear of it", |world| (0..3).all(|number| name(world, number) == "smaller")).await;
        world.converge().await;
    });
}

#[test]
fn a_voter_the_others_cannot_do_without_is_not_removed() {
    on_seeds(1, async |world| {
        world.mesh(3).await;
        let leader = world.leader().unwrap();
        let others: Vec<_> = (0..3).filter(|number| *number != leader).collect();
        let (down, needed) = (others[0], others[1]);
        world.kill(down).await;
        let gone = world.nodes[&down].id;
        world
            .settle("it to be seen down", |w| {
                w.nodes[&leader].up.as_ref().unwrap().net.peers().iter().any(|peer| peer.id == gone && !peer.connected)
            })
            .await;
        let (cluster, admin) = (world.cluster(leader), world.admin(leader));
        let verb = Verb::RemoveMember { node: world.nodes[&needed].id };
        let refused = cluster.write(admin.clone(), verb).await.unwrap_err();
        assert!(matches!(refused, Error::Refused(Refused::QuorumAtRisk(_))), "{refused}");
        cluster.write(admin, Verb::RemoveMember { node: gone }).await.expect("the dead one can go");
    });
}

#[test]
fn a_removed_node_stops_and_stays_out_even_with_a_fresh_token() {
    on_seeds(1, async |world| {
        world.mesh(3).await;
        world.join(3, Role::Node).await;
        let id = world.nodes[&3].id;
        world.cluster(0).write(world.admin(0), Verb::RemoveMember { node: id }).await.unwrap();
        let knows = move |w: &World, number: usize| w.cluster(number).view(|r| r.is_removed(&id));
        world.settle("all others to bar it", |w| (0..3).all(|number| knows(w, number))).await;
        let cut = move |w: &World, number: usize| {
            w.nodes[&number].up.as_ref().unwrap().net.peers().iter().all(|peer| peer.id != id)
        };
        world.settle("the removed node to know", |w| w.cluster(3).view(|r| r.is_removed(&id))).await;
        world.settle("all others to cut it off", |w| (0..3).all(|number| cut(w, number))).await;
        world.kill(3).await;
        let token = world.cluster(0).create_token(world.admin(0), Role::Node, 1, HOUR).await.unwrap();
        let refused = world.join_with(3, &token).await.unwrap_err();
        assert!(matches!(refused, JoinError::Refused(Refused::Barred(_))), "{refused}");
    });
}

#[test]
fn a_node_that_slept_while_all_voters_changed_believes_nobody_and_says_so() {
    on_seeds(2, async |world| {
        world.mesh(4).await;
        let sleeper = (0..4).find(|number| !world.voters().contains(number)).unwrap();
        world.converge().await;
        world.kill(sleeper).await;
        let voted = world.voters();
        for number in 4..7 {
            world.join(number, Role::Node).await;
        }
        // Node 0 stays, without its seat; the two others go for good.
        for gone in [1, 2, 3].into_iter().filter(|number| voted.contains(number)) {
            let id = world.nodes[&gone].id;
            world.cluster(0).write(world.admin(0), Verb::RemoveMember { node: id }).await.unwrap();
            world.settle("three voters without it", |w| w.voters().len() == 3 && !w.voters().contains(&gone)).await;
            world.kill(gone).await;
        }
        world.cluster(0).step_aside(Duration::from_secs(8)).await;
        assert!(world.voters().iter().all(|voter| !voted.contains(voter)), "{:?}", world.voters());
        // Until it has heard that it lost its seat it would still give its word, and the sleeper would be right to take it.
        world.converge().await;
        world.start(sleeper).await;
        let begun = world.wall_clock();
        while !world.cluster(sleeper).status().await.estranged {
            assert!(world.wall_clock().since(begun) < Duration::from_secs(120), "it does not notice");
            sleep(Duration::from_secs(1)).await;
        }
        assert!(!world.cluster(0).status().await.estranged);
    });
}

#[test]
fn who_was_removed_is_not_let_in_by_a_node_that_starts_right_afterwards() {
    on_seeds(3, async |world| {
        world.mesh(5).await;
        let voters = world.voters();
        let mut others = (0..5).filter(|number| !voters.contains(number));
        let (follower, removed) = (others.next().unwrap(), others.next().unwrap());
        // Under load the copy for the next start is written ever more rarely.
        for number in 0..150 {
            world.set(0, "mesh.name", &number.to_string()).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
        let id = world.nodes[&removed].id;
        world.cluster(0).write(world.admin(0), Verb::RemoveMember { node: id }).await.unwrap();
        let knows = move |w: &World| w.cluster(follower).view(|registry| registry.is_removed(&id));
        world.settle("the follower to know", knows).await;
        sleep(Duration::from_millis(100)).await;
        world.kill(follower).await;
        world.start(follower).await;
        assert!(knows(world), "it has a registry of before");
    });
}

#[test]
fn a_worker_acts_on_itself_alone_and_never_votes() {
    on_seeds(1, async |world| {
        world.mesh(2).await;
        world.join(2, Role::Worker).await;
        world.join(3, Role::Worker).await;
        let (me, other) = (world.nodes[&2].id, world.nodes[&3].id);
        let worker = world.cluster(2);
        let user = Actor::User { node: me, uid: 0 };
        for verb in [
            Verb::SetConfig { key: "mesh.name".into(), value: "mine".into(), expect: None },
            Verb::RemoveMember { node: other },
            Verb::SetDrain { node: other, drain: true },
            Verb::SetLabels { node: me, set: Vec::new(), unset: Vec::new() },
        ] {
            let refused = worker.write(user.clone(), verb.clone()).await.unwrap_err();
            assert!(matches!(refused, Error::Refused(Refused::Denied(..))), "{verb:?}: {refused}");
        }
        // In the name of somebody else it is not even a proposal of its own.
        let forged = Actor::User { node: world.nodes[&0].id, uid: 0 };
        let verb = Verb::SetConfig { key: "mesh.name".into(), value: "mine".into(), expect: None };
        let refused = worker.write(forged, verb).await.unwrap_err();
        assert!(matches!(refused, Error::Refused(Refused::Denied(..))), "{refused}");
        worker.write(user, Verb::SetDrain { node: me, drain: true }).await.expect("its own machine");
        assert_eq!(world.voters(), vec![0]);
    });
}

#[test]
fn twelve_members_have_five_voters_and_all_read_what_any_of_them_writes() {
    on_seeds(1, async |world| {
        world.mesh(12).await;
        for writer in [0, 5, 11] {
            let value = format!("by node {writer}");
            world.set(writer, "mesh.name", &value).await.unwrap();
            for reader in 0..12 {
                let name = |registry: &cluster::Registry| registry.settings().mesh_name().to_owned();
                let read = world.cluster(reader).read(Consistency::Linearizable, name).await.unwrap();
                assert_eq!(read, value, "at node {reader}");
            }
        }
        let voter = *world.voters().iter().find(|voter| Some(**voter) != world.leader()).unwrap();
        world.kill(voter).await;
        world
            .settle("another in its seat", move |world| {
                let voters = world.voters();
                voters.len() == 5 && !voters.contains(&voter)
            })
            .await;
        world.converge().await;
    });
}

#[test]
fn a_node_that_stops_in_good_order_gives_its_seat_and_the_lead_to_others() {
    on_seeds(2, async |world| {
        world.mesh(4).await;
        let leader = world.leader().unwrap();
        let cluster = world.cluster(leader);
        cluster.step_aside(Duration::from_secs(8)).await;
        assert!(!cluster.is_leader());
        world.kill(leader).await;
        let others = world.voters();
        assert!(others.len() == 3 && !others.contains(&leader), "{others:?}");
    });
}

#[test]
fn the_only_voter_leaves_by_handing_its_seat_to_whoever_is_up_and_stays_otherwise() {
    on_seeds(16, async |world| {
        world.mesh(2).await;
        let id = world.nodes[&0].id;
        world.kill(1).await;
        world
            .settle("the other to be seen down", |w| {
                w.nodes[&0].up.as_ref().is_some_and(|up| up.net.peers().iter().all(|peer| !peer.connected))
            })
            .await;
        let (cluster, admin) = (world.cluster(0), world.admin(0));
        cluster.step_aside(Duration::from_secs(8)).await;
        let refused = cluster.write(admin.clone(), Verb::RemoveMember { node: id }).await.unwrap_err();
        assert!(matches!(refused, Error::Refused(Refused::LastVoter(_))), "{refused}");
        world.start(1).await;
        world
            .settle("the other to be up again", |w| {
                w.nodes[&0].up.as_ref().is_some_and(|up| up.net.peers().iter().all(|peer| peer.connected))
            })
            .await;
        cluster.step_aside(Duration::from_secs(8)).await;
        cluster.leave(admin).await.expect("the other votes now");
        world.kill(0).await;
        world.settle("the other to lead alone", |world| world.leader() == Some(1)).await;
    });
}

#[test]
fn a_stranger_reaches_nothing_but_join() {
    on_seeds(1, async |world| {
        world.mesh(1).await;
        let open = world.cluster(0).services().open_to_strangers();
        assert_eq!(open, [net::Protocol::new("omx-join/1")]);
        let (member, stranger) = (world.nodes[&0].id, world.candidate(1).id);
        let address = world.nodes[&0].up.as_ref().unwrap().net.addresses().bulk.into_iter().next().unwrap();
        let (net, task) = world.fabric.join(stranger);
        let stop = tokio_util::sync::CancellationToken::new();
        let knocking = async {
            for name in ["/omx/follow/1", "/omx/snapshot/1", "/omx/registry/1", "/omx/raft/1", "/omx/infer/1"] {
                let refused = net.connect_stranger(address, member, net::Protocol::new(name)).await;
                let refused = refused.expect_err(name);
                let why = matches!(refused, net::Error::Refused { refusal: net::Refusal::NotAMember, .. });
                assert!(why, "{name}: {refused}");
            }
            net.connect_stranger(address, member, open[0]).await.expect("whoever has a token may knock");
        };
        let serving = std::pin::pin!(task.run(net::Services::new(), stop));
        match futures::future::select(std::pin::pin!(knocking), serving).await {
            futures::future::Either::Left(_) => {}
            futures::future::Either::Right(_) => panic!("the network ended first"),
        }
    });
}
