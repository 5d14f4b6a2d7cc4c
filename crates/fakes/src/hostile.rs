//! Manifests as an enemy would write them, made from a seed: whoever reads one must open nothing outside its folder,
//! allocate nothing because it says so, and end.

use serde_json::{Value, json};

use crate::config::mix;
use crate::release::{CONFIG_TYPE, MANIFEST_TYPE, media_type};

/// Without end; the same seed gives the same ones.
pub fn manifests(seed: u64) -> impl Iterator<Item = Vec<u8>> {
    (0..).map(move |number| Dice(mix(seed ^ mix(number))).manifest())
}

/// Names no model has.
pub const NAMES: [&str; 16] = [
    "../../etc/passwd",
    "..",
    ".",
    "library/../../x",
    "/etc/passwd",
    "a/b/c/d",
    "registry.ollama.ai/../library/m",
    "m:../../x",
    "m:",
    "m:a/b",
    "a\\b",
    "C:\\x",
    "m\u{0}",
    "m\n",
    "m\u{2215}x",
    "-m",
];

/// What is no digest, and looks like a path, a longer one, or almost one.
const DIGESTS: [&str; 16] = [
    "",
    "sha256:",
    "sha256:../../../../etc/passwd",
    "sha256-../../../../etc/passwd",
    "sha256:/etc/passwd",
    "../blobs/sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b8555",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855/../x",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85\u{0}",
    "sha256:..%2f..%2f..%2fetc%2fpasswd%00%00%00%00%00%00%00%00%00%00%00%00%00%00%00%00%00",
    "sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "SHA256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha256:\u{ff10}3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha256:................................................................",
    "sha256:C:\\windows\\system32\\drivers\\etc\\hosts\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\\",
];

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = mix(self.0);
        usize::try_from(self.0 % sides as u64).expect("less than a size")
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.roll(from.len())]
    }

    fn manifest(&mut self) -> Vec<u8> {
        match self.roll(12) {
            0 => self.noise(),
            1 => "[".repeat(1 + self.roll(2_000)).into_bytes(),
            2 => format!("{{\"a\":{}", "{\"a\":".repeat(1 + self.roll(2_000))).into_bytes(),
            3 => {
                let whole = self.document().to_string();
                let mut cut = whole.into_bytes();
                cut.truncate(self.roll(cut.len()));
                cut
            }
            4 => {
                let mut broken = self.document().to_string().into_bytes();
                for _ in 0..=self.roll(8) {
                    let at = self.roll(broken.len());
                    broken[at] = u8::try_from(self.roll(256)).expect("less than 256");
                }
                broken
            }
            _ => self.document().to_string().into_bytes(),
        }
    }

    fn noise(&mut self) -> Vec<u8> {
        (0..self.roll(512)).map(|_| u8::try_from(self.roll(256)).expect("less than 256")).collect()
    }

    /// Something of it is always wrong.
    fn document(&mut self) -> Value {
        let mut layers: Vec<Value> = (0..1 + self.roll(4)).map(|_| self.layer(&media_type("model"))).collect();
        if self.roll(16) == 0 {
            layers = vec![self.layer(&media_type("model")); 300];
        }
        let config = self.layer(CONFIG_TYPE);
        let mut document =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers });
        let other = self.odd();
        match self.roll(8) {
            0 => document["layers"] = other,
            1 => document["config"] = other,
            2 => document["schemaVersion"] = other,
            3 => document["mediaType"] = other,
            _ => {}
        }
        // At least one digest is none, whatever else was rolled.
        let digest = self.pick(&DIGESTS);
        match document["layers"].as_array_mut().and_then(|layers| layers.first_mut()) {
            Some(Value::Object(layer)) => drop(layer.insert("digest".to_owned(), digest.into())),
            _ => document["config"] = json!({ "mediaType": CONFIG_TYPE, "digest": digest, "size": 1 }),
        }
        document
    }

    fn layer(&mut self, kind: &str) -> Value {
        let good = format!("sha256:{:016x}{:048x}", mix(self.0), self.roll(1000));
        let digest = if self.roll(2) == 0 { good.into() } else { Value::from(self.pick(&DIGESTS)) };
        let size = match self.roll(6) {
            0 => json!(-1),
            1 => json!(u64::MAX),
            2 => json!(i64::MAX),
            3 => json!(1e300),
            4 => self.odd(),
            _ => json!(self.roll(1 << 20)),
        };
        let kind = if self.roll(4) == 0 { self.pick(&["", "image/png", "../x", "\u{0}"]) } else { kind };
        let mut layer = json!({ "mediaType": kind, "digest": digest, "size": size });
        if self.roll(4) == 0 {
            layer["from"] = self.pick(&NAMES).into();
            layer["name"] = self.pick(&NAMES).into();
        }
        layer
    }

    fn odd(&mut self) -> Value {
        match self.roll(6) {
            0 => Value::Null,
            1 => json!("2"),
            2 => json!([[[]]]),
            3 => json!({ "digest": { "digest": "sha256:" } }),
            4 => json!(-0.5),
            _ => json!("x".repeat(1 + self.roll(4_000))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::digest::Digest;
    use crate::name::Name;

    #[test]
    fn they_differ_and_none_is_wholly_good() {
        let made: Vec<Vec<u8>> = manifests(1).take(2000).collect();
        assert_eq!(made, manifests(1).take(2000).collect::<Vec<_>>());
        assert!(made.iter().collect::<BTreeSet<_>>().len() > 1900);
        let good = |layer: &Value| layer["digest"].as_str().is_some_and(|digest| digest.parse::<Digest>().is_ok());
        let wholly_good = |manifest: &Vec<u8>| {
            let Ok(document) = serde_json::from_slice::<Value>(manifest) else { return false };
            let layers = document["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
            good(&document["config"]) && !layers.is_empty() && layers.iter().all(good)
        };
        assert_eq!(made.iter().filter(|manifest| wholly_good(manifest)).count(), 0);
    }

    #[test]
    fn names_and_digests_are_none() {
        assert!(NAMES.iter().all(|name| Name::parse(name).is_none()));
        assert!(DIGESTS.iter().all(|digest| digest.parse::<Digest>().is_err()));
    }
}
