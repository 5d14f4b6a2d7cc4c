//! `/api/create`: a model from another, or from GGUF files that were uploaded before.
//!
//! As since Ollama 0.30, a GGUF file is written anew rather than taken as it is: here with some bytes more at its end.
//! So what was uploaded and what the model is made of have different digests.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::progress::{Progress, Reporter, Wanted};
use super::pull::fetch;
use super::{Depot, failed};
use crate::body::Answer;
use crate::digest::Digest;
use crate::fault::Fault;
use crate::folder::{Layer, Manifest};
use crate::json::Fields;
use crate::name::Name;
use crate::refusal::Refusal;
use crate::release::media_type;

/// What the loader of models would write behind the last tensor.
const PADDING: [u8; 32] = [0; 32];

#[derive(Debug)]
struct Recipe {
    name: Name,
    base: Base,
    /// By the kind of their layer.
    texts: Vec<(&'static str, String)>,
}

#[derive(Debug)]
enum Base {
    Model(Name),
    Weights(Digest),
}

pub(super) async fn create(depot: &Arc<Depot>, body: &[u8], fault: Option<Fault>) -> Result<Answer, Refusal> {
    let fields = Fields::read("CreateRequest", body)?;
    let recipe = Recipe::read(depot, &fields)?;
    let stream = fields.flag("stream")?.unwrap_or(true);
    let work = {
        let depot = depot.clone();
        move |reporter| async move { recipe.cook(&depot, &reporter).await }
    };
    Progress::begin(depot, Wanted { stream, fault }, work).await
}

impl Recipe {
    fn read(depot: &Depot, fields: &Fields) -> Result<Self, Refusal> {
        let name = Name::parse(&fields.model()?).ok_or_else(Refusal::invalid_name)?;
        let from = fields.text("from")?;
        let files = fields.object("files")?;
        let mut weights = Vec::new();
        for (path, digest) in &files {
            if !is_relative(path) {
                return Err(Refusal::bad_request("file path must be relative"));
            }
            let digest = digest.as_str().unwrap_or_default().parse::<Digest>();
            weights.push(digest.map_err(|invalid| Refusal::bad_request(invalid.to_string()))?);
        }
        let base = if !from.is_empty() {
            Base::Model(Name::parse(&from).ok_or_else(Refusal::invalid_name)?)
        } else if let Some(digest) = weights.into_iter().next() {
            let path = depot.folder.blob(&digest);
            if !path.is_file() {
                return Err(Refusal::bad_request(format!("blob \"{digest}\" not found")));
            }
            if !is_gguf(&path) {
                return Err(Refusal::bad_request("supplied file was not in GGUF format"));
            }
            Base::Weights(digest)
        } else {
            return Err(Refusal::bad_request("neither 'from' or 'files' was specified"));
        };
        let mut texts = Vec::new();
        for kind in ["template", "system", "license"] {
            // A licence may be a list, of which the first is enough here.
            let text = match fields.get(kind) {
                Some(Value::Array(several)) => several.first().and_then(Value::as_str).unwrap_or_default().to_owned(),
                _ => fields.text(kind)?,
            };
            texts.extend((!text.is_empty()).then_some((kind, text)));
        }
        let parameters = fields.object("parameters")?;
        texts.extend((!parameters.is_empty()).then(|| ("params", Value::Object(parameters).to_string())));
        Ok(Self { name, base, texts })
    }

