//! Who asks, and whether they may. Default deny: a route says what it needs, and whoever cannot show it is refused.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, header};
use node::{Actor, Api, Grant};
use subtle::ConstantTimeEq;
use types::{Scope, Scopes, Secret};

use crate::throttle::Throttle;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A cookie says that the owner asks, not under which number the system knows them.
const COOKIE_UID: u32 = 0;

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Tcp {
        remote: SocketAddr,
        /// The address of ours it came in on.
        local: SocketAddr,
    },
    /// Through the local socket; the operating system has said who.
    Socket { uid: u32 },
}

/// What a route asks of its callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing: for probes that cannot carry a key.
    Nothing,
    Scope(Scope),
    /// To be the owner of this machine.
    Machine,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    Anonymous(Scopes),
    Key(Grant),
    /// The owner of this machine, by socket or cookie.
    Owner {
        uid: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Denied {
    /// Nothing was shown, and something must be.
    NoKey(Need),
    /// What was shown opens nothing. Unknown, wrong and expired are the same to the caller.
    WrongKey,
    /// Too many wrong ones from there.
    Throttled { wait: Duration },
    /// The key is good and does not open this.
    Lacking(Need),
}

impl Caller {
    pub(crate) fn may(&self, need: Need) -> Result<(), Denied> {
        match (need, self) {
            (Need::Nothing, _) | (_, Self::Owner { .. }) => Ok(()),
            (Need::Scope(scope), Self::Anonymous(scopes) | Self::Key(Grant { scopes, .. })) if scopes.allows(scope) => {
                Ok(())
            }
            (_, Self::Anonymous(_)) => Err(Denied::NoKey(need)),
            (_, Self::Key(_)) => Err(Denied::Lacking(need)),
        }
    }

    /// On whose account the registry is asked for a change; nobody's where there is no name to put down.
    pub(crate) fn actor(&self, api: &Api) -> Option<Actor> {
        match self {
            Self::Anonymous(_) => None,
            Self::Key(grant) => Some(api.key_holder(grant.key.clone())),
            Self::Owner { uid } => Some(api.user(*uid)),
        }
    }
}

/// Tells callers apart.
#[derive(Debug)]
pub(crate) struct Gate {
    throttle: Mutex<Throttle>,
    /// What the owner's programs show where there is no local socket.
    cookie: Option<Secret<String>>,
    insecure_no_auth: bool,
}

impl Gate {
    pub(crate) fn new(cookie: Option<Secret<String>>, insecure_no_auth: bool) -> Self {
        Self { throttle: Mutex::default(), cookie, insecure_no_auth }
    }

    pub(crate) fn caller(&self, api: &Api, peer: Peer, headers: &HeaderMap, now: Instant) -> Result<Caller, Denied> {
        let remote = match peer {
            Peer::Socket { uid } => return Ok(Caller::Owner { uid }),
            Peer::Tcp { remote, .. } => remote.ip().to_canonical(),
        };
        let needs_none = remote.is_loopback() || self.insecure_no_auth;
        match shown(headers) {
            None if needs_none => Ok(Caller::Anonymous(api.anonymous())),
            // OpenAI's clients insist on some key, and whoever speaks to an Ollama gives them any.
            Some(text) if needs_none && !text.starts_with(OURS) => Ok(Caller::Anonymous(api.anonymous())),
            None => Ok(Caller::Anonymous(Scopes::NONE)),
            Some(text) => self.known(api, remote, text, now),
        }
    }

    /// A key of ours that is shown counts, even where none is needed: a caller with a wrong one wants to hear of it.
    fn known(&self, api: &Api, remote: IpAddr, text: &[u8], now: Instant) -> Result<Caller, Denied> {
        // Never throttled: nobody may lock the owner out, and 256 bits are not guessed.
        if remote.is_loopback() && self.cookie.as_ref().is_some_and(|c| c.expose().as_bytes().ct_eq(text).into()) {
            return Ok(Caller::Owner { uid: COOKIE_UID });
        }
        let throttle = || self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the look: were it after it, a right guess would show through.
        if let Some(wait) = throttle().wait(remote, now) {
            return Err(Denied::Throttled { wait });
        }
        let found = std::str::from_utf8(text).ok().and_then(|text| api.authenticate(text));
        found.map(Caller::Key).ok_or_else(|| {
            throttle().wrong(remote, now);
            tracing::info!(%remote, "a key was shown that opens nothing");
            Denied::WrongKey
        })
    }
}

/// How a key or a cookie of ours begins.
const OURS: &[u8] = b"omx";

/// The credential in a request. One that has not our form is a credential too, a wrong one.
fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let value = value.as_bytes();
        let (scheme, rest) = value.split_at(value.iter().position(|b| *b == b' ').unwrap_or(value.len()));
        return Some(if scheme.eq_ignore_ascii_case(b"bearer") { rest.trim_ascii() } else { b"" });
    }
    headers.get(X_API_KEY).map(|value| value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_shows_nothing_gets_what_anonymous_callers_get_and_never_the_machine() {
        let nobody = Caller::Anonymous(Scopes::NONE.with(Scope::Read));
        assert_eq!(nobody.may(Need::Nothing), Ok(()));
        assert_eq!(nobody.may(Need::Scope(Scope::Read)), Ok(()));
        assert_eq!(nobody.may(Need::Scope(Scope::Admin)), Err(Denied::NoKey(Need::Scope(Scope::Admin))));
        assert_eq!(Caller::Anonymous(Scopes::all()).may(Need::Machine), Err(Denied::NoKey(Need::Machine)));
    }

    #[test]
    fn a_key_opens_what_its_scopes_say_and_never_the_machine() {
        let key = |scopes| {
            let key = "0102030405ff".parse().unwrap();
            Caller::Key(Grant { key, scopes, limits: node::KeyLimits::NONE })
        };
        let (admin, key) = (key(Scopes::all()), key(Scopes::NONE.with(Scope::Infer)));
        assert_eq!(key.may(Need::Scope(Scope::Infer)), Ok(()));
        assert_eq!(key.may(Need::Scope(Scope::Read)), Err(Denied::Lacking(Need::Scope(Scope::Read))));
        assert_eq!(admin.may(Need::Machine), Err(Denied::Lacking(Need::Machine)));
        assert_eq!(Caller::Owner { uid: 1 }.may(Need::Machine), Ok(()));
    }

    #[test]
    fn a_credential_is_found_in_either_header_and_another_scheme_is_a_wrong_one() {
        let shown_in = |name: &'static str, value: &str| {
            let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
            shown(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(shown(&HeaderMap::new()), None);
        assert_eq!(shown_in("authorization", "Bearer omx_1").as_deref(), Some(b"omx_1".as_slice()));
        assert_eq!(shown_in("authorization", "bEARER   omx_1 ").as_deref(), Some(b"omx_1".as_slice()));
        assert_eq!(shown_in("x-api-key", "omx_1").as_deref(), Some(b"omx_1".as_slice()));
        for other in ["Basic b214", "Bearer", "", "Bearerx omx_1"] {
            assert_eq!(shown_in("authorization", other).as_deref(), Some(b"".as_slice()), "{other}");
        }
    }
}
