//! Settings of the whole mesh, each with its history. A setting exists here only if something obeys it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ollama::Origin;
use serde::{Deserialize, Serialize};
use types::{Scope, Scopes, UnixMillis};

use super::{Actor, Refused};

/// Changes kept per setting; at the limit the oldest is forgotten.
const HISTORY_MAX: usize = 32;

/// One setting that a mesh knows.
#[derive(Debug)]
pub struct Definition {
    pub key: &'static str,
    pub default: &'static str,
    pub about: &'static str,
    /// Says what is wrong with a value.
    check: fn(&str) -> Result<(), String>,
}

static DEFINITIONS: [Definition; 6] = [
    Definition {
        key: "api.anonymous",
        default: "infer,read,models",
        about: "what callers without a key may do on loopback: a list of `infer`, `read`, `models`, or `none`",
        check: |value| anonymous_scopes(value).map(|_| ()),
    },
    Definition {
        key: "mesh.name",
        default: "",
        about: "what people call this mesh, up to 100 characters",
        check: |value| match value.chars().count() <= 100 && !value.chars().any(char::is_control) {
            true => Ok(()),
            false => Err("a name has at most 100 characters and no control characters".to_owned()),
        },
    },
    Definition {
        key: "placement.after_s",
        default: "600",
        about: "seconds a node may be down before its models are copied elsewhere: 10 to 604800",
        check: |value| match value.parse::<u32>() {
            Ok(10..=604_800) => Ok(()),
            _ => Err("it is a whole number of seconds from 10 to 604800".to_owned()),
        },
    },
    Definition {
        key: "registries.allow",
        default: "registry.ollama.ai,hf.co,huggingface.co",
        about: "registries models may be pulled from: hosts, or `http://host:port` for plain ones of your own; or `none`",
        check: |value| registries(value).map(|_| ()),
    },
    Definition {
        key: "voters.max",
        default: "5",
        about: "how many nodes vote at most: 1, 3, 5 or 7",
        check: |value| match value {
            "1" | "3" | "5" | "7" => Ok(()),
            _ => Err("it is 1, 3, 5 or 7".to_owned()),
        },
    },
    Definition {
        key: "voters.replace_after_s",
        default: "30",
        about: "seconds a voter may be down before another takes its seat: 5 to 86400",
        check: |value| match value.parse::<u32>() {
            Ok(5..=86_400) => Ok(()),
            _ => Err("it is a whole number of seconds from 5 to 86400".to_owned()),
        },
    },
];

/// One change of a setting, or its return to the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub value: Option<String>,
    pub index: u64,
    pub at: UnixMillis,
    pub by: Actor,
}

/// A setting's changes, oldest first; the last one holds. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    history: VecDeque<Change>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings(BTreeMap<String, Setting>);

