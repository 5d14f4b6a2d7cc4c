//! The asking end of a stream: one link of a fetch. Checks everything it hears before it passes it on.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use net::{ByteStream, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use types::NodeId;

use crate::bits::Bits;
use crate::buffers::{Buffer, Buffers};
use crate::chunks::{self, Chunks, SIZE_MAX};
use crate::partial::Partial;
use crate::plan::{self, Lie, Why};
use crate::protocol::{ANSWER_BYTES_MAX, Answer, Held, PROTOCOL, Question, broken, frame, read, read_bytes};
use crate::shared::Shared;

/// A peer that was asked and sends not a byte for so long has stalled.
const STALLED: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What is read between two signs of life.
const PIECE_BYTES: usize = 32 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    List,
    Chunk(u32),
}

/// What has come, and is what it should be.
pub(crate) enum Heard {
    Opened { size: u64, held: Held },
    News(Vec<u32>),
    List { list: Arc<Chunks>, last: Buffer },
    NoList,
    Chunk { chunk: u32, bytes: Buffer },
    NoChunk(u32),
    Down(Why),
}

pub(crate) struct Link {
    pub(crate) id: plan::Link,
    pub(crate) shared: Arc<Shared>,
    pub(crate) peer: NodeId,
    pub(crate) partial: Arc<Partial>,
    pub(crate) buffers: Buffers,
}

/// Why a link ended.
enum End {
    Io(io::Error),
    Why(Why),
    /// The fetch has hung up.
    Over,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What was asked and not answered yet, in order, and whether the peer is at it.
#[derive(Default)]
struct Open {
    asked: Mutex<VecDeque<Asked>>,
    /// Bytes and messages, to see that some come.
    moved: AtomicU64,
    /// We are what it waits for.
    held_here: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Open,
    List,
    Chunk(u32),
}

impl Link {
    /// Until the link is down, of which it tells, or the fetch hangs up by dropping its end of the orders.
    pub(crate) async fn run(
        self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        heard: mpsc::Sender<(plan::Link, Heard)>,
    ) {
        let why = match self.talk(&mut orders, &heard).await {
            End::Over => return,
            End::Why(why) => why,
            End::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::debug!(peer = %self.peer, %error, "a peer broke the rules for blobs");
                Why::Lied(Lie::Rules)
            }
            End::Io(error) => {
                tracing::debug!(peer = %self.peer, %error, "a link for blobs broke");
                Why::Broken
            }
        };
        let _ = heard.send((self.id, Heard::Down(why))).await;
    }

    async fn talk(
        &self,
        orders: &mut mpsc::UnboundedReceiver<Order>,
        heard: &mpsc::Sender<(plan::Link, Heard)>,
    ) -> End {
        let stream = match self.shared.net.connect(self.peer, PROTOCOL).await {
            Ok(stream) => stream,
            Err(net::Error::Refused { refusal: Refusal::Busy, .. }) => return End::Why(Why::Busy),
            Err(error) => {
                tracing::debug!(peer = %self.peer, %error, "a peer cannot be asked for blobs");
                return End::Why(Why::Broken);
            }
        };
        let (mut reader, mut writer) = tokio::io::split(stream);
        let open = Open::default();
        tokio::select! {
            end = self.listen(&mut reader, &open, heard) => end,
            end = self.ask(&mut writer, &open, orders) => end,
            end = open.watch() => end,
        }
    }

    async fn ask(
        &self,
        writer: &mut WriteHalf<ByteStream>,
        open: &Open,
        orders: &mut mpsc::UnboundedReceiver<Order>,
    ) -> End {
        let mut next = Some((Asked::Open, Question::Open(self.partial.hash)));
        while let Some((asked, question)) = next {
            open.asked().push_back(asked);
            let mut bytes = frame(&question);
            // What was ordered together travels together.
            while let Ok(order) = orders.try_recv() {
                let (asked, question) = order.question();
                open.asked().push_back(asked);
                bytes.unsplit(frame(&question));
            }
            let sent = async {
                writer.write_all(&bytes).await?;
                writer.flush().await
            };
            match sent.await {
                Ok(()) => next = orders.recv().await.map(Order::question),
                Err(error) => return End::Io(error),
            }
        }
        End::Over
    }

