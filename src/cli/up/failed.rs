//! Why a node does not start or cannot go on, as an exit code and a text.

use std::io;
use std::net::SocketAddr;

use node::{End, Ended, FolderError, RegistryError, StartError};

use crate::exit::Exit;
use crate::failure::Failure;

pub(in crate::cli) fn to_start(error: StartError) -> Failure {
    let exit = match &error {
        StartError::Folder(error) => folder(error),
        StartError::Identity(error) => identity(error),
        StartError::Net(error) => net(error),
        StartError::Store(error) => store(error),
        StartError::Blobs(_) => Exit::General,
        StartError::Registry(error) => registry(error),
        StartError::Join(_) | StartError::OtherMesh { .. } | StartError::NoMember => Exit::JoinRefused,
        StartError::InNoMesh { .. } => Exit::Damaged,
    };
    let hint = match &error {
        StartError::Net(net::Error::Bind { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {
            Some("stop what listens there, or choose others with `--mesh` and `--bulk`".to_owned())
        }
        _ => error.hint(),
    };
    Failure::new(exit, error).hint(hint)
}

pub(super) fn to_open(error: gateway::Error) -> Failure {
    let exit = match &error {
        gateway::Error::Taken { .. } => Exit::PortTaken,
        gateway::Error::NoKey { .. } | gateway::Error::Host(_) => Exit::Usage,
        gateway::Error::SocketTaken { .. } => Exit::FolderInUse,
        gateway::Error::Listen { source, .. }
        | gateway::Error::Socket { source, .. }
        | gateway::Error::Cookie { source, .. } => io(source),
    };
    let hint = error.hint();
    Failure::new(exit, error).hint(hint)
}

pub(super) fn to_encrypt(error: gateway::TlsError) -> Failure {
    let exit = match &error {
        gateway::TlsError::Unreadable { source, .. } => io(source),
        gateway::TlsError::Missing { .. } | gateway::TlsError::Unusable { .. } | gateway::TlsError::Misfit { .. } => {
            Exit::Usage
        }
    };
    let hint = error.hint();
    Failure::new(exit, error).hint(hint)
}

pub(super) fn to_adopt(error: node::Error) -> Failure {
    let (exit, hint) = match &error {
        node::Error::Registry(error) => (registry(error), error.hint()),
        node::Error::UnknownNode(_) | node::Error::BadRequest(_) => (Exit::Usage, error.hint()),
    };
    Failure::new(exit, FirstKey(error)).hint(hint)
}

#[derive(Debug, thiserror::Error)]
#[error("failed to take in the API key in that file")]
struct FirstKey(#[source] node::Error);

/// Nothing where the node was asked to end.
pub(super) fn to_go_on(ended: Ended) -> Option<Failure> {
    match ended {
        Ended::Registry(End::Shutdown | End::Left) => None,
        Ended::Registry(End::Removed) => Some(to_start(StartError::NoMember)),
        Ended::Registry(End::Failed(error)) => {
            let (exit, hint) = (registry(&error), error.hint());
            Some(Failure::new(exit, Stopped(error)).hint(hint))
        }
        Ended::Part(part) => {
            let hint = "this is a bug: the log says where; started again, the node is as it was";
            Some(Failure::new(Exit::General, Stopped(part)).hint(hint.to_owned()))
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("this node cannot go on")]
struct Stopped<E: std::error::Error + 'static>(#[source] E);

/// Found before anything else is started: the mesh need not hear of a node that cannot be spoken to.
pub(super) fn taken(address: SocketAddr, source: io::Error) -> Failure {
    to_open(match source.kind() {
        io::ErrorKind::AddrInUse => gateway::Error::Taken { address },
        _ => gateway::Error::Listen { address, source },
    })
}

fn folder(error: &FolderError) -> Exit {
    match error {
        FolderError::InUse(_) => Exit::FolderInUse,
        FolderError::TooNew { .. } => Exit::NewerFormat,
        FolderError::Foreign(_) => Exit::Usage,
        FolderError::Exposed { .. } => Exit::NotPermitted,
        FolderError::Io { source, .. } => io(source),
    }
}

fn identity(error: &net::identity::Error) -> Exit {
    match error {
        net::identity::Error::Read { source, .. } | net::identity::Error::Write { source, .. } => io(source),
        net::identity::Error::Exposed { .. } => Exit::NotPermitted,
        net::identity::Error::Format { .. } => Exit::Damaged,
    }
}

fn net(error: &net::Error) -> Exit {
    match error {
        net::Error::Bind { source, .. } => io(source),
        _ => Exit::General,
    }
}

fn store(error: &store::Error) -> Exit {
    match error {
        store::Error::InUse { .. } => Exit::FolderInUse,
        store::Error::Damaged { .. } => Exit::Damaged,
        store::Error::TooNew { .. } => Exit::NewerFormat,
        store::Error::Io { source, .. } => io(source),
        store::Error::Stopped(cause) => store(cause),
        _ => Exit::General,
    }
}

fn registry(error: &RegistryError) -> Exit {
    match error {
        RegistryError::Store(error) => store(error),
        RegistryError::Kept(source) => io(source),
        RegistryError::Refused(_) => Exit::Refused,
        RegistryError::NoLeader { .. } | RegistryError::Behind { .. } => Exit::NoQuorum,
        RegistryError::Unknown { .. } => Exit::Unknown,
        _ => Exit::General,
    }
}

fn io(error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::AddrInUse => Exit::PortTaken,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Exit::NotPermitted,
        _ => Exit::General,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn denied() -> io::Error {
        io::ErrorKind::PermissionDenied.into()
    }

    #[test]
    fn each_bad_start_has_its_exit_code() {
        let path = || PathBuf::from("d");
        let address: SocketAddr = ([127, 0, 0, 1], 7).into();
        let bind = |kind: io::ErrorKind| net::Error::Bind { address, what: "bulk", source: kind.into() };
        let damaged = || store::Error::Damaged { path: path(), what: "a record".to_owned() };
        let cases: Vec<(StartError, Exit)> = vec![
            (FolderError::InUse(path()).into(), Exit::FolderInUse),
            (FolderError::TooNew { path: path(), found: 9 }.into(), Exit::NewerFormat),
            (FolderError::Foreign(path()).into(), Exit::Usage),
            (FolderError::Exposed { path: path(), mode: 0o755 }.into(), Exit::NotPermitted),
            (FolderError::Io { what: "make", path: path(), source: denied() }.into(), Exit::NotPermitted),
            (
                FolderError::Io { what: "make", path: path(), source: io::ErrorKind::StorageFull.into() }.into(),
                Exit::General,
            ),
            (net::identity::Error::Format { path: path() }.into(), Exit::Damaged),
            (net::identity::Error::Exposed { path: path(), mode: 0o644 }.into(), Exit::NotPermitted),
            (bind(io::ErrorKind::AddrInUse).into(), Exit::PortTaken),
            (bind(io::ErrorKind::AddrNotAvailable).into(), Exit::General),
            (damaged().into(), Exit::Damaged),
            (store::Error::Stopped(damaged().into()).into(), Exit::Damaged),
            (store::Error::TooNew { path: path(), found: 2, known: 1 }.into(), Exit::NewerFormat),
            (RegistryError::Store(damaged()).into(), Exit::Damaged),
            (StartError::Join(node::JoinError::Refused(node::Refused::TokenExpired)), Exit::JoinRefused),
        ];
        for (error, expected) in cases {
            let shown = format!("{error:?}");
            assert_eq!(to_start(error).exit, expected, "{shown}");
        }
    }

    #[test]
    fn a_port_that_is_taken_says_which_flag_moves_it() {
        let address: SocketAddr = ([127, 0, 0, 1], 7).into();
        let api = taken(address, io::ErrorKind::AddrInUse.into());
        assert_eq!(api.exit, Exit::PortTaken);
        assert!(api.to_string().contains("`--api "), "{api}");
        let bulk = net::Error::Bind { address, what: "bulk", source: io::ErrorKind::AddrInUse.into() };
        assert!(to_start(bulk.into()).to_string().contains("`--bulk`"));
        assert_eq!(to_open(gateway::Error::NoKey { address }).exit, Exit::Usage);
    }

    #[test]
    fn a_node_that_ends_by_itself_says_why() {
        assert!(to_go_on(Ended::Registry(End::Shutdown)).is_none() && to_go_on(Ended::Registry(End::Left)).is_none());
        assert_eq!(to_go_on(Ended::Registry(End::Removed)).unwrap().exit, Exit::JoinRefused);
        let failed =
            to_go_on(Ended::Registry(End::Failed(RegistryError::Consensus("lost its mind".to_owned())))).unwrap();
        assert_eq!(failed.exit, Exit::General);
        let expected = "error: this node cannot go on\n  cause: the consensus of this node has failed: lost its mind\n";
        assert_eq!(failed.to_string(), expected);
    }
}
