//! Names of models as Ollama reads them: `[[host/]namespace/]model[:tag]`.

use std::path::PathBuf;

/// Compared without regard to case, shown as it was written.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

const NAMESPACE: &str = "library";
const TAG: &str = "latest";

impl Name {
    pub(crate) const HOST: &str = "registry.ollama.ai";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.split_once("://").map_or(text, |(_, rest)| rest);
        let last_slash = text.rfind('/').map_or(0, |at| at + 1);
        let (path, tag) = match text[last_slash..].rfind(':') {
            Some(at) => (&text[..last_slash + at], &text[last_slash + at + 1..]),
            None => (text, TAG),
        };
        let mut from_the_right = path.rsplitn(3, '/');
        let model = from_the_right.next()?;
        let namespace = from_the_right.next().unwrap_or(NAMESPACE);
        let host = from_the_right.next().unwrap_or(Self::HOST);
        let good =
            part(host, "_-.:", 350) && part(namespace, "_-", 80) && part(model, "_-.", 80) && part(tag, "_-.", 80);
        let owned = str::to_owned;
        good.then(|| Self { host: owned(host), namespace: owned(namespace), model: owned(model), tag: owned(tag) })
    }

    /// As `tags` and `ps` show it: without what is default, but always with the tag.
    pub(crate) fn short(&self) -> String {
        let Self { host, namespace, model, tag } = self;
        match (host.eq_ignore_ascii_case(Self::HOST), namespace.eq_ignore_ascii_case(NAMESPACE)) {
            (true, true) => format!("{model}:{tag}"),
            (true, false) => format!("{namespace}/{model}:{tag}"),
            (false, _) => self.full(),
        }
    }

    pub(crate) fn full(&self) -> String {
        let Self { host, namespace, model, tag } = self;
        format!("{host}/{namespace}/{model}:{tag}")
    }

    /// Below a folder of manifests.
    pub(crate) fn path(&self) -> PathBuf {
        [&self.host, &self.namespace, &self.model, &self.tag].iter().collect()
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// What a registry knows it by: the namespace and the model.
    pub(crate) fn repository(&self) -> String {
        format!("{}/{}", self.namespace, self.model)
    }

    pub(crate) fn tag(&self) -> &str {
        &self.tag
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        self.full().eq_ignore_ascii_case(&other.full())
    }
}

fn part(text: &str, also: &str, length_max: usize) -> bool {
    let word = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.len() <= length_max
        && text.starts_with(word)
        && text.chars().all(|character| word(character) || also.contains(character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_default() {
        for (written, short, full) in [
            ("m", "m:latest", "registry.ollama.ai/library/m:latest"),
            ("m:1b", "m:1b", "registry.ollama.ai/library/m:1b"),
            ("me/m", "me/m:latest", "registry.ollama.ai/me/m:latest"),
            ("localhost:5000/ns/m:t", "localhost:5000/ns/m:t", "localhost:5000/ns/m:t"),
            ("http://h/library/m", "h/library/m:latest", "h/library/m:latest"),
        ] {
            let name = Name::parse(written).unwrap();
            assert_eq!((name.short().as_str(), name.full().as_str()), (short, full), "{written}");
        }
        assert!(Name::parse("M:Latest").unwrap().is(&Name::parse("m").unwrap()));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for wrong in ["", ":", "m:", "/m", "-m", "a b", "localhost:5000/m", "a/b/c/d", "n.s/m", &"m".repeat(81)] {
            assert!(Name::parse(wrong).is_none(), "{wrong}");
        }
    }
}
