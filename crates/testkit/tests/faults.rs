//! Safety under faults, then healing without them.

use std::collections::BTreeSet;
use std::time::Duration;

use testkit::{Load, World, on_seeds, sleep};
use types::Role;

/// Lets the load go on while `fault` happens a few times; checks that the fault did happen and that nothing was lost.
async fn endure(world: &mut World, rounds: usize, fault: impl AsyncFn(&mut World) -> bool) {
    let (load, entries) = Load::start(world, 3);
    let mut injected = 0;
    for _ in 0..rounds {
        let (before, read) = (load.history().acknowledged(), load.history().reads());
        injected += usize::from(fault(world).await);
        Load::refresh(world, &entries);
        world.fabric.heal();
        let history = load.history().clone();
        let goes_on = move |_: &World| history.acknowledged() > before + 5 && history.reads() > read;
        world.settle("writes and reads to go on", goes_on).await;
    }
    assert_eq!(injected, rounds, "a fault was not injected");
    let history = load.stop().await;
    world.converge().await;
    history.check_all(world);
}

async fn leader(world: &mut World) -> usize {
    world.settle("a leader", |world| world.leader().is_some()).await;
    world.leader().expect("just seen")
}

#[test]
fn nothing_acknowledged_is_lost_when_leaders_die() {
    on_seeds(4, async |world| {
        world.mesh(3).await;
        endure(world, 4, kill_the_leader).await;
    });
}

#[test]
fn five_voters_lose_nothing_when_leaders_die() {
    on_seeds(3, async |world| {
        world.mesh(7).await;
        assert_eq!(world.voters().len(), 5);
        endure(world, 4, kill_the_leader).await;
    });
}

/// It happened if the old leader ran and another one led while it was down.
async fn kill_the_leader(world: &mut World) -> bool {
    let old = leader(world).await;
    let killed = world.kill(old).await;
    let new = leader(world).await;
    world.start(old).await;
    killed && new != old
}

#[test]
fn nothing_acknowledged_is_lost_when_all_die_at_once() {
    on_seeds(3, async |world| {
        world.mesh(5).await;
        endure(world, 2, async |world| {
            let mut killed = 0;
            for number in world.up() {
                killed += usize::from(world.kill(number).await);
            }
            let none_left = world.up().is_empty();
            for number in 0..5 {
                world.start(number).await;
            }
            none_left && killed == 5
        })
        .await;
    });
}

#[test]
fn a_leader_alone_takes_no_writes_and_the_others_go_on() {
    on_seeds(4, async |world| {
        world.mesh(5).await;
        endure(world, 3, async |world| {
            let cut_before = world.fabric.stats().cut;
            let old = leader(world).await;
            world.fabric.isolate(world.nodes[&old].id);
            let alone = world.set(old, "mesh.name", "written alone").await;
            assert!(alone.is_err(), "a leader without a quorum acknowledged: {alone:?}");
            let others = move |world: &World| world.up().into_iter().any(|n| n != old && world.cluster(n).is_leader());
            world.settle("a leader among the others", others).await;
            world.fabric.stats().cut > cut_before
        })
        .await;
    });
}

#[test]
fn a_minority_is_read_only_and_a_majority_is_not() {
    on_seeds(3, async |world| {
        world.mesh(7).await;
        endure(world, 3, async |world| {
            let cut_before = world.fabric.stats().cut;
            let mut voters = world.voters();
            let first = world.random().below(voters.len());
            voters.rotate_left(first);
            let (minority, majority) = voters.split_at(2);
            for few in minority {
                for many in (0..7).filter(|number| !minority.contains(number)) {
                    let (few, many) = (world.nodes[few].id, world.nodes[&many].id);
                    world.fabric.cut(few, many);
                    world.fabric.cut(many, few);
                }
            }
            let many = majority[0];
            let led_by_many = |world: &World| majority.iter().any(|number| world.cluster(*number).is_leader());
            world.settle("a leader among the many", led_by_many).await;
            let refused = world.set(minority[0], "mesh.name", "by the few").await;
            assert!(refused.is_err(), "two of five acknowledged: {refused:?}");
            world.set(many, "mesh.name", "by the many").await.expect("three of five take writes");
            world.fabric.stats().cut > cut_before
        })
        .await;
    });
}

