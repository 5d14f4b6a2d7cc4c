use clap::CommandFactory;

use super::*;

mod verbs;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

/// Every command with its path, as typed.
fn commands(command: &clap::Command, path: &str) -> Vec<(String, clap::Command)> {
    let mut found = Vec::new();
    for sub in command.get_subcommands() {
        let path = format!("{path} {}", sub.get_name());
        found.push((path.clone(), sub.clone()));
        found.extend(commands(sub, &path));
    }
    found
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn help_names_each_verb_the_exit_codes_and_where_to_begin() {
    let help = Cli::command().render_long_help().to_string();
    // What only the node itself starts is not for people to type.
    for verb in Cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
        assert!(help.contains(&format!("\n  {}", verb.get_name())), "no `{}` in\n{help}", verb.get_name());
    }
    assert!(help.contains(&exit::help().trim_end().to_owned()), "{help}");
    assert!(help.contains("omx up --join TOKEN"), "{help}");
}

#[test]
fn every_command_says_what_it_is_for() {
    let commands = commands(&Cli::command(), "omx");
    assert!(commands.len() > 25, "{}", commands.len());
    for (path, command) in commands {
        assert!(command.get_about().is_some_and(|about| !about.to_string().is_empty()), "{path}");
        // A noun's own help shows examples for its verbs.
        let is_noun_or_verb = path.split(' ').count() == 2;
        let teaches = command.get_after_help().is_some() || ["leave"].contains(&command.get_name());
        assert!(!is_noun_or_verb || teaches, "{path} has no example");
    }
}

/// Lines of a page that begin with `omx`, up to where the shell takes over or a remark begins.
fn examples(page: &str) -> impl Iterator<Item = &str> {
    let lines = page.lines().map(str::trim_start).filter(|line| line.starts_with("omx "));
    lines.map(|line| {
        let end = ["  ", " | ", " > "].iter().filter_map(|stop| line.find(stop)).min();
        &line[..end.unwrap_or(line.len())]
    })
}

#[test]
fn examples_can_be_typed() {
    let mut pages = vec![include_str!("../../README.md").to_owned()];
    let mut commands: Vec<_> = commands(&Cli::command(), "omx").into_iter().map(|(_, command)| command).collect();
    commands.push(Cli::command());
    for command in &commands {
        let helps = [command.get_after_help(), command.get_after_long_help()];
        pages.extend(helps.into_iter().flatten().map(ToString::to_string));
    }
    let mut tried = 0;
    for typed in pages.iter().flat_map(|page| examples(page)) {
        if let Err(error) = parse(typed) {
            panic!("`{typed}`: {error}");
        }
        tried += 1;
    }
    assert!(tried > 30, "{tried}");
}

#[test]
fn global_flags_stand_before_and_behind_the_verb() {
    for line in ["omx --data-dir d --json status", "omx status --json --data-dir d"] {
        let cli = parse(line).unwrap();
        assert!(cli.globals.json);
        assert_eq!(cli.globals.data_dir.as_deref(), Some(std::path::Path::new("d")));
    }
}

#[test]
fn a_mistake_in_typing_is_an_error() {
    for line in [
        "omx",
        "omx staus",
        "omx nodes label tower",
        "omx keys create chat",
        "omx token create --ttl 60",
        "omx config rollback voters.max",
        "omx keys create chat --scope root",
        "omx nodes backend add Attic 10.0.0.9",
        "omx keys create chat --scope infer --concurrent 0",
        "omx token create --role king",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn a_local_read_says_so_to_the_node() {
    assert_eq!(Freshness { local: true }.of("/omx/v1/nodes"), "/omx/v1/nodes?consistency=local");
    assert_eq!(Freshness { local: false }.of("/omx/v1/nodes"), "/omx/v1/nodes");
}
