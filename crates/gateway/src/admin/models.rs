//! The catalogue: what a name means, where it should be, and who has it; and the work on a model that takes its time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use ::ollama::ModelName;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use node::{Actor, Api, HolderState, ModelInfo, Rule, Texts, Verb, chain};
use types::{Label, NodeId};

use crate::failure::Failure;
use crate::route::Ask;
use crate::wire;
use crate::work::{self, News};

pub(crate) const LINES: &str = "application/x-ndjson";

pub(crate) async fn list(ask: Ask<wire::Nothing>) -> Result<Vec<wire::Model>, Failure> {
    let api = ask.api();
    let holders = api.models().all_holders().await;
    Ok(api.model_infos().into_iter().map(|info| summary(api, info, &holders)).collect())
}

pub(crate) async fn show(ask: Ask<wire::ModelNamed>) -> Result<wire::ModelShown, Failure> {
    let api = ask.api();
    let info = known(api, &ask.input.name)?;
    let holders = api.models().holders(&info.digest).await;
    let layer = |piece: &node::Piece| wire::ModelLayer {
        digest: piece.digest.to_string(),
        blake3: piece.hash.to_string(),
        bytes: piece.size,
    };
    let meant = |moved: &node::Moved| wire::Meant {
        digest: moved.version.to_string(),
        at: wire::Time(moved.at),
        by: moved.by.to_string(),
        index: moved.index,
    };
    Ok(wire::ModelShown {
        name: info.name.to_string(),
        digest: info.digest.to_string(),
        bytes: info.bytes,
        pinned: info.pinned,
        aliases: info.aliases.iter().map(ModelName::to_string).collect(),
        rule: info.rule.as_ref().map(rule),
        assigned: info.assigned.iter().map(|node| api.name_of(*node)).collect(),
        holders: holders.into_iter().map(|(node, state)| holder(api, node, state)).collect(),
        layers: info.layers.iter().map(layer).collect(),
        history: info.history.iter().map(meant).collect(),
    })
}

pub(crate) async fn place(ask: Ask<wire::PlaceModel>) -> Result<wire::Done, Failure> {
    let name = known(ask.api(), &ask.input.name)?.name;
    let verb = match &ask.input.rule {
        None => Verb::Unplace { name },
        Some(wire::Rule { replicas, on, never, pin }) => {
            let labels = |texts: &[String]| {
                let parsed = texts.iter().map(|text| text.parse::<Label>());
                parsed.collect::<Result<_, _>>().map_err(|error| Failure::bad_request(error.to_string()))
            };
            let replicas = node::replicas(*replicas);
            Verb::Place { name, rule: Rule { replicas, on: labels(on)?, never: labels(never)?, warm: 0, pin: *pin } }
        }
    };
    change(&ask, verb).await
}

pub(crate) async fn pin(ask: Ask<wire::PinModel>) -> Result<wire::Done, Failure> {
    let name = known(ask.api(), &ask.input.name)?.name;
    let pinned = ask.input.pinned;
    change(&ask, Verb::PinTag { name, pinned }).await
}

pub(crate) async fn roll_back(ask: Ask<wire::RollBackModel>) -> Result<wire::Done, Failure> {
    let name = known(ask.api(), &ask.input.name)?.name;
    let to = ask.input.to;
    change(&ask, Verb::RollbackTag { name, to }).await
}

pub(crate) async fn remove(ask: Ask<wire::NameModel>) -> Result<wire::Done, Failure> {
    let name = known(ask.api(), &ask.input.name)?.name;
    change(&ask, Verb::DeleteTag { name }).await
}

pub(crate) async fn restore(ask: Ask<wire::NameModel>) -> Result<wire::Done, Failure> {
    let name = parse(&ask.input.name)?;
    if !ask.api().is_removed(&name) {
        let message = format!("no model `{name}` was removed from this mesh, or its files are collected by now");
        return Err(Failure::new(StatusCode::NOT_FOUND, "unknown_model", message));
    }
    change(&ask, Verb::RestoreTag { name }).await
}

pub(crate) async fn copy(ask: Ask<wire::CopyModel>) -> Result<wire::Done, Failure> {
    let to = parse(&ask.input.to)?;
    let from = known(ask.api(), &ask.input.from)?;
    let index = ask.api().copy_model(by(&ask), from.digest, to).await?;
    Ok(wire::Done { index })
}

