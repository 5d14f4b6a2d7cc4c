//! The real network on loopback, every port chosen by the system.

#![expect(clippy::unwrap_used, reason = "also in what the tests share")]

#[path = "loopback/peer.rs"]
mod peer;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use net::{Config, Error, Keypair, Limits, Member, Protocol, Refusal, RequestSpec, Services};
use peer::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use types::Role;

#[tokio::test(flavor = "multi_thread")]
async fn members_exchange_requests_streams_and_gossip() {
    let [a, b] = pair(Role::Node).await;
    assert_eq!(a.echo(&b, b"hello").await.unwrap(), "hello");
    assert_eq!(b.echo(&a, b"hello").await.unwrap(), "hello");
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(a.net.connect(b.id(), COPY.protocol).await.unwrap());
    let mut back = Vec::new();
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(reader.read_to_end(&mut back), write);
    read.unwrap();
    assert!(back == sent, "three megabytes came back changed");
    eventually("gossip is heard", || {
        // Said again until it is heard: a hint may be lost while the two are still finding each other.
        let _ = a.net.publish(NEWS.name, Bytes::from_static(b"news"));
        b.heard().iter().any(|(caller, body)| caller.id == a.id() && body == "news")
    })
    .await;
    let status = a.status(&b);
    assert!(status.connected && status.score == 0.0 && status.last_seen.is_some(), "{status:?}");
    let via = status.via.unwrap();
    assert!(via.starts_with("/ip4/127.0.0.1/"), "{via}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_reaches_nothing_but_what_is_for_strangers() {
    let [a, b] = pair(Role::Node).await;
    let stranger = Peer::start(9).await;
    // It may believe what it likes about the mesh.
    stranger.net.admit(vec![a.member(Role::Node), b.member(Role::Node), stranger.member(Role::Node)]);
    let asked = stranger.echo(&a, b"hello").await.unwrap_err();
    assert!(matches!(asked, Error::Unreachable { .. } | Error::Broken { .. }), "{asked}");
    let opened = stranger.net.connect(a.id(), COPY.protocol).await.unwrap_err();
    assert!(matches!(opened, Error::Refused { refusal: Refusal::NotAMember, .. }), "{opened}");
    let opened = stranger.net.connect_stranger(a.bulk(), a.id(), COPY.protocol).await.unwrap_err();
    assert!(matches!(opened, Error::Refused { refusal: Refusal::NotAMember, .. }), "{opened}");
    let opened = stranger.net.connect_stranger(a.bulk(), a.id(), Protocol::new("/test/none/1")).await.unwrap_err();
    assert!(matches!(opened, Error::Refused { refusal: Refusal::UnknownProtocol { .. }, .. }), "{opened}");
    let mut joining = stranger.net.connect_stranger(a.bulk(), a.id(), JOIN.protocol).await.unwrap();
    joining.write_all(b"let me in").await.unwrap();
    joining.flush().await.unwrap();
    let mut back = [0; 9];
    joining.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"let me in");
    let caller = *a.joined().first().unwrap();
    assert_eq!((caller.id, caller.role), (stranger.id(), None));
    assert!(caller.address.is_some());
    stranger.net.publish(NEWS.name, Bytes::from_static(b"lies")).unwrap();
    a.net.publish(NEWS.name, Bytes::from_static(b"marker")).unwrap();
    eventually("what a member says is heard", || {
        let _ = a.net.publish(NEWS.name, Bytes::from_static(b"marker"));
        b.heard().iter().any(|(_, body)| body == "marker")
    })
    .await;
    assert!(a.heard().iter().chain(&b.heard()).all(|(_, body)| body != "lies"));
    assert!(!stranger.status(&a).connected);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_at_the_address_is_told_nothing() {
    let [a, b] = pair(Role::Node).await;
    let wrong = b.net.connect_stranger(a.bulk(), Keypair::from_seed([77; 32]).node_id(), JOIN.protocol).await;
    let Error::WrongPeer { found, .. } = wrong.unwrap_err() else { panic!("not seen as the wrong peer") };
    assert_eq!(found, a.id());
    assert!(a.joined().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_is_cut_off_on_every_way_at_once() {
    let [keeper, leaver] = pair(Role::Node).await;
    leaver.net.admit(vec![keeper.member(Role::Node), leaver.member(Role::Node)]);
    let mut direct = leaver.net.connect(keeper.id(), COPY.protocol).await.unwrap();
    let mut own = keeper.net.connect(leaver.id(), COPY.protocol).await.unwrap();
    // Through the mesh connection.
    let nowhere = Member { bulk: vec![closed_port()], ..keeper.member(Role::Node) };
    leaver.net.admit(vec![nowhere, leaver.member(Role::Node)]);
    let mut detour = leaver.net.connect(keeper.id(), COPY.protocol).await.unwrap();
    for stream in [&mut direct, &mut own, &mut detour] {
        stream.write_u8(7).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 7);
    }
    let asking = leaver.net.request(keeper.id(), SLOW.protocol, Bytes::new());
    let removing = async {
        eventually("the request is being answered", || keeper.slow() == 1).await;
        let before = Instant::now();
        keeper.net.admit(vec![keeper.member(Role::Node)]);
        before
    };
    let (asked, removed_at) = tokio::join!(asking, removing);
    let asked = asked.unwrap_err();
    assert!(removed_at.elapsed() < SLOW.deadline, "only the deadline ended it");
    assert!(matches!(asked, Error::Refused { refusal: Refusal::NotAMember, .. } | Error::Broken { .. }), "{asked}");
    for stream in [direct, detour, own] {
        within(async { { stream }.read_u8().await.unwrap_err() }).await;
    }
    eventually("the mesh connection is closed", || !leaver.status(&keeper).connected).await;
    let again = leaver.net.connect(keeper.id(), COPY.protocol).await.unwrap_err();
    assert!(matches!(again, Error::Unreachable { .. }), "{again}");
    leaver.net.admit(vec![keeper.member(Role::Node), leaver.member(Role::Node)]);
    let again = leaver.net.connect(keeper.id(), COPY.protocol).await.unwrap_err();
    assert!(matches!(again, Error::Refused { refusal: Refusal::NotAMember, .. }), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversize_request_is_refused_and_counted_until_its_sender_is_cut_off() {
    let generous = RequestSpec { request_bytes_max: 500_000, ..ECHO };
    let a = Peer::serving(1, Services::new().sends_request(generous)).await;
    let b = Peer::start(2).await;
    introduce(&[&a, &b], Role::Node).await;
    let refused = a.net.request(b.id(), ECHO.protocol, vec![0; 400_000].into()).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { refusal: Refusal::TooLarge, .. }), "{refused}");
    let status = b.status(&a);
    assert!(status.score > 10.0 && !status.cut_off, "{status:?}");
    for _ in 0..5 {
        let _ = a.net.request(b.id(), ECHO.protocol, vec![0; 400_000].into()).await;
    }
    eventually("it is cut off", || b.status(&a).cut_off && !b.status(&a).connected).await;
    let refused = a.net.connect(b.id(), COPY.protocol).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { refusal: Refusal::CutOff, .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversize_answer_is_refused_and_counted() {
    let strict = RequestSpec { response_bytes_max: 10, ..ECHO };
    let a = Peer::serving(1, Services::new().sends_request(strict)).await;
    let b = Peer::start(2).await;
    introduce(&[&a, &b], Role::Node).await;
    assert_eq!(a.echo(&b, b"short").await.unwrap(), "short");
    for (bytes, name) in [(11, "what its protocol allows"), (5000, "what any protocol allows")] {
        let refused = a.net.request(b.id(), ECHO.protocol, vec![0; bytes].into()).await.unwrap_err();
        assert!(
            matches!(refused, Error::AnswerTooLarge { .. } | Error::Malformed { .. }),
            "larger than {name}: {refused}"
        );
    }
    assert!(a.status(&b).score > 30.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handler_meets_the_deadline() {
    let [a, b] = pair(Role::Node).await;
    let short = Duration::from_millis(100);
    let late = a.net.request_within(b.id(), SLOW.protocol, Bytes::new(), short).await.unwrap_err();
    assert!(matches!(late, Error::Deadline { after, .. } if after == short) && late.maybe_done(), "{late}");
    let late = a.net.request(b.id(), SLOW.protocol, Bytes::new()).await.unwrap_err();
    assert!(late.maybe_done(), "{late}");
    eventually("the handlers are dropped", || b.slow() == 0).await;
    assert_eq!(b.status(&a).score, 0.0, "to ask is no fault");
    assert_eq!(a.status(&b).score, 0.0, "to be slow is none either");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_refused_what_is_for_nodes() {
    let [a, worker] = pair(Role::Worker).await;
    let refused = worker.net.request(a.id(), VOTE.protocol, Bytes::new()).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { refusal: Refusal::RoleNotAllowed, .. }), "{refused}");
    let refused = worker.net.connect(a.id(), SNAPSHOT.protocol).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { refusal: Refusal::RoleNotAllowed, .. }), "{refused}");
    assert!(a.status(&worker).score > 0.0);
    assert_eq!(worker.echo(&a, b"hello").await.unwrap(), "hello", "the rest goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_protocol_is_refused_with_the_version_spoken() {
    let newer = RequestSpec { protocol: Protocol::new("/test/echo/7"), ..ECHO };
    let a = Peer::serving(1, Services::new().sends_request(newer)).await;
    let b = Peer::start(2).await;
    introduce(&[&a, &b], Role::Node).await;
    let refused = a.net.request(b.id(), newer.protocol, Bytes::from_static(b"x")).await.unwrap_err();
    let speaks = Refusal::UnknownProtocol { speaks: Some(2) };
    assert!(matches!(&refused, Error::Refused { refusal, .. } if *refusal == speaks), "{refused}");
    assert_eq!(refused.hint().as_deref(), Some("upgrade the other node"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_streams_is_served_whole_on_either_way() {
    let [a, b] = pair(Role::Node).await;
    for way in ["direct", "through the mesh"] {
        let bulk = if way == "direct" { vec![b.bulk()] } else { vec![closed_port()] };
        a.net.admit(vec![a.member(Role::Node), Member { bulk, ..b.member(Role::Node) }]);
        let one = |n: u64| {
            let (net, peer) = (a.net.clone(), b.id());
            async move {
                let mut stream = net.connect(peer, COPY.protocol).await?;
                let echoed = async {
                    stream.write_u64(n).await.unwrap();
                    stream.flush().await.unwrap();
                    stream.read_u64().await.unwrap()
                };
                Ok::<_, Error>(within(echoed).await == n)
            }
        };
        let served = join_all((0..200).map(one)).await;
        let failed: Vec<_> = served.iter().filter(|served| !matches!(served, Ok(true))).collect();
        assert!(failed.is_empty(), "{way}: {} of 200 failed, one with {:?}", failed.len(), failed[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_and_says_nothing_is_hung_up_on() {
    let limits = Limits { handshake: Duration::from_millis(200), ..Limits::default() };
    let a = Peer::with(1, echoing, limits).await;
    let mut silent = TcpStream::connect(a.bulk()).await.unwrap();
    let mut byte = [0];
    let end = within(silent.read(&mut byte)).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_that_knock_too_much_are_turned_away_and_leave_members_their_places() {
    let limits = Limits { stranger_handshakes_per_address_max: 2, ..Limits::default() };
    let a = Peer::with(1, echoing, limits).await;
    let knock = || async { TcpStream::connect(a.bulk()).await.unwrap() };
    let (mut first, mut second, mut third) = (knock().await, knock().await, knock().await);
    let mut byte = [0];
    let end = within(third.read(&mut byte)).await;
    assert!(matches!(end, Ok(0) | Err(_)), "the third is closed at once: {end:?}");
    // The other two are still being waited for: they may begin a handshake.
    for socket in [&mut first, &mut second] {
        assert!(tokio::time::timeout(Duration::from_millis(50), socket.read(&mut byte)).await.is_err());
    }
    let b = Peer::start(2).await;
    introduce(&[&a, &b], Role::Node).await;
    b.net.connect(a.id(), COPY.protocol).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_comes_back_on_other_ports_is_found_again() {
    let [a, b] = pair(Role::Node).await;
    let id = b.id();
    b.stop().await;
    eventually("the loss is noticed", || !a.net.peers()[0].connected).await;
    let gone = a.net.connect(id, COPY.protocol).await.unwrap_err();
    assert!(gone.retry() && !gone.maybe_done(), "{gone}");
    let b = Peer::start(2).await;
    assert_eq!(b.id(), id);
    // Only one side hears of the new addresses, as after a change in the registry that has not reached everyone.
    a.net.admit(vec![a.member(Role::Node), b.member(Role::Node)]);
    b.net.admit(vec![Member { mesh: Vec::new(), ..a.member(Role::Node) }, b.member(Role::Node)]);
    eventually("they are connected again", || a.status(&b).connected && b.status(&a).connected).await;
    assert_eq!(b.echo(&a, b"back").await.unwrap(), "back");
    a.net.connect(id, COPY.protocol).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let a = Peer::start(1).await;
    let mesh = a.mesh_port();
    for (what, mesh, bulk) in [("bulk", LOOPBACK, a.bulk()), ("mesh", mesh, LOOPBACK)] {
        let taken = if what == "bulk" { bulk } else { mesh };
        let keypair = Keypair::from_seed([2; 32]);
        let config = Config { keypair, mesh, bulk, mdns: false, limits: Limits::default() };
        let error = net::new(config).await.unwrap_err();
        assert!(matches!(&error, Error::Bind { address, .. } if *address == taken), "{error}");
        assert!(error.to_string().contains(&taken.to_string()) && error.hint().is_some(), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_network_says_so_and_leaves_nothing_waiting() {
    let [a, b] = pair(Role::Node).await;
    let mut stream = a.net.connect(b.id(), COPY.protocol).await.unwrap();
    let net = a.net.clone();
    let peer = b.id();
    let asking = tokio::task::JoinSet::from_iter([async move { net.request(peer, SLOW.protocol, Bytes::new()).await }]);
    eventually("the request is being answered", || b.slow() == 1).await;
    let net = a.net.clone();
    a.stop().await;
    let asked = within(asking.join_all()).await.remove(0).unwrap_err();
    assert!(matches!(asked, Error::NotRunning), "{asked}");
    assert!(within(stream.read_u8()).await.is_err());
    assert!(matches!(net.request(b.id(), ECHO.protocol, Bytes::new()).await, Err(Error::NotRunning)));
    assert!(matches!(net.connect(b.id(), COPY.protocol).await, Err(Error::NotRunning)));
    eventually("the handler is dropped", || b.slow() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_costs_its_caller_one_request() {
    let panicking = |_| {
        Services::new()
            .on_request(ECHO, |_, body| Box::pin(async { Ok(body) }))
            .on_request(VOTE, |_, _| Box::pin(async { panic!("as the test wants") }))
            .on_stream(COPY, |_, _| Box::pin(async { panic!("as the test wants") }))
    };
    let (a, b) = (Peer::start(1).await, Peer::with(2, panicking, Limits::default()).await);
    introduce(&[&a, &b], Role::Node).await;
    let lost = a.net.request(b.id(), VOTE.protocol, Bytes::new()).await.unwrap_err();
    assert!(lost.maybe_done(), "{lost}");
    let mut stream = a.net.connect(b.id(), COPY.protocol).await.unwrap();
    assert!(within(stream.read_u8()).await.is_err());
    assert_eq!(a.echo(&b, b"still here").await.unwrap(), "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unspecified_address_is_published_as_those_of_the_interfaces() {
    let any = (std::net::Ipv4Addr::UNSPECIFIED, 0).into();
    let keypair = Keypair::from_seed([1; 32]);
    let config = Config { keypair, mesh: any, bulk: any, mdns: false, limits: Limits::default() };
    let (net, _task) = net::new(config).await.unwrap();
    let addresses = net.addresses();
    assert!(!addresses.mesh.is_empty() && !addresses.bulk.is_empty());
    assert!(addresses.bulk.iter().all(|address| !address.ip().is_unspecified() && address.port() != 0));
    assert!(addresses.mesh.iter().all(|address| !address.contains("/0.0.0.0/") && !address.contains("/tcp/0")));
}
