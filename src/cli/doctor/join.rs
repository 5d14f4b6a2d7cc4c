//! `omx doctor join TOKEN`: which step of joining fails. The token is not used up by asking.

use std::net::SocketAddr;

use node::{JoinError, StartError, Token};
use types::Secret;

use super::checks::{Check, fail, ok};
use crate::cli::Session;
use crate::cli::up;
use crate::failure::Failure;

/// What a join goes through, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Reach,
    Identity,
    Version,
    Mesh,
    Clock,
    Invitation,
}

impl Step {
    const ALL: [Self; 6] = [Self::Reach, Self::Identity, Self::Version, Self::Mesh, Self::Clock, Self::Invitation];

    const fn name(self) -> &'static str {
        match self {
            Self::Reach => "reach",
            Self::Identity => "identity",
            Self::Version => "version",
            Self::Mesh => "mesh",
            Self::Clock => "clock",
            Self::Invitation => "invitation",
        }
    }

    const fn passed(self) -> &'static str {
        match self {
            Self::Reach => "a node in the token answers",
            Self::Identity => "it is the one that the token names",
            Self::Version => "both versions understand each other",
            Self::Mesh => "it belongs to the mesh that the token is for",
            Self::Clock => "its clock and the one here agree",
            Self::Invitation => "it would let this machine in",
        }
    }

    fn failed_by(error: &JoinError) -> Self {
        match error {
            JoinError::Unreachable(tried) if tried.iter().any(|(_, error)| is_another(error)) => Self::Identity,
            JoinError::Unreachable(_) | JoinError::Broken { .. } | JoinError::Silent { .. } => Self::Reach,
            JoinError::Unreadable { .. } => Self::Version,
            JoinError::OtherMesh { .. } => Self::Mesh,
            JoinError::Clock { .. } => Self::Clock,
            JoinError::Refused(_) | JoinError::NotNow(_) => Self::Invitation,
        }
    }
}

fn is_another(error: &net::Error) -> bool {
    matches!(error, net::Error::WrongPeer { .. })
}

/// Asks the mesh, and fails by itself only where this machine could not even ask.
pub(super) async fn examine(token: &Secret<String>, session: &Session) -> Result<Vec<Check>, Failure> {
    let token: Token = match token.expose().parse() {
        Ok(token) => token,
        Err(error) => {
            let error: node::ParseTokenError = error;
            return Ok(vec![fail("token", error.to_string()).hint(up::TOKEN_HINT)]);
        }
    };
    match node::would_join(&session.folder, &token).await {
        Ok(address) => Ok(told(Ok(address))),
        Err(StartError::Join(error)) => Ok(told(Err(&error))),
        Err(error) => Err(up::failed::to_start(error)),
    }
}

/// The steps that passed, and the one that did not.
fn told(asked: Result<SocketAddr, &JoinError>) -> Vec<Check> {
    let failed = asked.as_ref().err().map(|error| (Step::failed_by(error), *error));
    let mut checks = vec![ok("token", "it is whole")];
    for step in Step::ALL {
        match failed {
            Some((at, error)) if at == step => {
                let check = fail(step.name(), chain(error));
                checks.push(match error.hint() {
                    Some(hint) => check.hint(hint),
                    None => check,
                });
                break;
            }
            _ => checks.push(match (&asked, step) {
                (Ok(address), Step::Reach) => ok(step.name(), format!("the node at `{address}` answers")),
                _ => ok(step.name(), step.passed()),
            }),
        }
    }
    checks
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use node::Refused;
    use types::{MeshId, NodeId};

    use super::super::checks::Verdict;
    use super::*;

    fn at() -> SocketAddr {
        ([127, 0, 0, 1], 7).into()
    }

    #[test]
    fn the_step_that_fails_is_named_and_those_before_it_passed() {
        let node = |byte| NodeId::from_public_key([byte; 32]);
        let mesh = |byte| MeshId::from_bytes([byte; 16]);
        let closed = net::Error::NoAnswer { address: at(), source: io::ErrorKind::ConnectionRefused.into() };
        let other = net::Error::WrongPeer { address: at(), expected: node(1), found: node(2) };
        let cases = [
            (JoinError::Unreachable(vec![(at(), closed)]), "reach"),
            (JoinError::Silent { address: at() }, "reach"),
            (JoinError::Unreachable(vec![(at(), other)]), "identity"),
            (JoinError::OtherMesh { expected: mesh(1), found: mesh(2) }, "mesh"),
            (JoinError::Clock { apart: Duration::from_secs(4_000) }, "clock"),
            (JoinError::Refused(Refused::TokenUsedUp), "invitation"),
            (JoinError::NotNow("no leader".to_owned()), "invitation"),
        ];
        for (error, step) in cases {
            let checks = told(Err(&error));
            let (last, before) = checks.split_last().unwrap();
            assert_eq!((last.name, last.verdict), (step, Verdict::Fail), "{error}");
            assert!(before.iter().all(|check| check.verdict == Verdict::Ok), "{checks:?}");
        }
    }

    #[test]
    fn why_an_invitation_does_not_hold_is_told_with_advice() {
        let checks = told(Err(&JoinError::Refused(Refused::TokenExpired)));
        let last = checks.last().unwrap();
        assert!(last.why.starts_with("the mesh refused: ") && last.hint.is_some(), "{last:?}");
    }

    #[test]
    fn a_good_token_passes_every_step() {
        let checks = told(Ok(at()));
        assert_eq!(checks.len(), 1 + Step::ALL.len());
        assert!(checks.iter().all(|check| check.verdict == Verdict::Ok));
        assert!(checks[1].why.contains("127.0.0.1:7"), "{checks:?}");
    }
}
