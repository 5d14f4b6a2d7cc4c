//! Peers that lie, stall and withhold.

use super::rig::*;
use crate::Stage;

const LIES: [Lie; 14] = [
    Lie::BadChunks,
    Lie::BadList,
    Lie::BadSize,
    Lie::OverLong,
    Lie::Short,
    Lie::OtherChunk,
    Lie::Unasked,
    Lie::Garbage,
    Lie::BadFrom(2),
    Lie::Withhold(0),
    Lie::Half,
    Lie::Chatter,
    Lie::Stall,
    Lie::Mute,
];

#[tokio::test(start_paused = true)]
async fn one_honest_source_among_liars_of_each_kind_is_enough() {
    for lie in LIES {
        let mut mesh = Mesh::new();
        let bytes = content(12 * MIB + 99, 1);
        for _ in 0..3 {
            mesh.liar(lie, &bytes);
        }
        mesh.holder(&bytes).await;
        let receiver = mesh.node();
        let path = within(receiver.fetch(want(&bytes), sources(0..4)).done()).await.unwrap();
        assert_same(&path, &bytes);
        let figures = receiver.figures();
        // As many links as a proven peer is given may each have a bad chunk on its way.
        let per_liar = if matches!(lie, Lie::BadFrom(_)) { 2 } else { 1 };
        assert!(figures.chunks_bad <= 3 * per_liar, "{lie:?}: {figures:?}");
        assert!(figures.liars <= 3, "{lie:?}: {figures:?}");
        let is_proof = !matches!(lie, Lie::Withhold(_) | Lie::Half | Lie::Stall | Lie::Mute);
        assert!(is_proof || figures.liars == 0, "{lie:?}: {figures:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn any_number_of_liars_wastes_no_more_than_a_chunk_for_each() {
    for liars in 1..8 {
        let mut mesh = Mesh::new();
        let bytes = content(10 * MIB, u64::from(liars));
        let honest = mesh.holder(&bytes).await;
        // The liars are asked first, and the honest one is slow.
        honest.set_limits(std::num::NonZeroU64::new(4 << 20), None);
        (0..liars).for_each(|_| mesh.liar(Lie::BadChunks, &bytes));
        let receiver = mesh.node();
        let path = within(receiver.fetch(want(&bytes), sources((0..=liars).rev())).done()).await.unwrap();
        assert_same(&path, &bytes);
        let figures = receiver.figures();
        assert_eq!(figures.liars, u64::from(liars), "all were found out");
        assert!(figures.bytes_wasted <= u64::from(liars) * MIB as u64 + MIB as u64, "{figures:?}");
        assert_eq!(figures.chunks_bad, u64::from(liars));
    }
}

#[tokio::test(start_paused = true)]
async fn with_liars_alone_it_waits_and_takes_nothing_of_theirs() {
    let mut mesh = Mesh::new();
    let bytes = content(3 * MIB, 9);
    mesh.liar(Lie::BadChunks, &bytes);
    mesh.liar(Lie::OverLong, &bytes);
    let receiver = mesh.node();
    let fetch = receiver.fetch(want(&bytes), sources([0, 1, 2]));
    let mut progress = fetch.progress();
    let all_out = |progress: &crate::Progress| progress.stage == Stage::WaitingForSources;
    eventually("both are found out", || receiver.figures().liars == 2).await;
    within(progress.wait_for(all_out)).await.unwrap();
    mesh.node();
    mesh.holder(&bytes).await;
    let again = receiver.fetch(want(&bytes), sources([4]));
    assert_same(&within(again.done()).await.unwrap(), &bytes);
}

#[tokio::test]
async fn a_peer_that_asks_against_the_rules_is_hung_up_on() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use crate::protocol::{PROTOCOL, Question, frame};

    let mut mesh = Mesh::new();
    let bytes = content(3 * MIB, 10);
    let holder = mesh.holder(&bytes).await;
    mesh.node();
    let net = mesh.net(1);
    let too_many: Vec<u8> = (0..5000).flat_map(|_| frame(&Question::Chunk(0)).to_vec()).collect();
    let open = frame(&Question::Open(want(&bytes).hash)).to_vec();
    for said in [vec![0xff; 8], vec![0, 0, 0, 1, 77], [open.clone(), too_many].concat(), vec![0, 0, 1, 0]] {
        let mut stream = net.connect(id(0), PROTOCOL).await.unwrap();
        // It may hang up before it has read all of it.
        let _ = stream.write_all(&said).await;
        let _ = stream.flush().await;
        let mut rest = Vec::new();
        assert!(within(stream.read_to_end(&mut rest)).await.is_err(), "{} bytes", said.len());
    }
    // Questions that make no sense have an answer each, and harm nothing.
    let mut stream = net.connect(id(0), PROTOCOL).await.unwrap();
    let asked = [Question::List, Question::Chunk(0), Question::Open(want(&bytes).hash), Question::Chunk(u32::MAX)];
    let said: Vec<u8> = asked.iter().flat_map(|question| frame(question).to_vec()).collect();
    stream.write_all(&said).await.unwrap();
    stream.flush().await.unwrap();
    use crate::protocol::{ANSWER_BYTES_MAX, Answer, read};
    let size = bytes.len() as u64;
    for answer in
        [Answer::NoList, Answer::NoChunk { index: 0 }, Answer::Whole { size }, Answer::NoChunk { index: u32::MAX }]
    {
        assert_eq!(within(read::<Answer>(&mut stream, ANSWER_BYTES_MAX)).await.unwrap(), Some(answer));
    }
    assert_eq!(holder.figures().damage_found, 0);
}