    async fn listen(
        &self,
        reader: &mut ReadHalf<ByteStream>,
        open: &Open,
        heard: &mpsc::Sender<(plan::Link, Heard)>,
    ) -> End {
        let mut size = None;
        // Each chunk is news once; a few may be told twice around the opening.
        let mut news_left = u64::from(u32::MAX);
        loop {
            let answer = match read::<Answer>(reader, ANSWER_BYTES_MAX).await {
                Ok(Some(answer)) => answer,
                Ok(None) => return End::Io(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => return End::Io(error),
            };
            open.moved();
            if let Answer::Whole { size: said } | Answer::Part { size: said, .. } = answer {
                size = Some(said);
                news_left = 2 * u64::from(chunks::count(said)) + 1000;
            }
            if let Answer::News(chunks) = &answer {
                news_left = news_left.saturating_sub(chunks.len().max(1) as u64);
                if size.is_none() || news_left == 0 {
                    return End::Io(broken("news of nothing"));
                }
            }
            let told = match self.take(reader, open, answer, size).await {
                Ok(told) => told,
                Err(end) => return end,
            };
            open.held_here.store(true, Ordering::Relaxed);
            if heard.send((self.id, told)).await.is_err() {
                return End::Over;
            }
            open.held_here.store(false, Ordering::Relaxed);
        }
    }

    /// An answer is for the oldest question, and for no other.
    async fn take(
        &self,
        reader: &mut ReadHalf<ByteStream>,
        open: &Open,
        answer: Answer,
        size: Option<u64>,
    ) -> Result<Heard, End> {
        let answered = |asked| match open.asked().pop_front() == Some(asked) {
            true => Ok(()),
            false => Err(broken("an answer that was not asked for")),
        };
        match answer {
            Answer::Nothing => {
                answered(Asked::Open)?;
                Err(End::Why(Why::Nothing))
            }
            Answer::Whole { size } => {
                answered(Asked::Open)?;
                let fits = size <= SIZE_MAX;
                fits.then_some(Heard::Opened { size, held: Held::Whole }).ok_or_else(|| broken("no such size").into())
            }
            Answer::Part { size, held } => {
                answered(Asked::Open)?;
                let bits = (size <= SIZE_MAX).then(|| Bits::from_bytes(&held, chunks::count(size))).flatten();
                let held = Held::Part(bits.ok_or_else(|| broken("chunks that cannot be"))?);
                Ok(Heard::Opened { size, held })
            }
            Answer::News(chunks) => {
                let count = chunks::count(size.unwrap_or(0));
                match chunks.iter().all(|chunk| *chunk < count) {
                    true => Ok(Heard::News(chunks)),
                    false => Err(broken("news of a chunk that cannot be").into()),
                }
            }
            Answer::NoList => answered(Asked::List).map(|()| Heard::NoList).map_err(End::Io),
            Answer::NoChunk { index } => answered(Asked::Chunk(index)).map(|()| Heard::NoChunk(index)).map_err(End::Io),
            Answer::List { size, hashes, last } => {
                answered(Asked::List)?;
                self.take_list(reader, open, size, hashes, last).await
            }
            Answer::Chunk { index, length } => {
                answered(Asked::Chunk(index))?;
                self.take_chunk(reader, open, index, length).await
            }
        }
    }

    async fn take_list(
        &self,
        reader: &mut ReadHalf<ByteStream>,
        open: &Open,
        size: u64,
        hashes: u32,
        last: u32,
    ) -> Result<Heard, End> {
        let fits = size <= SIZE_MAX
            && hashes == chunks::listed(size)
            && last as usize == chunks::length(size, chunks::count(size) - 1);
        if !fits {
            return Err(broken("a list that does not fit its size").into());
        }
        // Its end is not counted as asked for any more: it is waited for as for a question.
        open.asked().push_front(Asked::List);
        let list = read_bytes(reader, hashes as usize * 32).await?;
        open.moved();
        let mut bytes = self.buffer(open, last as usize).await;
        self.read_paced(reader, open, &mut bytes).await?;
        open.asked().pop_front();
        let root = self.partial.hash;
        let checked = tokio::task::spawn_blocking(move || {
            let list = Chunks::proven(root, size, Chunks::hashes_from(&list)?, &bytes)?;
            Some((Arc::new(list), bytes))
        });
        match checked.await.ok().flatten() {
            Some((list, last)) => Ok(Heard::List { list, last }),
            None => Err(End::Why(Why::Lied(Lie::List))),
        }
    }

    async fn take_chunk(
        &self,
        reader: &mut ReadHalf<ByteStream>,
        open: &Open,
        index: u32,
        length: u32,
    ) -> Result<Heard, End> {
        let Some(list) = self.partial.list() else { return Err(broken("a chunk before its list").into()) };
        if length as usize != list.length(index) {
            return Err(broken("a chunk of another length").into());
        }
        open.asked().push_front(Asked::Chunk(index));
        let mut bytes = self.buffer(open, length as usize).await;
        open.held_here.store(true, Ordering::Relaxed);
        let turn = self.shared.down.turn().await;
        open.held_here.store(false, Ordering::Relaxed);
        self.read_paced(reader, open, &mut bytes).await?;
        open.asked().pop_front();
        let counters = &self.shared.counters;
        if !list.verify(index, &bytes) {
            counters.chunks_bad.fetch_add(1, Ordering::Relaxed);
            counters.bytes_wasted.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            return Err(End::Why(Why::Lied(Lie::Chunk)));
        }
        open.held_here.store(true, Ordering::Relaxed);
        turn.end().await;
        open.held_here.store(false, Ordering::Relaxed);
        Ok(Heard::Chunk { chunk: index, bytes })
    }

    async fn buffer(&self, open: &Open, length: usize) -> Buffer {
        open.held_here.store(true, Ordering::Relaxed);
        let buffer = self.buffers.get(length).await;
        open.held_here.store(false, Ordering::Relaxed);
        buffer
    }

    async fn read_paced(&self, reader: &mut ReadHalf<ByteStream>, open: &Open, bytes: &mut [u8]) -> io::Result<()> {
        let mut read = 0;
        while read < bytes.len() {
            let piece = self.shared.down.piece((bytes.len() - read).min(PIECE_BYTES));
            open.held_here.store(true, Ordering::Relaxed);
            self.shared.down.pass(piece).await;
            open.held_here.store(false, Ordering::Relaxed);
            reader.read_exact(&mut bytes[read..read + piece]).await?;
            open.moved();
            read += piece;
        }
        Ok(())
    }
}

impl Open {
    fn asked(&self) -> std::sync::MutexGuard<'_, VecDeque<Asked>> {
        self.asked.lock().expect("no holder panics")
    }

    fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Ends when the peer owes an answer and nothing has moved for too long.
    async fn watch(&self) -> End {
        let (mut seen, mut quiet) = (0, Duration::ZERO);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let moved = self.moved.load(Ordering::Relaxed);
            let owes = !self.asked().is_empty() && !self.held_here.load(Ordering::Relaxed);
            quiet = if owes && moved == seen { quiet + LOOK_EVERY } else { Duration::ZERO };
            seen = moved;
            if quiet >= STALLED {
                return End::Why(Why::Stalled);
            }
        }
    }
}

impl Order {
    fn question(self) -> (Asked, Question) {
        match self {
            Self::List => (Asked::List, Question::List),
            Self::Chunk(chunk) => (Asked::Chunk(chunk), Question::Chunk(chunk)),
        }
    }
}
