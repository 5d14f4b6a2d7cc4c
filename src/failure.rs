//! What a person reads when a command did not work: what happened, why, what to do next.

use std::error::Error;
use std::fmt;

use crate::exit::Exit;
use crate::plain::plain;

/// Ends a command. Each module's error becomes one where the exit code and the hint are known.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    error: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit, error: error.into(), hint: None }
    }

    pub(crate) fn hint(self, hint: impl Into<Option<String>>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text.into())
    }
}

/// Texts may come from a node or, through it, from a peer: what would steer a terminal is made visible instead.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", plain(&self.error.to_string()))?;
        let mut cause = self.error.source();
        while let Some(error) = cause {
            writeln!(f, "  cause: {}", plain(&error.to_string()))?;
            cause = error.source();
        }
        match &self.hint {
            Some(hint) => writeln!(f, "hint: {}", plain(hint)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot join the mesh through `{through}`")]
    struct Outer {
        through: &'static str,
        #[source]
        cause: Inner,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("that node belongs to mesh `lab-b`")]
    struct Inner;

    #[test]
    fn a_failure_says_what_why_and_what_next() {
        let error = Outer { through: "10.0.0.7:11437", cause: Inner };
        let hint = "start with another `--data-dir`".to_owned();
        let failure = Failure::new(Exit::JoinRefused, error).hint(hint);
        let expected = "error: cannot join the mesh through `10.0.0.7:11437`\n  \
                        cause: that node belongs to mesh `lab-b`\n\
                        hint: start with another `--data-dir`\n";
        assert_eq!(failure.to_string(), expected);
    }

    #[test]
    fn a_failure_without_cause_and_hint_is_one_line() {
        assert_eq!(Failure::usage("no").to_string(), "error: no\n");
    }

    #[test]
    fn text_from_elsewhere_cannot_steer_the_terminal() {
        let shown = Failure::usage("a\u{1b}[2Jb\nhint: run this").to_string();
        assert_eq!(shown, "error: a\\u{1b}[2Jb\\nhint: run this\n");
    }
}
