use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use types::{NodeId, Role};

use super::fabric::Fabric;
use super::virtual_time::{Spawner, VirtualTime};
use crate::{
    Allowed, Caller, Error, Member, Net, Protocol, Refusal, RequestSpec, Roles, Services, StreamSpec, TopicSpec,
    Verdict,
};

const ECHO: RequestSpec = RequestSpec {
    protocol: Protocol::new("/test/echo/2"),
    roles: Roles::ALL,
    request_bytes_max: 1000,
    response_bytes_max: 1000,
    deadline: Duration::from_secs(2),
    concurrency_per_peer: 2,
};
const SLOW: RequestSpec = RequestSpec { protocol: Protocol::new("/test/slow/1"), ..ECHO };
const VOTE: RequestSpec = RequestSpec { protocol: Protocol::new("/test/vote/1"), roles: Roles::NODES, ..ECHO };
const COPY: StreamSpec = StreamSpec {
    protocol: Protocol::new("/test/copy/1"),
    allowed: Allowed::Members(Roles::ALL),
    concurrency_per_peer: 2,
    concurrency_total: 3,
};
const JOIN: StreamSpec = StreamSpec { protocol: Protocol::new("/test/join/1"), allowed: Allowed::Strangers, ..COPY };
const NEWS: TopicSpec = TopicSpec { name: "news", roles: Roles::NODES, message_bytes_max: 100 };

type Heard = Arc<Mutex<Vec<(Caller, Bytes)>>>;

/// A mesh on virtual time. Node 0, 1, … have the role `Node`, the last one is a worker.
struct World {
    time: VirtualTime,
    spawner: Spawner,
    fabric: Fabric,
    nodes: RefCell<Vec<(NodeId, Net, CancellationToken)>>,
    heard: Heard,
}

impl World {
    fn new(seed: u64, count: u8) -> Rc<Self> {
        let time = VirtualTime::default();
        let world = Rc::new(Self {
            fabric: Fabric::new(seed, time.clock()),
            time,
            spawner: Spawner::default(),
            nodes: RefCell::default(),
            heard: Heard::default(),
        });
        for number in 0..count {
            world.start(id(number));
        }
        for number in 0..usize::from(count) {
            world.net(number).admit(members(count));
        }
        world
    }

    fn start(&self, id: NodeId) -> Net {
        let (net, task) = self.fabric.join(id);
        let (shutdown, heard) = (CancellationToken::new(), self.heard.clone());
        let clock = self.time.clock();
        let services = Services::new()
            .on_request(ECHO, |_, body| Box::pin(async { Ok(body) }))
            .on_request(VOTE, |_, body| Box::pin(async { Ok(body) }))
            .on_request(SLOW, move |_, body| {
                let clock = clock.clone();
                Box::pin(async move {
                    clock.sleep(Duration::from_secs(60)).await;
                    Ok(body)
                })
            })
            .on_stream(COPY, |_, stream| Box::pin(copy(stream)))
            .on_stream(JOIN, |_, stream| Box::pin(copy(stream)))
            .on_topic(NEWS, move |caller, body| {
                heard.lock().unwrap().push((caller, body));
                Verdict::Accept
            });
        self.spawner.spawn(task.run(services, shutdown.clone()));
        self.nodes.borrow_mut().push((id, net.clone(), shutdown));
        net
    }

    fn net(&self, number: usize) -> Net {
        self.nodes.borrow()[number].1.clone()
    }

    fn run<T: 'static, F: Future<Output = T> + 'static>(self: Rc<Self>, scenario: impl FnOnce(Rc<Self>) -> F) -> T {
        let (time, spawner) = (self.time.clone(), self.spawner.clone());
        let clock = time.clock();
        let scenario = scenario(self);
        // Lets the tasks begin.
        time.run(&spawner, async move {
            clock.sleep(Duration::from_millis(1)).await;
            scenario.await
        })
    }
}

async fn copy(stream: crate::ByteStream) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
        let _ = writer.shutdown().await;
    }
}

fn id(number: u8) -> NodeId {
    NodeId::from_public_key([number; 32])
}

fn members(count: u8) -> Vec<Member> {
    let role = |number| if number + 1 == count { Role::Worker } else { Role::Node };
    (0..count).map(|n| Member { id: id(n), role: role(n), mesh: Vec::new(), bulk: Vec::new() }).collect()
}

