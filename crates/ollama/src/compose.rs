//! Making a model: a manifest of weights that are there and of small texts. Pure; who keeps the texts is the caller's
//! business.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::Digest;
use crate::manifest::{Config, Layer, LayerKind, Manifest};
use crate::wire::Message;

/// Beyond it a template, a licence or the like is refused.
pub const TEXT_BYTES_MAX: u64 = 1 << 20;

/// What a model comes with beside its weights.
#[derive(Debug, Clone, Default)]
pub struct Texts {
    /// In Go's template language; the weights' own, where there is none.
    pub template: Option<String>,
    pub system: Option<String>,
    pub licenses: Vec<String>,
    pub params: Map<String, Value>,
    pub messages: Vec<Message>,
}

/// A model on paper.
#[derive(Debug, Clone)]
pub struct Composed {
    pub manifest: Manifest,
    /// The manifest's bytes, whose digest is the model's.
    pub bytes: Vec<u8>,
    /// All it names but the weights it was made of.
    pub small: Vec<(Digest, Vec<u8>)>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a layer of {bytes} bytes is longer than {max}")]
pub struct TooLong {
    pub bytes: u64,
    pub max: u64,
}

/// What a header says of its file, as Ollama writes it down.
pub fn describe(header: &gguf::Header<'_>) -> Config {
    let facts = gguf::Facts::of(header);
    let family = facts.as_ref().map_or_else(|| "unknown".to_owned(), |facts| facts.architecture.clone());
    Config {
        model_format: "gguf".to_owned(),
        model_families: Some(vec![family.clone()]),
        model_family: family,
        model_type: facts.as_ref().map_or_else(String::new, |facts| human_number(facts.parameters)),
        file_type: facts.as_ref().map_or_else(|| "unknown".to_owned(), |facts| facts.file_type.to_owned()),
        // What Ollama writes, whatever the machine: the format it took over wants something there.
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        ..Config::default()
    }
}

/// A model of these weights (and projectors and adapters) and texts. The same ones give the same digest everywhere.
pub fn compose(weights: Vec<Layer>, config: &Config, texts: &Texts) -> Result<Composed, TooLong> {
    compose_on(weights, config, texts)
}

/// A model like another one, but for the texts that are given anew: each kind of them takes the old ones' place.
pub fn recompose(base: &Manifest, config: &Config, texts: &Texts) -> Result<Composed, TooLong> {
    let given = |kind: LayerKind| match kind {
        LayerKind::Template => texts.template.is_some(),
        LayerKind::System => texts.system.is_some(),
        LayerKind::License => !texts.licenses.is_empty(),
        LayerKind::Params => !texts.params.is_empty(),
        LayerKind::Messages => !texts.messages.is_empty(),
        LayerKind::Model | LayerKind::Projector | LayerKind::Adapter | LayerKind::Other => false,
    };
    compose_on(base.layers.iter().filter(|layer| !given(layer.kind())).cloned().collect(), config, texts)
}

fn compose_on(mut layers: Vec<Layer>, config: &Config, texts: &Texts) -> Result<Composed, TooLong> {
    let mut small = Vec::new();
    let mut add = |kind: LayerKind, text: Vec<u8>| {
        let (bytes, max) = (text.len() as u64, TEXT_BYTES_MAX);
        if bytes > max {
            return Err(TooLong { bytes, max });
        }
        let digest = Digest::of(&text);
        small.push((digest, text));
        Ok(Layer { media_type: kind.media_type(), digest, size: bytes })
    };
    let Texts { template, system, licenses, params, messages } = texts;
    let plain = [(LayerKind::Template, template), (LayerKind::System, system)];
    for (kind, text) in plain.into_iter().filter_map(|(kind, text)| Some((kind, text.as_ref()?))) {
        layers.push(add(kind, text.clone().into_bytes())?);
    }
    for license in licenses {
        layers.push(add(LayerKind::License, license.clone().into_bytes())?);
    }
    if !params.is_empty() {
        layers.push(add(LayerKind::Params, json(params))?);
    }
    if !messages.is_empty() {
        layers.push(add(LayerKind::Messages, json(messages))?);
    }
    // Its type is set by the manifest it goes into.
    let config = add(LayerKind::Other, json(config))?;
    let manifest = Manifest::new(config, layers);
    let bytes = manifest.bytes().expect("a manifest of ours has text for keys and fits into memory");
    Ok(Composed { manifest, bytes, small })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and options have text for keys")
}

/// `7B`, `2.03M`: as Ollama shows a number of parameters.
fn human_number(number: u64) -> String {
    const STEPS: [(u64, usize, &str); 2] = [(1_000_000_000, 1, "B"), (1_000_000, 2, "M")];
    for (step, digits, unit) in STEPS {
        if number >= step {
            let digits = if number.is_multiple_of(step) { 0 } else { digits };
            return format!("{:.digits$}{unit}", number as f64 / step as f64);
        }
    }
    if number >= 1000 { format!("{:.0}K", number as f64 / 1000.0) } else { number.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_counted_as_ollama_counts_them() {
        for (number, text) in [
            (7, "7"),
            (1_500, "2K"),
            (2_033_408, "2.03M"),
            (3_000_000, "3M"),
            (7_000_000_000, "7B"),
            (8_030_261_248, "8.0B"),
        ] {
            assert_eq!(human_number(number), text);
        }
    }

    fn texts() -> Texts {
        let params = serde_json::json!({ "temperature": 0 }).as_object().unwrap().clone();
        Texts { system: Some("be brief".to_owned()), licenses: vec!["one".to_owned()], params, ..Texts::default() }
    }

    #[test]
    fn a_model_is_made_of_weights_and_texts() {
        let weights = Layer { media_type: LayerKind::Model.media_type(), digest: Digest::of(b"weights"), size: 7 };
        let made = compose(vec![weights.clone()], &Config::default(), &texts()).unwrap();
        let kinds: Vec<_> = made.manifest.layers.iter().map(Layer::kind).collect();
        assert_eq!(kinds, [LayerKind::Model, LayerKind::System, LayerKind::License, LayerKind::Params]);
        assert_eq!(Manifest::parse(&made.bytes).unwrap(), made.manifest);
        let named = made.manifest.blobs().filter(|layer| **layer != weights);
        assert!(named.zip(&made.small).all(|(layer, (digest, text))| {
            layer.digest == *digest && *digest == Digest::of(text) && layer.size == text.len() as u64
        }));
    }

    #[test]
    fn a_text_that_is_given_anew_takes_the_old_ones_place() {
        let weights = Layer { media_type: LayerKind::Model.media_type(), digest: Digest::of(b"weights"), size: 7 };
        let base = compose(vec![weights], &Config::default(), &texts()).unwrap().manifest;
        let anew = Texts {
            system: Some("be long".to_owned()),
            template: Some("{{ .Prompt }}".to_owned()),
            ..Texts::default()
        };
        let made = recompose(&base, &Config::default(), &anew).unwrap();
        let count = |kind| made.manifest.layers.iter().filter(|layer| layer.kind() == kind).count();
        for kind in [LayerKind::Model, LayerKind::System, LayerKind::Template, LayerKind::License, LayerKind::Params] {
            assert_eq!(count(kind), 1, "{kind:?}");
        }
        assert_eq!(made.manifest.layer(LayerKind::System).unwrap().digest, Digest::of(b"be long"));
        assert_eq!(recompose(&base, &Config::default(), &Texts::default()).unwrap().manifest.layers, base.layers);
    }

    #[test]
    fn a_text_without_end_is_refused() {
        let long = Texts { system: Some("x".repeat(TEXT_BYTES_MAX as usize + 1)), ..Texts::default() };
        assert_eq!(
            compose(Vec::new(), &Config::default(), &long).unwrap_err(),
            TooLong { bytes: TEXT_BYTES_MAX + 1, max: TEXT_BYTES_MAX }
        );
    }
}
