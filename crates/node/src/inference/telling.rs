//! What a client has been told of one answer, for the dispatcher: it knows nothing of what answers say.

use std::time::{Duration, Instant};

use agent::Route;
use bytes::Bytes;
use dispatch::{Cause, Failure, Rest};
use ollama::transcript::{self, Question, Spent, Transcript, Unfit, Voice};

use super::agents::{Failover, Payload};

#[derive(Debug)]
pub(crate) struct Telling {
    transcript: Transcript,
    body: Bytes,
    /// When the request came, and the first and the last line went.
    came: Instant,
    told: Option<(Instant, Instant)>,
    failover: Failover,
    /// What is to be asked for the rest.
    rest: Asked,
}

#[derive(Debug)]
enum Asked {
    Same,
    This(Question),
    ToBeRendered(Question),
}

#[derive(Debug, thiserror::Error)]
#[error("this request is begun again only as long as nothing of its text was told")]
struct TooLate;

#[derive(Debug, thiserror::Error)]
#[error("this request asks for an error in that case")]
struct NotWanted;

impl Telling {
    /// Vectors are told in one piece.
    pub(crate) fn of(request: &Payload) -> Option<Self> {
        let voice = match request.route {
            Route::Generate => Voice::Generate,
            Route::Chat => Voice::Chat,
            Route::Embed | Route::Embeddings => return None,
        };
        Some(Self {
            transcript: Transcript::new(voice),
            body: request.body.clone(),
            came: request.came,
            told: None,
            failover: request.failover,
            rest: Asked::Same,
        })
    }

    fn spent(&self) -> Spent {
        let telling = self.told.map_or(Duration::ZERO, |(first, last)| last.duration_since(first));
        Spent { in_all: self.came.elapsed(), telling }
    }

    /// What a node is asked first for the rest.
    pub(crate) fn first(&self, request: &Payload) -> Payload {
        match &self.rest {
            Asked::Same => request.clone(),
            Asked::This(question) | Asked::ToBeRendered(question) => as_asked(request, question.clone()),
        }
    }

    pub(crate) const fn is_to_be_rendered(&self) -> bool {
        matches!(self.rest, Asked::ToBeRendered(_))
    }

    /// What it is asked after it has said how the conversation is rendered.
    pub(crate) fn rendered(&mut self, request: &Payload, answer: &[u8]) -> Result<Payload, Unfit> {
        let question = self.transcript.rendered(&self.body, answer, self.spent())?;
        Ok(as_asked(request, question))
    }
}

fn as_asked(request: &Payload, Question { voice, body }: Question) -> Payload {
    let route = match voice {
        Voice::Generate => Route::Generate,
        Voice::Chat => Route::Chat,
    };
    Payload { route, body: body.into(), ..request.clone() }
}

impl dispatch::Transcript for Telling {
    fn tell(&mut self, piece: Bytes) -> Result<Bytes, Failure> {
        let now = Instant::now();
        self.told = Some((self.told.map_or(now, |(first, _)| first), now));
        self.transcript.tell(piece).map_err(|untold| match untold {
            transcript::Untold::Contradiction => Failure::Contradicted,
            crashed @ transcript::Untold::Crashed(_) => Failure::Broken(crashed.into()),
            transcript::Untold::Unfit(unfit) => Failure::Unable(unfit.into()),
        })
    }

    fn is_over(&self) -> bool {
        self.transcript.is_over()
    }

    fn rest(&mut self) -> Result<Rest, Cause> {
        if self.failover == Failover::Error {
            return Err(NotWanted.into());
        }
        let rest = self.transcript.rest(&self.body, self.spent())?;
        if self.failover == Failover::Restart && rest != transcript::Rest::Same {
            return Err(TooLate.into());
        }
        self.rest = match rest {
            transcript::Rest::Same => Asked::Same,
            transcript::Rest::Ask(question) => Asked::This(question),
            transcript::Rest::Render(question) => Asked::ToBeRendered(question),
            transcript::Rest::Over(last) => return Ok(Rest::Over(last)),
        };
        Ok(Rest::Asked)
    }
}