async fn echo(net: &Net, to: u8) -> Result<Bytes, Error> {
    net.request(id(to), ECHO.protocol, Bytes::from_static(b"hello")).await
}

#[test]
fn members_exchange_requests_streams_and_gossip() {
    let world = World::new(1, 3);
    let heard = world.heard.clone();
    world.run(|world| async move {
        let net = world.net(0);
        assert_eq!(echo(&net, 1).await.unwrap(), "hello");
        let mut stream = net.connect(id(1), COPY.protocol).await.unwrap();
        stream.write_all(&[7; 5000]).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, [7; 5000]);
        net.publish(NEWS.name, Bytes::from_static(b"news")).unwrap();
        world.time.clock().sleep(Duration::from_secs(1)).await;
        assert!(net.peers().iter().all(|peer| peer.connected && peer.score == 0.0));
    });
    let heard = heard.lock().unwrap();
    assert_eq!(heard.len(), 2, "both others heard it once: {heard:?}");
    assert!(heard.iter().all(|(caller, body)| caller.id == id(0) && body == "news"));
}

#[test]
fn a_stranger_reaches_nothing_but_what_is_for_strangers() {
    World::new(1, 2).run(|world| async move {
        let stranger = world.start(id(9));
        // It may believe what it likes about the mesh.
        stranger.admit(members(2));
        let address = |net: &Net| *net.addresses().bulk.first().unwrap();
        let target = address(&world.net(0));
        for protocol in [ECHO.protocol, VOTE.protocol, SLOW.protocol, Protocol::new("/test/none/1")] {
            let refused = stranger.request(id(0), protocol, Bytes::new()).await.unwrap_err();
            let expected = match protocol.name() {
                "/test/none/1" => matches!(refused, Error::Undeclared(_)),
                _ => matches!(refused, Error::Refused { refusal: Refusal::NotAMember, .. }),
            };
            assert!(expected, "{refused}");
        }
        for protocol in [COPY.protocol, Protocol::new("/test/none/1"), Protocol::new("/test/copy/9")] {
            let refused = stranger.connect_stranger(target, id(0), protocol).await.unwrap_err();
            assert!(matches!(refused, Error::Refused { refusal: Refusal::NotAMember, .. }), "{refused}");
        }
        stranger.publish(NEWS.name, Bytes::from_static(b"lies")).unwrap();
        let mut stream = stranger.connect_stranger(target, id(0), JOIN.protocol).await.unwrap();
        stream.write_all(b"let me in").await.unwrap();
        stream.flush().await.unwrap();
        let mut back = [0; 9];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"let me in");
        let wrong = stranger.connect_stranger(target, id(1), JOIN.protocol).await.unwrap_err();
        assert!(matches!(wrong, Error::WrongPeer { .. }), "{wrong}");
        assert!(world.heard.lock().unwrap().is_empty());
    });
}

#[test]
fn a_role_gets_only_what_is_declared_for_it_and_asking_for_more_is_counted() {
    World::new(1, 3).run(|world| async move {
        let worker = world.net(2);
        let refused = worker.request(id(0), VOTE.protocol, Bytes::new()).await.unwrap_err();
        assert!(matches!(refused, Error::Refused { refusal: Refusal::RoleNotAllowed, .. }), "{refused}");
        let score = |world: &World| world.net(0).peers().into_iter().find(|peer| peer.id == id(2)).unwrap().score;
        assert!(score(&world) > 0.0);
        for _ in 0..4 {
            worker.request(id(0), VOTE.protocol, Bytes::new()).await.unwrap_err();
        }
        let cut = echo(&worker, 0).await.unwrap_err();
        assert!(matches!(cut, Error::Refused { refusal: Refusal::CutOff, .. }), "{cut}");
        world.time.clock().sleep(Duration::from_secs(61)).await;
        assert_eq!(echo(&worker, 0).await.unwrap(), "hello", "it may come back after a while");
    });
}