impl Settings {
    pub fn definitions() -> &'static [Definition] {
        &DEFINITIONS
    }

    /// The value that holds now and the index of the change that made it so; 0 for a default.
    pub fn get(&self, key: &str) -> Result<(&str, u64), Refused> {
        let definition = Self::define(key)?;
        let last = self.0.get(key).and_then(|setting| setting.history.back());
        let value = last.and_then(|change| change.value.as_deref()).unwrap_or(definition.default);
        Ok((value, last.map_or(0, |change| change.index)))
    }

    pub fn history(&self, key: &str) -> Result<impl DoubleEndedIterator<Item = &Change>, Refused> {
        Self::define(key)?;
        Ok(self.0.get(key).into_iter().flat_map(|setting| &setting.history))
    }

    pub fn anonymous(&self) -> Scopes {
        anonymous_scopes(self.known("api.anonymous")).expect("only checked values are stored")
    }

    /// Where models may come from.
    pub fn registries(&self) -> Vec<Origin> {
        registries(self.known("registries.allow")).expect("only checked values are stored")
    }

    pub fn mesh_name(&self) -> &str {
        self.known("mesh.name")
    }

    pub fn voters_max(&self) -> usize {
        self.known("voters.max").parse().expect("only checked values are stored")
    }

    pub fn voter_replace_after(&self) -> Duration {
        let seconds = self.known("voters.replace_after_s").parse().expect("only checked values are stored");
        Duration::from_secs(seconds)
    }

    pub fn placement_after(&self) -> Duration {
        let seconds = self.known("placement.after_s").parse().expect("only checked values are stored");
        Duration::from_secs(seconds)
    }

    fn known(&self, key: &str) -> &str {
        self.get(key).expect("the key is in the table above").0
    }

    pub(super) fn set(&mut self, key: &str, change: Change, expect: Option<u64>) -> Result<(), Refused> {
        let definition = Self::define(key)?;
        if let Some(value) = &change.value {
            (definition.check)(value).map_err(|why| Refused::BadValue {
                key: key.to_owned(),
                value: value.chars().take(100).collect(),
                why,
            })?;
        }
        let (_, found) = self.get(key)?;
        if let Some(expected) = expect.filter(|expected| *expected != found) {
            return Err(Refused::Conflict { key: key.to_owned(), expected, found });
        }
        let setting = self.0.entry(key.to_owned()).or_insert_with(|| Setting { history: VecDeque::new() });
        while setting.history.len() >= HISTORY_MAX {
            setting.history.pop_front();
        }
        setting.history.push_back(change);
        Ok(())
    }

    /// Makes the value of an earlier change (0: the default) hold again, as a new change.
    pub(super) fn roll_back(
        &mut self,
        key: &str,
        to: u64,
        index: u64,
        at: UnixMillis,
        by: &Actor,
    ) -> Result<(), Refused> {
        let earlier = self.history(key)?.find(|change| change.index == to).map(|change| change.value.clone());
        let value = match (earlier, to) {
            (Some(value), _) => value,
            (None, 0) => None,
            (None, _) => return Err(Refused::NoSuchChange { key: key.to_owned(), index: to }),
        };
        self.set(key, Change { value, index, at, by: by.clone() }, None)
    }
}

impl Settings {
    pub fn define(key: &str) -> Result<&'static Definition, Refused> {
        DEFINITIONS.iter().find(|definition| definition.key == key).ok_or_else(|| Refused::UnknownSetting {
            key: key.chars().take(100).collect(),
            suggestion: nearest(key).map(str::to_owned),
        })
    }
}

/// The setting whose name shares the most letter pairs with what was typed.
fn nearest(typed: &str) -> Option<&'static str> {
    let pairs = |text: &str| -> Vec<(char, char)> { text.chars().zip(text.chars().skip(1)).collect() };
    let wanted = pairs(&typed.chars().take(100).collect::<String>());
    let shared = |definition: &&Definition| {
        let have = pairs(definition.key);
        wanted.iter().filter(|pair| have.contains(pair)).count()
    };
    let best = DEFINITIONS.iter().max_by_key(shared)?;
    (shared(&best) * 2 >= wanted.len().max(1)).then_some(best.key)
}

/// More are not looked through for each pull.
const REGISTRIES_MAX: usize = 64;

fn registries(value: &str) -> Result<Vec<Origin>, String> {
    if value == "none" {
        return Ok(Vec::new());
    }
    let all = value
        .split(',')
        .map(str::trim)
        .map(|text| text.parse().map_err(|error: ollama::ParseOriginError| error.to_string()));
    let all: Vec<Origin> = all.collect::<Result<_, _>>()?;
    if all.len() > REGISTRIES_MAX {
        return Err(format!("{REGISTRIES_MAX} of them are the most"));
    }
    Ok(all)
}

fn anonymous_scopes(value: &str) -> Result<Scopes, String> {
    if value == "none" {
        return Ok(Scopes::NONE);
    }
    let parse = |part: &str| match part.trim().parse::<Scope>() {
        Ok(Scope::Admin) => Err("`admin` always needs a key or the local socket".to_owned()),
        Ok(scope) => Ok(scope),
        Err(error) => Err(error.to_string()),
    };
    value.split(',').map(parse).collect()
}