pub(crate) async fn import(ask: Ask<wire::ImportModel>) -> Result<Response, Failure> {
    let wire::ImportModel { path, name, template, system, params } = ask.input.clone();
    let (name, path) = (parse(&name)?, PathBuf::from(path));
    if !path.is_absolute() {
        return Err(Failure::bad_request("a file is named from the root on, as the node does not run where you are"));
    }
    let texts = Texts { template, system, params, ..Texts::default() };
    let (api, by) = (ask.api().clone(), ask.actor()?);
    let total = tokio::fs::metadata(&path).await.map(|file| file.len()).ok();
    let news = Arc::new(News::default());
    let telling = news.clone();
    let told = move |bytes| {
        let status = "hashing".to_owned();
        telling.tell("hashing", wire::WorkLine { status, completed: Some(bytes), total, ..wire::WorkLine::default() });
    };
    let doing = async move {
        match api.models().import(by, &path, &name, &texts, told).await {
            Ok(imported) => wire::WorkLine {
                status: "success".to_owned(),
                digest: Some(imported.version.to_string()),
                completed: Some(imported.bytes),
                ..wire::WorkLine::default()
            },
            Err(error) => failed(&error),
        }
    };
    Ok(lines(news, Box::pin(doing)))
}

/// Looks at the files of each node that has them or should, one line each. Whole is what was looked at everywhere.
pub(crate) async fn verify(ask: Ask<wire::VerifyModel>) -> Result<Response, Failure> {
    let info = known(ask.api(), &ask.input.name)?;
    let (api, repair) = (ask.api().clone(), ask.input.repair);
    let news = Arc::new(News::default());
    let telling = news.clone();
    let doing = async move {
        let (mut whole, mut unseen, mut nodes) = (true, 0, 0);
        for (node, verified) in api.models().verify_everywhere(&info.digest, repair).await {
            nodes += 1;
            let name = api.name_of(node);
            let line = match verified {
                Ok(verified) => {
                    let good = verified.damaged == 0 || verified.repaired;
                    whole &= good;
                    let status = match (verified.damaged, verified.repaired) {
                        (0, _) => "whole".to_owned(),
                        (damaged, true) => format!("{damaged} damaged chunks, repaired"),
                        (damaged, false) => format!("{damaged} damaged chunks"),
                    };
                    wire::WorkLine { status, completed: Some(verified.bytes), ..wire::WorkLine::default() }
                }
                Err(why) => {
                    unseen += 1;
                    wire::WorkLine { status: format!("not looked at: {why}"), ..wire::WorkLine::default() }
                }
            };
            telling.tell(&name, wire::WorkLine { node: Some(name.clone()), ..line });
        }
        let error = match (nodes, whole, unseen) {
            (0, ..) => Some("no node that is up has files of it that can be looked at".to_owned()),
            (_, false, _) => Some("not all of it is what it should be".to_owned()),
            (_, true, 0) => None,
            (nodes, true, unseen) => Some(format!("{unseen} of {nodes} nodes that have it were not looked at")),
        };
        match error {
            None => wire::WorkLine { status: "success".to_owned(), ..wire::WorkLine::default() },
            Some(error) => wire::WorkLine {
                error: Some(error),
                hint: (!repair && !whole)
                    .then(|| "`omx models verify --repair` fetches what is damaged from other nodes".to_owned()),
                ..wire::WorkLine::default()
            },
        }
    };
    Ok(lines(news, Box::pin(doing)))
}

pub(crate) async fn transfers(ask: Ask<wire::Nothing>) -> Result<Vec<wire::Transfer>, Failure> {
    let api = ask.api();
    let transfer = |transfer: node::TransferInfo| {
        let progress = transfer.progress;
        let source = |source: node::SourceInfo| wire::TransferSource {
            node: api.name_of(source.node),
            bytes: source.bytes,
            rate: source.rate,
        };
        wire::Transfer {
            blake3: transfer.hash.to_string(),
            models: api.models_of(&transfer.hash).iter().map(ModelName::to_string).collect(),
            stage: stage(progress.stage).to_owned(),
            bytes: progress.bytes,
            total: progress.total,
            rate: progress.rate,
            sources: progress.sources.into_iter().map(source).collect(),
        }
    };
    Ok(api.models().transfers().into_iter().map(transfer).collect())
}

