//! Lines on their way, and how a fault spoils them.

use bytes::Bytes;
use serde_json::Value;

use crate::body::GARBAGE;
use crate::fault::{Fault, Faults};
use crate::json::encode;

#[derive(Debug)]
pub(crate) struct Spoiler {
    faults: Faults,
    fault: Option<Fault>,
    lines: u32,
    bytes: u64,
    cut: bool,
}

/// What is to come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Line,
    /// The connection's end.
    Break,
    /// A clean end.
    End,
    /// A line that says so, and a clean end.
    Error,
}

impl Spoiler {
    pub(crate) fn new(faults: Faults, fault: Option<Fault>) -> Self {
        Self { faults, fault, lines: 0, bytes: 0, cut: false }
    }

    pub(crate) fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    pub(crate) async fn next(&self) -> Next {
        self.faults.thawed().await;
        match self.fault {
            _ if self.cut => Next::Break,
            Some(Fault::HangInside { after }) if self.lines >= after => std::future::pending().await,
            Some(Fault::EndEarly { after }) if self.lines >= after => Next::End,
            Some(Fault::ErrorInside { after }) if self.lines >= after => Next::Error,
            _ => Next::Line,
        }
    }

    pub(crate) async fn line(&mut self, value: &Value) -> Bytes {
        self.faults.thawed().await;
        self.lines += 1;
        let mut line = match self.fault {
            Some(Fault::Garbage) => Bytes::from_static(GARBAGE.as_bytes()),
            _ => format!("{}\n", encode(value)).into(),
        };
        if let Some(Fault::Cut { at }) = self.fault {
            let left = usize::try_from(at - self.bytes).unwrap_or(usize::MAX);
            self.cut = line.len() >= left;
            line.truncate(left);
        }
        self.bytes += line.len() as u64;
        line
    }

    pub(crate) async fn thawed(&self) {
        self.faults.thawed().await;
    }
}
