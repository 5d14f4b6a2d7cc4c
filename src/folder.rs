//! Which data folder is meant.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// The folder a person gets who names none.
pub(crate) fn default() -> Result<PathBuf, Failure> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let usual = if cfg!(target_os = "macos") {
        variable("HOME").map(|home| home.join("Library/Application Support/omx"))
    } else if cfg!(windows) {
        variable("LOCALAPPDATA").map(|data| data.join("omx"))
    } else {
        // A relative path there is to be ignored, says the XDG specification.
        let data = variable("XDG_DATA_HOME").filter(|path| path.is_absolute());
        data.or_else(|| variable("HOME").map(|home| home.join(".local/share"))).map(|data| data.join("omx"))
    };
    usual.ok_or_else(|| {
        Failure::usage("there is no data folder: this user has no home").hint("name one with `--data-dir`".to_owned())
    })
}

/// What to add to `omx` in a line to be typed, so that it means this folder: nothing where it would anyway.
pub(crate) fn flag(folder: &Path) -> String {
    let usual = std::env::var_os("OMX_DATA_DIR").map(PathBuf::from).or_else(|| default().ok());
    if usual.is_some_and(|usual| usual == folder) {
        return String::new();
    }
    format!(" --data-dir {}", quoted(&folder.display().to_string()))
}

/// As a POSIX shell reads it back.
pub(crate) fn quoted(text: &str) -> String {
    let safe = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "/._-+:@%,=~".contains(c));
    if safe { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_other_than_the_usual_is_named_in_lines_to_type() {
        assert_eq!(flag(Path::new("/srv/omx")), " --data-dir /srv/omx");
        assert_eq!(flag(Path::new("/srv/my omx")), " --data-dir '/srv/my omx'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("~/a"), "~/a");
    }
}
