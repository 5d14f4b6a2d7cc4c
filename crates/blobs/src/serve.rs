//! The answering end of a stream: sends what is here, verified once more as it is read.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use net::ByteStream;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use types::{BlobHash, NodeId};

use crate::bits::Bits;
use crate::buffers::Buffer;
use crate::chunks::{self, Chunks};
use crate::fetch::Running;
use crate::partial::Partial;
use crate::protocol::{Answer, NEWS_MAX, QUESTION_BYTES_MAX, QUESTIONS_MAX, Question, broken, frame, read};
use crate::shared::{Opened, Shared, Unread};

/// A peer that asks nothing for so long gives its place to others.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// A peer that takes none of a piece for so long is gone.
const STUCK_MAX: Duration = Duration::from_secs(60);
/// What is handed to the stream in one piece where there is no limit.
const PIECE_BYTES: usize = 256 << 10;
/// Chunks read from the disk before their turn to be sent.
const AHEAD: usize = 2;
/// News are gathered for so long.
const NEWS_EVERY: Duration = Duration::from_millis(50);

pub(crate) async fn serve(shared: Arc<Shared>, peer: NodeId, stream: ByteStream) {
    let (reader, writer) = tokio::io::split(stream);
    let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
    let mut answering =
        Answering { shared, writer, asked, about: About::Nothing, ahead: VecDeque::new(), held_back: None };
    let ended = tokio::select! {
        ended = listen(reader, questions) => ended,
        ended = answering.run() => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a peer's stream for blobs ended");
    }
}

/// Takes questions until the peer hangs up. Whoever asks faster than it is answered breaks the rules.
async fn listen(mut reader: ReadHalf<ByteStream>, questions: mpsc::Sender<Question>) -> io::Result<()> {
    loop {
        let question = timeout(IDLE_MAX, read(&mut reader, QUESTION_BYTES_MAX)).await;
        let Some(question) = question.map_err(|_| io::ErrorKind::TimedOut)?? else { return Ok(()) };
        questions.try_send(question).map_err(|_| broken("more questions than may wait"))?;
    }
}

struct Answering {
    shared: Arc<Shared>,
    writer: WriteHalf<ByteStream>,
    asked: mpsc::Receiver<Question>,
    about: About,
    /// Chunks asked for and being read, in order.
    ahead: VecDeque<(u32, JoinHandle<Result<Buffer, Unread>>)>,
    /// Asked behind those, and answered behind them.
    held_back: Option<Question>,
}

/// What the peer has opened.
enum About {
    Nothing,
    Whole(BlobHash, Arc<Opened>),
    Part(Box<Part>),
}

struct Part {
    running: Arc<Running>,
    partial: Arc<Partial>,
    /// What the peer knows to be here.
    told: Bits,
    changed: watch::Receiver<u32>,
    next_news: Instant,
}

impl Answering {
    async fn run(&mut self) -> io::Result<()> {
        loop {
            while self.ahead.len() < AHEAD && self.held_back.is_none() {
                let Ok(question) = self.asked.try_recv() else { break };
                self.take(question).await;
            }
            if let Some((chunk, reading)) = self.ahead.pop_front() {
                let read = reading.await.unwrap_or(Err(Unread::Io(io::ErrorKind::Other.into())));
                self.send_chunk(chunk, read).await?;
            } else if let Some(question) = self.held_back.take() {
                self.answer(question).await?;
            } else {
                tokio::select! {
                    question = self.asked.recv() => match question {
                        Some(question) => self.take(question).await,
                        None => return Ok(()),
                    },
                    is_left = news(&mut self.about) => match is_left {
                        true => self.send_news().await?,
                        // What the peer waits for will not come; it may find more when it opens it again.
                        false => return Ok(()),
                    },
                }
            }
        }
    }

    /// Begins to read a chunk; anything else waits until those before it are sent, and so does a chunk there is no room for.
    async fn take(&mut self, question: Question) {
        let Question::Chunk(chunk) = question else {
            self.held_back = Some(question);
            return;
        };
        let length = match &self.about {
            About::Nothing => 0,
            About::Whole(_, opened) => opened.list.length(chunk),
            About::Part(part) => chunks::length(part.partial.size, chunk),
        };
        let buffer = match self.ahead.is_empty() {
            true => Some(self.shared.sending.get(length).await),
            false => self.shared.ahead.try_get(length),
        };
        let Some(buffer) = buffer else {
            self.held_back = Some(question);
            return;
        };
        let reading = self.begin_reading(chunk, buffer);
        self.ahead.push_back((chunk, reading));
    }

    fn begin_reading(&self, chunk: u32, mut buffer: Buffer) -> JoinHandle<Result<Buffer, Unread>> {
        match &self.about {
            About::Nothing => tokio::task::spawn_blocking(|| Err(Unread::Io(io::ErrorKind::NotFound.into()))),
            About::Whole(hash, opened) => {
                let (shared, hash, opened) = (self.shared.clone(), *hash, opened.clone());
                tokio::task::spawn_blocking(move || {
                    read_whole(&shared, &hash, &opened, chunk, &mut buffer).map(|()| buffer)
                })
            }
            About::Part(part) => {
                let partial = part.partial.clone();
                tokio::task::spawn_blocking(move || partial.read_verified(chunk, &mut buffer).map(|()| buffer))
            }
        }
    }

