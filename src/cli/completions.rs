//! `omx completions`: what a shell needs to complete the rest.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Print the completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  omx completions bash > ~/.local/share/bash-completion/completions/omx\n  \
    omx completions zsh > ~/.zfunc/_omx\n  omx completions fish > ~/.config/fish/completions/omx.fish")]
pub(super) struct Completions {
    shell: Shell,
}

impl Completions {
    pub(super) fn script(self) -> String {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "omx", &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_learns_every_verb() {
        for shell in Shell::value_variants() {
            let script = Completions { shell: *shell }.script();
            for verb in Cli::command().get_subcommands() {
                assert!(script.contains(verb.get_name()), "{shell}: no `{}`", verb.get_name());
            }
        }
    }
}
