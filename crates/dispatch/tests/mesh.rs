//! Requests over nodes in memory that die, hang and fail, on a clock that jumps.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

#[path = "mesh/fake.rs"]
mod fake;

use std::sync::Arc;
use std::time::Duration;

use dispatch::{Answer, Config, Cut, Error, Failure, Handle, Request, What};
use fake::{Health, Kept, MODEL, Mesh, Net, SHAPE, Shape, View, node};
use scheduler::{Chain, Class, Dice, ModelKey, Seconds, Tenant, Work};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use types::RequestId;

type Gateway = Handle<Net, View>;

/// The tasks beside the requests: they end with the test.
struct Stand {
    mesh: Arc<Mesh>,
    gateway: Gateway,
    _tasks: JoinSet<()>,
}

/// Answers that break off are lost.
fn stand(shapes: impl IntoIterator<Item = Shape>, seed: u64) -> Stand {
    stand_that_keeps(Kept::Nothing, shapes, seed)
}

fn stand_that_keeps(kept: Kept, shapes: impl IntoIterator<Item = Shape>, seed: u64) -> Stand {
    let mesh = Mesh::new(shapes);
    let net = Net { mesh: mesh.clone(), kept };
    let (gateway, task) = dispatch::new(Config { own: None, seed }, net, View(mesh.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run());
    Stand { mesh, gateway, _tasks: tasks }
}

fn request(id: u64) -> Request<u64> {
    let mut name = [0; 16];
    name[..8].copy_from_slice(&id.to_le_bytes());
    let work = Work {
        model: MODEL,
        chain: Chain::default(),
        prompt: 100,
        output: 20,
        context: None,
        class: Class::Interactive,
        tenant: Tenant::ANONYMOUS,
        deadline: None,
    };
    Request { id: RequestId::from_bytes(name), work, streams: true, payload: id }
}

/// Reads it to its end; what it says has to be one node's tokens in their order.
async fn read(mut answer: Answer<Net, View>) -> Result<u32, (u32, Cut)> {
    let mut count = 0;
    while let Some(piece) = answer.next().await {
        match piece {
            Ok(piece) => assert_eq!(piece, format!("{} {count}", answer.node())),
            Err(cut) => {
                assert!(answer.next().await.is_none(), "after an error nothing follows");
                return Err((count, cut));
            }
        }
        count += 1;
    }
    Ok(count)
}

/// Whom it is sent to first, once it is there.
async fn until_active(mesh: &Mesh, count: usize) {
    let active = async {
        while mesh.active() != count {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), active).await.unwrap();
}

/// Node 1 is the better one.
fn two() -> [Shape; 2] {
    [SHAPE, Shape { prefill: Duration::from_millis(400), ..SHAPE }]
}

#[tokio::test(start_paused = true)]
async fn second_node_answers_when_the_first_dies_before_its_first_token() {
    let Stand { mesh, gateway, _tasks } = stand(two(), 1);
    let killer = async {
        until_active(&mesh, 1).await;
        mesh.make(1, Health::Dead);
    };
    let (answer, ()) = tokio::join!(gateway.run(request(1)), killer);
    let answer = answer.unwrap();
    assert_eq!((answer.node(), answer.sends()), (node(2), 2));
    assert_eq!(read(answer).await.unwrap(), 20);
    let trace = gateway.trace(request(1).id).unwrap();
    assert!(matches!(trace.steps.last().unwrap().what, What::Ended) && trace.sent() == 2);
    assert!(trace.phases().waiting >= Duration::from_millis(400), "{:?}", trace.phases());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_hangs_is_left_within_five_seconds_by_those_that_have_not_started() {
    let Stand { mesh, gateway, _tasks } = stand(two(), 1);
    let begun = Instant::now();
    let freezer = async {
        until_active(&mesh, 1).await;
        mesh.make(1, Health::Frozen);
    };
    let (answer, ()) = tokio::join!(gateway.run(request(1)), freezer);
    let answer = answer.unwrap();
    assert_eq!(answer.node(), node(2));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(read(answer).await.unwrap(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_was_found_frozen_is_not_asked_until_it_answers_again() {
    let shapes = [SHAPE, Shape { prefill: Duration::from_secs(1), ..SHAPE }];
    let Stand { mesh, gateway, _tasks } = stand(shapes, 1);
    let freezer = async {
        until_active(&mesh, 1).await;
        mesh.make(1, Health::Frozen);
    };
    let (answer, ()) = tokio::join!(gateway.run(request(1)), freezer);
    read(answer.unwrap()).await.unwrap();
    let answer = gateway.run(request(2)).await.unwrap();
    assert!(answer.node() == node(2) && answer.sends() == 1);
    drop(answer);
    mesh.make(1, Health::Well);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(gateway.run(request(3)).await.unwrap().node(), node(1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_never_looks_like_a_whole_one() {
    for ill in [Health::Dead, Health::Frozen] {
        let Stand { mesh, gateway, _tasks } = stand(two(), 1);
        let mut answer = gateway.run(request(1)).await.unwrap();
        for _ in 0..5 {
            answer.next().await.unwrap().unwrap();
        }
        mesh.make(1, ill);
        let begun = Instant::now();
        let cut = answer.next().await.unwrap().unwrap_err();
        assert_eq!(cut.node, node(1));
        assert_eq!(matches!(cut.why, Failure::Frozen), ill == Health::Frozen, "{cut:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(answer.next().await.is_none() && gateway.running() == 0);
        assert_eq!(mesh.books().taken, 1, "what was shown to a client is not run again");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_whose_node_dies_or_hangs_goes_on_at_another_one() {
    for kept in [Kept::Told, Kept::Contradicted] {
        for ill in [Health::Dead, Health::Frozen] {
            let Stand { mesh, gateway, _tasks } = stand_that_keeps(kept, two(), 1);
            let mut answer = gateway.run(request(1)).await.unwrap();
            for count in 0..5 {
                assert_eq!(answer.next().await.unwrap().unwrap(), format!("{} {count}", node(1)));
            }
            mesh.make(1, ill);
            let begun = Instant::now();
            for count in 5..20 {
                assert_eq!(answer.next().await.unwrap().unwrap(), format!("{} {count}", node(2)));
                assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
            }
            assert!(answer.next().await.is_none() && gateway.running() == 0 && mesh.active() == 0);
            let seams = if kept == Kept::Told { 1 } else { 2 };
            assert_eq!((answer.node(), answer.seams(), gateway.figures().seams), (node(2), seams, seams.into()));
            assert_eq!((gateway.figures().cut, gateway.figures().retries), (0, 0));
            drop(answer);
            let trace = gateway.trace(request(1).id).unwrap();
            let lost = trace.steps.iter().filter(|step| matches!(step.what, What::Lost { .. })).count();
            assert!(lost == seams as usize && matches!(trace.steps.last().unwrap().what, What::Ended));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_nobody_else_is_left_the_node_itself_may_be_back() {
    let Stand { mesh, gateway, _tasks } = stand_that_keeps(Kept::Told, [SHAPE], 1);
    let mut answer = gateway.run(request(1)).await.unwrap();
    answer.next().await.unwrap().unwrap();
    mesh.crash(1);
    assert_eq!(answer.next().await.unwrap().unwrap(), format!("{} 1", node(1)));
    mesh.make(1, Health::Dead);
    let cut = answer.next().await.unwrap().unwrap_err();
    assert!(cut.node == node(1) && answer.next().await.is_none(), "{cut:?}");
    assert_eq!((mesh.active(), gateway.running(), gateway.figures().cut), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_gone_on_with_honestly_is_cut_and_says_why() {
    let Stand { mesh, gateway, _tasks } = stand_that_keeps(Kept::Bound, two(), 1);
    let mut answer = gateway.run(request(1)).await.unwrap();
    answer.next().await.unwrap().unwrap();
    mesh.make(1, Health::Dead);
    let cut = answer.next().await.unwrap().unwrap_err();
    assert_eq!(cut.bound.unwrap().to_string(), "it is half a JSON");
    assert!(answer.next().await.is_none());
    assert_eq!(mesh.books().taken, 1);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_an_answer_that_is_on_its_way_to_another_node() {
    let Stand { mesh, gateway, _tasks } = stand_that_keeps(Kept::Told, two(), 1);
    let mut request = request(1);
    request.work.deadline = Some(Duration::from_secs(2));
    let mut answer = gateway.run(request).await.unwrap();
    answer.next().await.unwrap().unwrap();
    mesh.make(2, Health::Frozen);
    mesh.make(1, Health::Dead);
    let cut = answer.next().await.unwrap().unwrap_err();
    assert!(matches!(cut.why, Failure::Deadline), "{cut:?}");
    assert!(answer.next().await.is_none());
    drop(answer);
    assert_eq!((mesh.active(), gateway.running()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_waiting_for_the_rest_finds_it_where_it_was() {
    let Stand { mesh, gateway, _tasks } = stand_that_keeps(Kept::Told, two(), 1);
    let mut answer = gateway.run(request(1)).await.unwrap();
    answer.next().await.unwrap().unwrap();
    mesh.make(1, Health::Dead);
    let mut pieces = 1;
    while pieces < 20 {
        // Shorter than a question to a node, or a prompt that is read there.
        match timeout(Duration::from_millis(pieces * 37 % 500), answer.next()).await {
            Ok(piece) => assert_eq!(piece.unwrap().unwrap(), format!("{} {pieces}", node(2))),
            Err(_) => {
                timeout(Duration::from_secs(9), answer.next()).await.unwrap().unwrap().unwrap();
            }
        }
        pieces += 1;
    }
    assert!(answer.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_prompt_that_is_read_in_silence_is_not_mistaken_for_a_node_that_hangs() {
    let quiet = Shape { prefill: Duration::from_secs(300), ..SHAPE };
    let Stand { mesh, gateway, _tasks } = stand([quiet, quiet], 1);
    let answer = gateway.run(request(1)).await.unwrap();
    assert_eq!(answer.sends(), 1);
    assert_eq!(read(answer).await.unwrap(), 20);
    assert_eq!(mesh.books().taken, 1);
}

#[tokio::test(start_paused = true)]
async fn what_fails_there_is_done_elsewhere_and_where_all_fail_the_answer_is_handed_on() {
    let Stand { mesh, gateway, _tasks } = stand(two(), 1);
    mesh.make(1, Health::Failing);
    let answer = gateway.run(request(1)).await.unwrap();
    assert_eq!((answer.node(), answer.sends()), (node(2), 2));
    drop(answer);
    mesh.make(2, Health::Failing);
    let error = gateway.run(request(2)).await.unwrap_err().error;
    assert!(matches!(&error, Error::Served { status: 500, body, .. } if body == "out of memory"), "{error:?}");
    assert_eq!(gateway.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_promise_that_does_not_hold_is_refused_once() {
    // Both say they were free, and are not.
    let liar = Shape { claimed_wait: Some(Seconds::ZERO), ..SHAPE };
    let Stand { mesh, gateway, _tasks } = stand([liar], 1);
    let first = gateway.run(request(1)).await.unwrap();
    let second = async {
        let answer = gateway.run(request(2)).await.unwrap();
        let sends = answer.sends();
        (sends, read(answer).await.unwrap())
    };
    let (first, second) = tokio::join!(read(first), second);
    assert_eq!((first.unwrap(), second), (20, (2, 20)));
    assert_eq!(mesh.books().taken, 2, "a refusal is no work");
}

#[tokio::test(start_paused = true)]
async fn where_all_are_busy_or_none_has_the_model_that_is_said_at_once() {
    let full = Shape { queue_max: 0, ..SHAPE };
    let Stand { mesh, gateway, _tasks } = stand([full, full], 1);
    let answers = [gateway.run(request(1)).await.unwrap(), gateway.run(request(2)).await.unwrap()];
    let begun = Instant::now();
    let unanswered = gateway.run(request(3)).await.unwrap_err();
    assert_eq!((unanswered.node, unanswered.sends), (None, 0), "they said so when they were asked");
    let error = unanswered.error;
    assert!(matches!(error, Error::Busy { retry_after } if retry_after > Seconds::ZERO), "{error:?}");
    let mut unknown = request(4);
    unknown.work.model = ModelKey::from_bytes([2; 16]);
    let error = gateway.run(unknown).await.unwrap_err().error;
    assert!(matches!(error, Error::NoModel(_)), "{error:?}");
    assert!(begun.elapsed() < Duration::from_millis(50));
    drop(answers);
    mesh.make(1, Health::Dead);
    mesh.make(2, Health::Dead);
    let error = gateway.run(request(5)).await.unwrap_err().error;
    assert!(matches!(error, Error::Failed { sent: 0, last: Failure::Unreachable(_) }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_takes_the_request_along_at_every_stage() {
    let Stand { mesh, gateway, _tasks } = stand(two(), 1);
    for id in 0..1000 {
        // While it is probed, waits, and streams: it is dropped wherever this leaves it.
        let patience = Duration::from_millis(id % 300);
        let begun = Instant::now();
        let answer = timeout(patience, gateway.run(request(id))).await;
        if let Ok(answer) = answer {
            let _ = timeout(patience.saturating_sub(begun.elapsed()), read(answer.unwrap())).await;
        }
        assert_eq!((mesh.active(), gateway.running()), (0, 0), "request {id}");
    }
    let cancelled = |steps: &[dispatch::Step]| matches!(steps.last().unwrap().what, What::Cancelled);
    let count = gateway.traces(1000).iter().filter(|trace| cancelled(&trace.steps)).count();
    assert!(count > 500 && gateway.figures().cancelled == count as u64, "{count}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_ahead_of_a_slow_client() {
    let Stand { mesh, gateway, _tasks } = stand(two(), 1);
    let mut answer = gateway.run(request(1)).await.unwrap();
    answer.next().await.unwrap().unwrap();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(mesh.books().pieces, 1);
    answer.next().await.unwrap().unwrap();
    assert_eq!(mesh.books().pieces, 2);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_kept_while_waiting_and_while_reading() {
    let slow = Shape { prefill: Duration::from_secs(10), step: Duration::from_secs(1), ..SHAPE };
    let Stand { mesh, gateway, _tasks } = stand([slow], 1);
    for (seconds, starts) in [(5, false), (15, true)] {
        let mut request = request(seconds);
        request.work.deadline = Some(Duration::from_secs(seconds));
        let begun = Instant::now();
        match gateway.run(request).await {
            Ok(answer) => {
                let (_, cut) = read(answer).await.unwrap_err();
                assert!(starts && matches!(cut.why, Failure::Deadline));
            }
            Err(unanswered) => {
                assert!(!starts && matches!(unanswered.error, Error::Deadline), "{unanswered:?}");
                assert_eq!((unanswered.node, unanswered.sends), (Some(node(1)), 1));
            }
        }
        assert!(begun.elapsed().abs_diff(Duration::from_secs(seconds)) < Duration::from_millis(10));
        assert_eq!((mesh.active(), gateway.running()), (0, 0));
    }
}

/// Makes somebody ill every three seconds, for one to eight seconds: up to three are so at a time.
async fn plague(mesh: Arc<Mesh>, nodes: u8, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut ill: Vec<(Instant, u8)> = Vec::new();
    loop {
        sleep(Duration::from_secs(3)).await;
        ill.retain(|(end, id)| {
            let goes_on = Instant::now() < *end;
            if !goes_on {
                mesh.make(*id, Health::Well);
            }
            goes_on
        });
        let id = 1 + dice.below(nodes.into()) as u8;
        if ill.len() < 3 && mesh.health(id) == Health::Well {
            mesh.make(id, [Health::Dead, Health::Frozen, Health::Failing][dice.below(3)]);
            ill.push((Instant::now() + Duration::from_secs(1 + dice.below(8) as u64), id));
        }
    }
}

fn unequal(nodes: u8) -> impl Iterator<Item = Shape> {
    (0..u32::from(nodes)).map(|at| Shape {
        slots: 1 + (at % 4) as u16,
        prefill: Duration::from_millis(50 + u64::from(at) * 20),
        step: Duration::from_millis(5 + u64::from(at) * 5),
        ..SHAPE
    })
}

#[tokio::test(start_paused = true)]
async fn a_thousand_answers_over_nodes_that_die_hang_and_fail_are_all_told_to_their_end() {
    const REQUESTS: u64 = 1000;
    const CLIENTS: u64 = 20;
    for seed in 1..=5 {
        let Stand { mesh, gateway, mut _tasks } = stand_that_keeps(Kept::Told, unequal(8), seed);
        _tasks.spawn(plague(mesh.clone(), 8, seed));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let gateway = gateway.clone();
            clients.spawn(async move {
                for id in (client..REQUESTS).step_by(CLIENTS as usize) {
                    let answer = gateway.run(request(id)).await;
                    let answer = answer.unwrap_or_else(|error| panic!("seed {seed}: {id} was lost: {error:?}"));
                    assert_eq!(read(answer).await.unwrap(), 20, "seed {seed}: {id}");
                }
            });
        }
        clients.join_all().await;
        let figures = gateway.figures();
        assert!(figures.seams > 0 && figures.seams < 200, "seed {seed}: {figures:?}");
        assert_eq!((figures.failed, figures.cut, figures.cancelled), (0, 0, 0), "seed {seed}");
        assert_eq!((mesh.active(), gateway.running()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_requests_over_nodes_that_die_hang_and_fail() {
    const REQUESTS: u64 = 1000;
    const CLIENTS: u64 = 20;
    const NODES: u8 = 8;
    for seed in 1..=5 {
        let Stand { mesh, gateway, mut _tasks } = stand(unequal(NODES), seed);
        _tasks.spawn(plague(mesh.clone(), NODES, seed));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let gateway = gateway.clone();
            clients.spawn(async move {
                let mut cut = 0;
                for id in (client..REQUESTS).step_by(CLIENTS as usize) {
                    let answer = gateway.run(request(id)).await;
                    let answer = answer.unwrap_or_else(|error| panic!("seed {seed}: {id} was lost: {error:?}"));
                    match read(answer).await {
                        Ok(count) => assert_eq!(count, 20),
                        Err((seen, _)) => {
                            assert!((1..=20).contains(&seen), "only what has begun may break off");
                            cut += 1;
                        }
                    }
                }
                cut
            });
        }
        let cut: usize = clients.join_all().await.into_iter().sum();
        let books = mesh.books();
        assert_eq!(books.whole.len() + cut, REQUESTS as usize, "seed {seed}");
        assert!(books.whole.values().all(|times| *times == 1), "seed {seed}: an answer was given twice");
        let retries = books.taken - REQUESTS as u32;
        assert!(retries > 0 && retries <= REQUESTS as u32 / 10, "seed {seed}: {retries} retries");
        assert!(cut > 0 && cut < 200, "seed {seed}: {cut} cut");
        let figures = gateway.figures();
        assert_eq!((figures.requests, figures.retries), (REQUESTS, retries.into()), "seed {seed}: {figures:?}");
        assert_eq!((figures.failed, figures.cut, figures.cancelled), (0, cut as u64, 0), "seed {seed}");
        drop(books);
        assert_eq!((mesh.active(), gateway.running()), (0, 0));
    }
}