    async fn send_chunk(&mut self, index: u32, read: Result<Buffer, Unread>) -> io::Result<()> {
        let Ok(bytes) = read else { return self.say(&Answer::NoChunk { index }).await };
        let shared = self.shared.clone();
        if self.has_news() {
            self.send_news().await?;
        }
        // A peer that always has something to wait for would else hear of nothing new.
        let mut waiting = pin!(shared.up.turn());
        let mut may_tell = true;
        let turn = loop {
            tokio::select! {
                biased;
                turn = &mut waiting => break turn,
                is_left = news(&mut self.about), if may_tell => match is_left {
                    true => self.send_news().await?,
                    false => may_tell = false,
                },
            }
        };
        self.write(&frame(&Answer::Chunk { index, length: bytes.len() as u32 })).await?;
        self.write_paced(&bytes).await?;
        self.flush().await?;
        turn.end().await;
        Ok(())
    }

    async fn answer(&mut self, question: Question) -> io::Result<()> {
        match question {
            Question::Open(hash) => self.open(hash).await,
            Question::List => self.send_list().await,
            // There was no room to read it ahead.
            chunk @ Question::Chunk(_) => {
                self.take(chunk).await;
                Ok(())
            }
        }
    }

    async fn open(&mut self, hash: BlobHash) -> io::Result<()> {
        let shared = self.shared.clone();
        let opened = tokio::task::spawn_blocking(move || shared.open_whole(&hash)).await.ok().flatten();
        let running = self.shared.running().get(&hash).cloned();
        let part = running.and_then(|running| Some((running.partial()?, running)));
        let answer;
        (self.about, answer) = match (opened, part) {
            (Some(opened), _) => {
                let size = opened.list.size();
                (About::Whole(hash, opened), Answer::Whole { size })
            }
            (None, Some((partial, running))) => {
                // Watched first: what comes between the two is told again.
                let changed = partial.watch();
                let told = partial.here();
                let answer = Answer::Part { size: partial.size, held: told.to_bytes() };
                let part = Part { running, partial, told, changed, next_news: Instant::now() };
                (About::Part(Box::new(part)), answer)
            }
            (None, None) => (About::Nothing, Answer::Nothing),
        };
        self.say(&answer).await
    }

    /// With the last chunk, since only that proves the size.
    async fn send_list(&mut self) -> io::Result<()> {
        let (list, last) = match &self.about {
            About::Nothing => return self.say(&Answer::NoList).await,
            About::Whole(_, opened) => (opened.list.clone(), opened.list.count() - 1),
            About::Part(part) => match part.partial.list() {
                Some(list) => (Chunks::clone(list), list.count() - 1),
                None => return self.say(&Answer::NoList).await,
            },
        };
        self.take(Question::Chunk(last)).await;
        let (_, reading) = self.ahead.pop_front().expect("nothing else is read before what was held back");
        let Ok(Ok(bytes)) = reading.await else { return self.say(&Answer::NoList).await };
        let hashes = chunks::listed(list.size());
        self.write(&frame(&Answer::List { size: list.size(), hashes, last: bytes.len() as u32 })).await?;
        self.write_paced(list.to_bytes()).await?;
        self.write_paced(&bytes).await?;
        self.flush().await
    }

    /// News that are due.
    fn has_news(&self) -> bool {
        let About::Part(part) = &self.about else { return false };
        part.next_news <= Instant::now() && part.changed.has_changed().unwrap_or(false)
    }

    async fn send_news(&mut self) -> io::Result<()> {
        let About::Part(part) = &mut self.about else { return Ok(()) };
        part.changed.mark_unchanged();
        part.next_news = Instant::now() + NEWS_EVERY;
        let here = part.partial.here();
        let news: Vec<u32> = here.without(&part.told).take(NEWS_MAX).collect();
        news.iter().for_each(|chunk| _ = part.told.put(*chunk));
        if news.len() == NEWS_MAX {
            part.changed.mark_changed();
        }
        match news.is_empty() {
            true => Ok(()),
            false => self.say(&Answer::News(news)).await,
        }
    }

    async fn say(&mut self, answer: &Answer) -> io::Result<()> {
        self.write(&frame(answer)).await?;
        self.flush().await
    }

    async fn write_paced(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(self.shared.up.piece(rest.len().min(PIECE_BYTES)));
            self.shared.up.pass(piece.len()).await;
            self.write(piece).await?;
            self.shared.counters.bytes_out.fetch_add(piece.len() as u64, Ordering::Relaxed);
            rest = more;
        }
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(STUCK_MAX, self.writer.write_all(bytes)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    async fn flush(&mut self) -> io::Result<()> {
        timeout(STUCK_MAX, self.writer.flush()).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

/// Waits for news worth telling; `false` where there will be none. May be dropped.
async fn news(about: &mut About) -> bool {
    let About::Part(part) = about else { return std::future::pending().await };
    sleep_until(part.next_news).await;
    if part.partial.is_whole() && part.told.is_full() {
        return std::future::pending().await;
    }
    let ended = part.running.ended.clone();
    tokio::select! {
        biased;
        changed = part.changed.changed() => {
            // Left as it was: whoever takes this for an answer looks again.
            part.changed.mark_changed();
            changed.is_ok()
        }
        () = ended.cancelled() => false,
    }
}

fn read_whole(shared: &Shared, hash: &BlobHash, opened: &Opened, chunk: u32, buffer: &mut [u8]) -> Result<(), Unread> {
    if chunk >= opened.list.count() {
        return Err(Unread::Io(io::ErrorKind::NotFound.into()));
    }
    opened.read(chunk, buffer).inspect_err(|unread| match unread {
        Unread::Damaged => {
            shared.close(hash);
            match opened.is_another_now() {
                true => shared.refresh(hash),
                false => shared.found_damaged(hash, chunk),
            }
        }
        Unread::Io(error) => tracing::warn!(%hash, chunk, %error, "failed to read a chunk"),
    })
}
