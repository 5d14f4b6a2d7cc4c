//! Answers that grow with the work they tell of, line by line. Whoever reads slowly hears less often, not late; whoever
//! leaves ends the work.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::future::BoxFuture;
use futures::stream;
use tokio::sync::Notify;

/// Between two lines about the same thing.
const EVERY: Duration = Duration::from_millis(100);
/// Lines that wait to be read; beyond, the oldest goes.
const LINES_MAX: usize = 1_024;

/// What there is to tell. A line about the same thing as the last one takes its place.
#[derive(Debug)]
pub(crate) struct News<T> {
    lines: Mutex<VecDeque<(String, T)>>,
    more: Notify,
}

impl<T> Default for News<T> {
    fn default() -> Self {
        Self { lines: Mutex::default(), more: Notify::new() }
    }
}

impl<T> News<T> {
    pub(crate) fn tell(&self, about: &str, line: T) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.back().is_some_and(|(last, _)| last == about) {
            lines.pop_back();
        }
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back((about.to_owned(), line));
        drop(lines);
        self.more.notify_one();
    }

    fn next(&self) -> Option<T> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).pop_front().map(|(_, line)| line)
    }
}

struct Telling<T> {
    news: Arc<News<T>>,
    work: Option<BoxFuture<'static, T>>,
    last: Option<T>,
    paced: bool,
}

/// Does the work as it is read. What the work ends with is the last line.
pub(crate) fn body<T: Send + 'static>(
    news: Arc<News<T>>,
    work: BoxFuture<'static, T>,
    write: fn(&T) -> Vec<u8>,
) -> Body {
    let telling = Telling { news, work: Some(work), last: None, paced: false };
    Body::from_stream(stream::unfold(telling, move |mut telling| async move {
        let line = telling.next().await?;
        let mut bytes = write(&line);
        bytes.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(bytes)), telling))
    }))
}

impl<T> Telling<T> {
    async fn next(&mut self) -> Option<T> {
        loop {
            // The work goes on while its next line is not due yet.
            let due = tokio::time::sleep(if self.paced { EVERY } else { Duration::ZERO });
            if let Some(work) = &mut self.work {
                tokio::select! {
                    biased;
                    last = work => {
                        (self.work, self.last, self.paced) = (None, Some(last), false);
                    }
                    () = due => self.paced = false,
                }
            }
            if let Some(line) = self.news.next() {
                self.paced = self.work.is_some();
                return Some(line);
            }
            let Some(work) = &mut self.work else { return self.last.take() };
            tokio::select! {
                biased;
                last = work => (self.work, self.last) = (None, Some(last)),
                () = self.news.more.notified() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn told(body: Body) -> String {
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    struct Line(String);

    fn write(line: &Line) -> Vec<u8> {
        line.0.clone().into_bytes()
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_differs_is_told_and_the_end_comes_last() {
        let news = Arc::new(News::default());
        let telling = news.clone();
        let work = Box::pin(async move {
            telling.tell("a", Line("a".to_owned()));
            for n in 0..1000 {
                telling.tell("b", Line(format!("b {n}")));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Line("end".to_owned())
        });
        let told = told(body(news, work, write)).await;
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!((lines[0], lines[lines.len() - 2], lines[lines.len() - 1]), ("a", "b 999", "end"));
        assert!((5..30).contains(&lines.len()), "{lines:?}");
    }

    #[tokio::test]
    async fn work_that_nobody_reads_is_ended() {
        let alive = Arc::new(());
        let held = alive.clone();
        let work = Box::pin(async move {
            let _held = held;
            std::future::pending::<Line>().await
        });
        drop(body(Arc::new(News::default()), work, write));
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