#[test]
fn a_wire_cut_one_way_loses_nothing() {
    on_seeds(4, async |world| {
        world.mesh(3).await;
        endure(world, 4, cut_one_way).await;
    });
}

#[test]
fn five_voters_lose_nothing_when_a_wire_is_cut_one_way() {
    on_seeds(3, async |world| {
        world.mesh(7).await;
        assert_eq!(world.voters().len(), 5);
        endure(world, 3, cut_one_way).await;
    });
}

/// Between the leader and another voter, from the one or from the other. It happened if something was lost on that way.
async fn cut_one_way(world: &mut World) -> bool {
    let cut_before = world.fabric.stats().cut;
    let leader = leader(world).await;
    let others: Vec<_> = world.voters().into_iter().filter(|voter| *voter != leader).collect();
    let other = others[world.random().below(others.len())];
    let (from, to) = match world.random().below(2) {
        0 => (leader, other),
        _ => (other, leader),
    };
    world.fabric.cut(world.nodes[&from].id, world.nodes[&to].id);
    sleep(Duration::from_secs(6)).await;
    world.fabric.stats().cut > cut_before
}

#[test]
fn a_frozen_leader_that_thaws_serves_nothing_old() {
    on_seeds(4, async |world| {
        world.mesh(3).await;
        endure(world, 4, freeze_the_leader).await;
    });
}

#[test]
fn five_voters_lose_nothing_when_leaders_freeze() {
    on_seeds(3, async |world| {
        world.mesh(7).await;
        assert_eq!(world.voters().len(), 5);
        endure(world, 3, freeze_the_leader).await;
    });
}

/// It happened if messages waited for the frozen one while another led.
async fn freeze_the_leader(world: &mut World) -> bool {
    let held_before = world.fabric.stats().held;
    let old = leader(world).await;
    world.fabric.pause(world.nodes[&old].id);
    let others = move |world: &World| world.up().into_iter().any(|n| n != old && world.cluster(n).is_leader());
    world.settle("a leader among the others", others).await;
    world.fabric.resume(world.nodes[&old].id);
    world.fabric.stats().held > held_before
}

/// For longer than the leader waits for an answer, so that answers come that nobody waits for any more.
#[test]
fn a_frozen_follower_that_thaws_is_credited_with_nothing_it_lacks() {
    on_seeds(6, async |world| {
        world.mesh(3).await;
        endure(world, 4, async |world| {
            let held_before = world.fabric.stats().held;
            let leader = leader(world).await;
            let others: Vec<_> = world.voters().into_iter().filter(|voter| *voter != leader).collect();
            let frozen = others[world.random().below(others.len())];
            world.fabric.pause(world.nodes[&frozen].id);
            sleep(Duration::from_millis(1_500 + world.random().next() % 3_000)).await;
            world.fabric.resume(world.nodes[&frozen].id);
            // Whatever it was credited with must be there when the leader is not.
            let killed = world.kill(leader).await;
            sleep(Duration::from_secs(2)).await;
            world.start(leader).await;
            killed && world.fabric.stats().held > held_before
        })
        .await;
    });
}

#[test]
fn lost_messages_and_long_ways_lose_no_writes() {
    on_seeds(3, async |world| {
        world.mesh(3).await;
        world.fabric.set_latency(Duration::from_millis(1)..=Duration::from_millis(80));
        world.fabric.set_loss(0.05);
        endure(world, 2, async |world| {
            let lost_before = world.fabric.stats().lost;
            sleep(Duration::from_secs(10)).await;
            world.fabric.stats().lost > lost_before
        })
        .await;
    });
}

