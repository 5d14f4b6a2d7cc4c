use std::io::Write;

use clap::Parser;

use super::*;
use crate::settings::Origin;

#[derive(Debug, Parser)]
struct Typed {
    #[command(flatten)]
    up: Up,
}

fn typed(line: &str) -> Up {
    Typed::try_parse_from(["up"].into_iter().chain(line.split_whitespace())).unwrap().up
}

fn revealed(token: Option<Secret<String>>) -> Option<String> {
    token.map(|token| token.expose().clone())
}

#[test]
fn every_flag_sets_its_setting_and_no_other() {
    for (line, key) in [
        ("--name tower", Key::Name),
        ("--api 127.0.0.1:1", Key::Api),
        ("--mesh 127.0.0.1:1", Key::Mesh),
        ("--bulk 127.0.0.1:1", Key::Bulk),
        ("--no-mdns", Key::Mdns),
        ("--allow-host a.lan --allow-host b.lan", Key::AllowHost),
        ("--insecure-no-auth", Key::InsecureNoAuth),
        ("--tls-cert cert.pem", Key::TlsCert),
        ("--tls-key key.pem", Key::TlsKey),
        ("--ollama http://attic:1", Key::Ollama),
        ("--engine off", Key::Engine),
        ("--log warn", Key::Log),
    ] {
        assert!(line.starts_with(&key.flag()), "{line}");
        let settings = Settings::resolve(&typed(line).flags(0), |_| None, &File::default()).unwrap();
        let flagged = settings.rows().into_iter().filter(|(_, _, origin)| *origin == Origin::Flag);
        assert_eq!(flagged.map(|(key, ..)| key).collect::<Vec<_>>(), [key], "{line}");
    }
}

#[test]
fn verbosity_is_a_log_level_unless_one_is_named() {
    let log = |line: &str, verbose| {
        let flags = typed(line).flags(verbose);
        Settings::resolve(&flags, |_| None, &File::default()).unwrap().log
    };
    assert_eq!(log("", 0).origin, Origin::Default);
    assert_eq!(log("", 1).value, VERBOSE);
    assert_eq!(log("", 3).value, VERY_VERBOSE);
    assert_eq!(log("--log warn", 3).value, "warn");
}

#[test]
fn a_token_comes_from_the_flag_or_the_file_or_the_variable() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "omxt_file").unwrap();
    let from_file = format!("--join-file {}", file.path().display());
    let variable = || Some("omxt_variable".to_owned());
    assert_eq!(revealed(typed("--join omxt_flag").token(variable()).unwrap()).as_deref(), Some("omxt_flag"));
    assert_eq!(revealed(typed(&from_file).token(variable()).unwrap()).as_deref(), Some("omxt_file"));
    assert_eq!(revealed(typed("").token(variable()).unwrap()).as_deref(), Some("omxt_variable"));
    assert_eq!(revealed(typed("").token(Some(String::new())).unwrap()), None);
    let missing = typed("--join-file no/such/file").token(None).unwrap_err().to_string();
    assert!(missing.starts_with("error: failed to read `no/such/file`\n  cause: "), "{missing}");
}

#[test]
fn a_token_does_not_print_itself() {
    let shown = format!("{:?}", typed("--join omxt_canary"));
    assert!(!shown.contains("canary"), "{shown}");
}

#[test]
fn what_to_type_next_works_as_it_stands() {
    let greet = |api: &str, open| {
        let none = Models::None("nothing runs models".to_owned());
        let (socket, folder) = (Path::new("/srv/my omx/run/omx.sock"), Path::new("/srv/my omx"));
        greeting(api.parse().unwrap(), open, socket, folder, &none)
    };
    let expected = "API           http://127.0.0.1:11435\n\
                    models        nothing runs models\n\
                    try it        curl http://127.0.0.1:11435/omx/v1/status\n\
                    or            omx --data-dir '/srv/my omx' doctor\n\
                    next machine  omx up --join TOKEN    (TOKEN: what `omx --data-dir '/srv/my omx' token create` prints here)\n";
    assert_eq!(greet("127.0.0.1:11435", Open::Anyone), expected);
    assert_eq!(greet("0.0.0.0:11435", Open::Anyone), expected);
    let by_socket = "curl --unix-socket '/srv/my omx/run/omx.sock' http://localhost/omx/v1/status\n";
    let closed = greet("127.0.0.1:7", Open::WithKey);
    assert!(closed.contains(by_socket), "{closed}");
    let encrypted = greet("127.0.0.1:7", Open::Encrypted);
    assert!(encrypted.starts_with("API           https://127.0.0.1:7\n"), "{encrypted}");
    assert!(encrypted.contains(by_socket), "{encrypted}");
}