    async fn cook(&self, depot: &Depot, reporter: &Reporter) -> Result<(), Refusal> {
        let folder = &depot.folder;
        let name = folder.spelling(&self.name);
        let before = folder.find(&name);
        let (config, mut layers) = match &self.base {
            Base::Model(from) => self.taken(depot, from, reporter).await?,
            Base::Weights(digest) => self.converted(depot, digest, reporter).await?,
        };
        for (kind, text) in &self.texts {
            let (digest, new) = folder.write_blob(text.as_bytes()).map_err(failed)?;
            let wanted = media_type(kind);
            layers.retain(|(layer, _)| layer.media_type != wanted);
            layers.push((Layer::new(kind, digest, text.len() as u64), new));
        }
        let text = config.to_string();
        let (digest, new) = folder.write_blob(text.as_bytes()).map_err(failed)?;
        layers.push((Layer::new("config", digest, text.len() as u64), new));
        for (layer, new) in &layers {
            let what = if *new { "creating new layer" } else { "using existing layer" };
            reporter.say(&format!("{what} {}", layer.digest)).await;
        }
        let (config, _) = layers.pop().expect("it was just pushed");
        let manifest = Manifest { config, layers: layers.into_iter().map(|(layer, _)| layer).collect() };
        reporter.say("writing manifest").await;
        folder.write_manifest(&name, &manifest.bytes()).map_err(failed)?;
        if let Some(before) = before.filter(|_| folder.prunes()) {
            folder.remove_unused(before.manifest.blobs().map(|layer| &layer.digest)).map_err(failed)?;
        }
        reporter.say("success").await;
        Ok(())
    }

    /// Of another model, which is pulled where it is not here.
    async fn taken(&self, depot: &Depot, from: &Name, reporter: &Reporter) -> Result<Begun, Refusal> {
        if depot.folder.find(from).is_none() {
            fetch(depot, from, false, false, reporter).await?;
        }
        let kept = depot.folder.find(from).ok_or_else(|| failed(format!("model '{}' not found", from.short())))?;
        let config = depot.folder.config(&kept.manifest).ok_or_else(|| failed("file does not exist"))?;
        let source = Some(kept.name.full());
        let layers = kept.manifest.layers.into_iter().map(|layer| (Layer { from: source.clone(), ..layer }, false));
        Ok((config, layers.collect()))
    }

    async fn converted(&self, depot: &Depot, digest: &Digest, reporter: &Reporter) -> Result<Begun, Refusal> {
        let mut bytes = fs::read(depot.folder.blob(digest)).map_err(failed)?;
        reporter.say("parsing GGUF").await;
        reporter.say("validating GGUF model").await;
        reporter.say("verifying conversion").await;
        let family = architecture(&bytes).unwrap_or("unknown").to_owned();
        bytes.extend(PADDING);
        let (digest, new) = depot.folder.write_blob(&bytes).map_err(failed)?;
        let config = json!({
            "model_format": "gguf",
            "model_family": family,
            "model_families": [family],
            "model_type": "1.0B",
            "file_type": "F32",
            "architecture": "amd64",
            "os": "linux",
        });
        Ok((config, vec![(Layer::new("model", digest, bytes.len() as u64), new)]))
    }
}

/// The configuration, and the layers with whether they are new.
type Begun = (Value, Vec<(Layer, bool)>);

/// As Go's `fs.ValidPath` sees it.
fn is_relative(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
}

/// Of a file whose first key says it, as that of all known writers does.
fn architecture(file: &[u8]) -> Option<&str> {
    const KEY: &[u8] = b"\x14\0\0\0\0\0\0\0general.architecture\x08\0\0\0";
    let value = file.get(24..)?.strip_prefix(KEY)?;
    let (length, rest) = value.split_first_chunk()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    std::str::from_utf8(rest.get(..length)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Weights;

    #[test]
    fn a_file_says_its_architecture_or_does_not() {
        let head = Weights::new(1, 0).read(0, 4096);
        assert_eq!(architecture(&head), Some("llama"));
        for short in 0..60 {
            assert_eq!(architecture(&head[..short]), None, "{short}");
        }
    }

    #[test]
    fn paths_stay_where_they_are() {
        assert!(is_relative("a.gguf") && is_relative("a/b.gguf"));
        for wrong in ["", "/a", "../a", "a/../b", "a//b", "./a", "a/"] {
            assert!(!is_relative(wrong), "{wrong}");
        }
    }
}