#[test]
fn a_follower_whose_disk_is_full_waits_for_room_and_goes_on() {
    on_seeds(3, async |world| {
        world.mesh(3).await;
        endure(world, 2, async |world| {
            let leader = leader(world).await;
            let full = (leader + 1) % 3;
            world.set_disk_full(full, true);
            let index = world.set(leader, "mesh.name", "two have room").await.expect("two of three take writes");
            sleep(Duration::from_secs(6)).await;
            // Its consensus lives and takes nothing; it may well follow the others meanwhile.
            assert_eq!(world.cluster(full).term(), world.cluster(leader).term(), "it takes part in elections");
            assert!(world.log_end(full) < index, "it took an entry, full as it is");
            // Far enough for the leader to have dropped what the follower lacks: only a snapshot can help it.
            let built = world.cluster(leader).snapshots().built;
            for number in 0..150 {
                world.set(leader, "mesh.name", &number.to_string()).await.expect("two of three take writes");
            }
            assert!(world.cluster(leader).snapshots().built > built, "the leader has dropped nothing");
            let installed = world.cluster(full).snapshots().installed;
            sleep(Duration::from_secs(3)).await;
            assert_eq!(world.cluster(full).snapshots().installed, installed, "there is no room for a snapshot");
            world.set_disk_full(full, false);
            let caught_up = move |world: &World| world.cluster(full).snapshots().installed > installed;
            world.settle("the follower to have a snapshot", caught_up).await;
            let index = world.set(leader, "mesh.name", "all have room").await.expect("all take writes");
            world.settle("the follower to have entries", move |world| world.log_end(full) >= index).await;
            true
        })
        .await;
    });
}

#[test]
fn seats_move_under_writes_with_snapshots_and_lose_nothing() {
    on_seeds(3, async |world| move_seats(world, 5, 3).await);
}

#[test]
fn five_seats_move_under_writes_with_snapshots_and_lose_nothing() {
    on_seeds(2, async |world| move_seats(world, 8, 5).await);
}

async fn move_seats(world: &mut World, members: usize, seats: usize) {
    world.mesh(members).await;
    assert_eq!(world.voters().len(), seats);
    let spare = std::cell::Cell::new(members);
    let (built, installed) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    endure(world, 3, async |world| {
        // A new machine comes, a voter other than node 0 (which clients write about) goes for good.
        let number = spare.replace(spare.get() + 1);
        world.join(number, Role::Node).await;
        let leaving = world.voters().into_iter().find(|voter| *voter != 0).expect("several vote");
        let verb = cluster::Verb::RemoveMember { node: world.nodes[&leaving].id };
        world.cluster(0).write(world.admin(0), verb).await.expect("a removal is taken");
        let before: BTreeSet<_> = world.voters().into_iter().collect();
        let killed = world.kill(leaving).await;
        world
            .settle("as many voters without it", move |world| {
                let voters = world.voters();
                voters.len() == seats && !voters.contains(&leaving)
            })
            .await;
        world.nodes.remove(&leaving);
        let after: BTreeSet<_> = world.voters().into_iter().collect();
        let counts = world.up().into_iter().map(|number| world.cluster(number).snapshots());
        let (made, taken) = counts.fold((0, 0), |sum, of| (sum.0 + of.built, sum.1 + of.installed));
        built.set(made);
        installed.set(taken);
        killed && after.difference(&before).count() > 0
    })
    .await;
    assert!(built.get() > 0, "no snapshot was made");
    assert!(installed.get() > 0, "nobody was brought up to date by a snapshot");
}

#[test]
fn a_seed_replays_to_the_same_messages() {
    let scenario = async |world: &mut World| {
        world.mesh(3).await;
        endure(world, 1, kill_the_leader).await;
    };
    let (first, again, other) = (World::run(7, &scenario), World::run(7, &scenario), World::run(8, &scenario));
    assert_eq!(first, again, "the same seed gave another run");
    assert_ne!(first, other, "another seed gave the same run");
}