#[test]
fn a_removed_member_loses_its_streams_and_its_requests_at_once() {
    World::new(1, 3).run(|world| async move {
        let (keeper, leaver) = (world.net(0), world.net(1));
        let mut stream = leaver.connect(id(0), COPY.protocol).await.unwrap();
        let mut own = keeper.connect(id(1), COPY.protocol).await.unwrap();
        let asking = Rc::new(RefCell::new(None));
        let (answer, net) = (asking.clone(), leaver.clone());
        world.spawner.spawn(async move {
            let outcome = net.request(id(0), SLOW.protocol, Bytes::new()).await;
            *answer.borrow_mut() = Some(outcome);
        });
        world.time.clock().sleep(Duration::from_millis(100)).await;
        assert!(asking.borrow().is_none());
        keeper.admit(members(3).into_iter().filter(|member| member.id != id(1)).collect());
        world.time.clock().sleep(Duration::from_millis(1)).await;
        let outcome = asking.borrow_mut().take().unwrap().unwrap_err();
        assert!(matches!(outcome, Error::Refused { refusal: Refusal::NotAMember, .. }), "{outcome}");
        assert!(stream.read_u8().await.is_err(), "its stream to us is cut");
        assert_eq!(own.write_u8(1).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
        assert!(matches!(echo(&keeper, 1).await, Err(Error::NotAMember { .. })));
        assert!(matches!(echo(&leaver, 0).await, Err(Error::Refused { refusal: Refusal::NotAMember, .. })));
    });
}

#[test]
fn too_much_at_once_is_refused_as_busy_and_too_large_is_not_sent() {
    World::new(1, 2).run(|world| async move {
        let net = world.net(0);
        let streams = [net.connect(id(1), COPY.protocol).await, net.connect(id(1), COPY.protocol).await];
        assert!(streams.iter().all(Result::is_ok));
        let third = net.connect(id(1), COPY.protocol).await.unwrap_err();
        assert!(matches!(third, Error::Refused { refusal: Refusal::Busy, .. }) && third.retry(), "{third}");
        drop(streams);
        world.time.clock().sleep(Duration::from_millis(1)).await;
        net.connect(id(1), COPY.protocol).await.unwrap();
        let large = net.request(id(1), ECHO.protocol, vec![0; 1001].into()).await.unwrap_err();
        assert!(matches!(large, Error::TooLarge { bytes: 1001, max: 1000, .. }), "{large}");
    });
}

#[test]
fn a_slow_handler_meets_the_deadline() {
    World::new(1, 2).run(|world| async move {
        let clock = world.time.clock();
        let before = clock.elapsed();
        let late = world.net(0).request(id(1), SLOW.protocol, Bytes::new()).await.unwrap_err();
        assert!(late.maybe_done(), "{late}");
        assert_eq!(clock.elapsed() - before, SLOW.deadline);
        let short = Duration::from_millis(50);
        let early = world.net(0).request_within(id(1), SLOW.protocol, Bytes::new(), short).await.unwrap_err();
        assert!(matches!(early, Error::Deadline { after, .. } if after == short), "{early}");
    });
}

#[test]
fn a_one_way_cut_loses_one_way_only() {
    World::new(1, 3).run(|world| async move {
        world.fabric.cut(id(0), id(1));
        assert!(matches!(echo(&world.net(0), 1).await, Err(Error::Deadline { .. })), "the request is lost");
        assert_eq!(world.fabric.stats().cut, 1);
        assert!(matches!(echo(&world.net(1), 0).await, Err(Error::Deadline { .. })), "the answer is lost");
        assert_eq!(world.fabric.stats().cut, 2);
        assert_eq!(echo(&world.net(0), 2).await.unwrap(), "hello");
        let connected = |a: usize, b: u8| world.net(a).peers().iter().any(|peer| peer.id == id(b) && peer.connected);
        assert!(!connected(0, 1) && !connected(1, 0) && connected(0, 2));
        world.fabric.heal();
        assert_eq!(echo(&world.net(0), 1).await.unwrap(), "hello");
        assert!(connected(0, 1));
    });
}

#[test]
fn a_stream_stalls_at_a_cut_and_goes_on_after_it() {
    World::new(1, 2).run(|world| async move {
        let mut stream = world.net(0).connect(id(1), COPY.protocol).await.unwrap();
        world.fabric.isolate(id(1));
        stream.write_all(b"x").await.unwrap();
        stream.flush().await.unwrap();
        let clock = world.time.clock();
        let early = clock.within(Duration::from_secs(30), stream.read_u8()).await;
        assert!(early.is_none() && world.fabric.stats().cut > 0);
        world.fabric.heal();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    });
}

#[test]
fn what_is_not_flushed_need_not_arrive() {
    World::new(1, 2).run(|world| async move {
        let mut stream = world.net(0).connect(id(1), COPY.protocol).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        let clock = world.time.clock();
        assert!(clock.within(Duration::from_secs(5), stream.read_u8()).await.is_none());
        stream.flush().await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    });
}

#[test]
fn a_paused_node_answers_when_it_resumes() {
    World::new(1, 2).run(|world| async move {
        world.fabric.pause(id(1));
        let (fabric, clock) = (world.fabric.clone(), world.time.clock());
        world.spawner.spawn(async move {
            clock.sleep(Duration::from_secs(1)).await;
            fabric.resume(id(1));
        });
        let before = world.time.clock().elapsed();
        assert_eq!(echo(&world.net(0), 1).await.unwrap(), "hello");
        assert!(world.time.clock().elapsed() - before >= Duration::from_millis(999));
        assert_eq!(world.fabric.stats().held, 1);
    });
}

#[test]
fn latency_takes_its_time_and_loss_its_share() {
    World::new(3, 2).run(|world| async move {
        let clock = world.time.clock();
        world.fabric.set_latency(Duration::from_millis(10)..=Duration::from_millis(20));
        let before = clock.elapsed();
        echo(&world.net(0), 1).await.unwrap();
        let took = clock.elapsed() - before;
        assert!((Duration::from_millis(20)..=Duration::from_millis(40)).contains(&took), "{took:?}");
        world.fabric.set_loss(0.5);
        let mut lost = 0;
        for _ in 0..100 {
            lost += u32::from(echo(&world.net(0), 1).await.is_err());
        }
        // Three of four lose the request or the answer.
        assert!((60..90).contains(&lost), "{lost}");
        assert_eq!(u64::from(lost), world.fabric.stats().lost);
    });
}

#[test]
fn a_node_that_stopped_is_refused_and_its_streams_break_until_it_is_back() {
    World::new(1, 2).run(|world| async move {
        let net = world.net(0);
        let mut stream = net.connect(id(1), COPY.protocol).await.unwrap();
        let old = world.nodes.borrow()[1].clone();
        old.2.cancel();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
        let gone = echo(&net, 1).await.unwrap_err();
        assert!(matches!(gone, Error::Unreachable { .. }) && !gone.maybe_done(), "{gone}");
        assert!(matches!(echo(&old.1, 0).await, Err(Error::NotRunning)));
        world.start(id(1)).admit(members(2));
        world.time.clock().sleep(Duration::from_millis(1)).await;
        assert_eq!(echo(&net, 1).await.unwrap(), "hello");
    });
}

#[test]
fn an_old_node_says_which_version_it_speaks() {
    World::new(1, 2).run(|world| async move {
        let old = world.net(0).connect(id(1), Protocol::new("/test/copy/3")).await.unwrap_err();
        let speaks = Refusal::UnknownProtocol { speaks: Some(1) };
        assert!(matches!(&old, Error::Refused { refusal, .. } if *refusal == speaks), "{old}");
        assert_eq!(old.hint().as_deref(), Some("upgrade the other node"));
    });
}

/// Chatter under loss, latency, cuts and a pause.
fn chatter(seed: u64) -> (u64, super::Stats) {
    World::new(seed, 4).run(|world| async move {
        world.fabric.set_latency(Duration::from_millis(1)..=Duration::from_millis(30));
        world.fabric.set_loss(0.1);
        for round in 0..20 {
            match round {
                5 => world.fabric.cut(id(0), id(1)),
                8 => world.fabric.pause(id(2)),
                12 => world.fabric.resume(id(2)),
                15 => world.fabric.heal(),
                _ => {}
            }
            for from in 0..4u8 {
                let net = world.net(usize::from(from));
                net.publish(NEWS.name, Bytes::from_static(b"news")).unwrap();
                world.spawner.spawn(async move {
                    let _ = echo(&net, (from + 1) % 4).await;
                });
            }
            world.time.clock().sleep(Duration::from_millis(20)).await;
        }
        world.time.clock().sleep(Duration::from_secs(10)).await;
        (world.fabric.trace(), world.fabric.stats())
    })
}

#[test]
fn a_seed_replays_to_the_same_trace() {
    let first = chatter(7);
    let stats = first.1;
    assert!(stats.lost > 0 && stats.cut > 0 && stats.held > 0, "the faults were there: {stats:?}");
    assert_eq!(chatter(7), first);
    assert_ne!(chatter(8).0, first.0);
}