pub(crate) async fn collect(ask: Ask<wire::CollectGarbage>) -> Result<Vec<wire::Collected>, Failure> {
    let collected = ask.api().collect_models(ask.input.dry).await?;
    let told = |gone: node::CollectedBlob| wire::Collected {
        blake3: gone.hash.to_string(),
        bytes: gone.size,
        freed: gone.freed,
    };
    Ok(collected.into_iter().map(told).collect())
}

async fn change<I>(ask: &Ask<I>, verb: Verb) -> Result<wire::Done, Failure> {
    Ok(wire::Done { index: ask.api().change_models(by(ask), verb).await? })
}

/// On whose account. What somebody without a key may do, the registry judges.
fn by<I>(ask: &Ask<I>) -> Actor {
    ask.caller.actor(ask.api()).unwrap_or_else(|| ask.api().anonymous_actor())
}

fn parse(name: &str) -> Result<ModelName, Failure> {
    name.parse().map_err(|error: ::ollama::InvalidName| Failure::bad_request(error.to_string()))
}

fn known(api: &Api, name: &str) -> Result<ModelInfo, Failure> {
    let name = parse(name)?;
    api.model_info(&name).ok_or_else(|| {
        let message = format!("there is no model `{name}` in this mesh");
        Failure::new(StatusCode::NOT_FOUND, "unknown_model", message).hint("`omx models ls` shows all models")
    })
}

fn summary(
    api: &Api,
    info: ModelInfo,
    holders: &BTreeMap<NodeId, BTreeMap<::ollama::Digest, HolderState>>,
) -> wire::Model {
    let has = holders.iter().filter_map(|(node, versions)| Some((*node, *versions.get(&info.digest)?)));
    wire::Model {
        name: info.name.to_string(),
        digest: info.digest.to_string(),
        bytes: info.bytes,
        pinned: info.pinned,
        aliases: info.aliases.iter().map(ModelName::to_string).collect(),
        rule: info.rule.as_ref().map(rule),
        holders: has.map(|(node, state)| holder(api, node, state)).collect(),
    }
}

fn rule(rule: &Rule) -> wire::Rule {
    let labels = |labels: &std::collections::BTreeSet<Label>| labels.iter().map(Label::to_string).collect();
    wire::Rule {
        replicas: match rule.replicas {
            node::Replicas::All => None,
            node::Replicas::Count(count) => Some(count),
        },
        on: labels(&rule.on),
        never: labels(&rule.never),
        pin: rule.pin,
    }
}

fn holder(api: &Api, node: NodeId, state: HolderState) -> wire::Holder {
    let (state, bytes) = match state {
        HolderState::Verified => ("verified", None),
        HolderState::Stored => ("stored", None),
        HolderState::Fetching { bytes, .. } => ("fetching", Some(bytes)),
        HolderState::Listed => ("listed", None),
        HolderState::Damaged => ("damaged", None),
    };
    wire::Holder { node: api.name_of(node), state: state.to_owned(), bytes }
}

fn stage(stage: node::Stage) -> &'static str {
    match stage {
        node::Stage::Queued => "queued",
        node::Stage::WaitingForSpace { .. } => "waiting_for_space",
        node::Stage::WaitingForSources => "waiting_for_sources",
        node::Stage::Fetching => "fetching",
        node::Stage::Checking => "checking",
        node::Stage::Done => "done",
        node::Stage::Failed => "failed",
    }
}

fn failed(error: &node::ModelError) -> wire::WorkLine {
    wire::WorkLine { error: Some(chain(error)), hint: error.hint(), ..wire::WorkLine::default() }
}

fn lines(news: Arc<News<wire::WorkLine>>, doing: futures::future::BoxFuture<'static, wire::WorkLine>) -> Response {
    let write = |line: &wire::WorkLine| serde_json::to_vec(line).expect("texts and numbers have a form in JSON");
    let mut response = Response::new(work::body(news, doing, write));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(LINES));
    response
}
