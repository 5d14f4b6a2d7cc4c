use super::*;

fn nothing(_: &str) -> Option<String> {
    None
}

fn file(text: &str) -> File {
    File::parse(Path::new("d/omx.toml"), text).unwrap()
}

fn shown(error: Error) -> String {
    Failure::from(error).to_string()
}

#[test]
fn without_any_word_the_defaults_hold() {
    let settings = Settings::resolve(&[], nothing, &File::default()).unwrap();
    assert_eq!(settings.api.value.to_string(), "127.0.0.1:11435");
    assert_eq!(settings.mesh.value.to_string(), "0.0.0.0:11436");
    assert_eq!(settings.bulk.value.to_string(), "0.0.0.0:11437");
    assert!(settings.mdns.value && !settings.insecure_no_auth.value);
    assert!(settings.rows().iter().all(|(_, _, origin)| *origin == Origin::Default));
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let file = file("name = 'from-file'\napi = '127.0.0.1:1'\nmesh = '127.0.0.1:2'\n");
    let environment = |name: &str| match name {
        "OMX_API" => Some("127.0.0.1:3".to_owned()),
        "OMX_NAME" => Some("from-variable".to_owned()),
        // Set to nothing is not set.
        "OMX_MESH" => Some(String::new()),
        _ => None,
    };
    let flags = [(Key::Name, "from-flag".to_owned())];
    let settings = Settings::resolve(&flags, environment, &file).unwrap();
    let told = settings.rows().map(|(key, value, origin)| format!("{} {value} {}", key.name(), origin.of(key)));
    assert_eq!(
        told[..5],
        [
            "name from-flag --name",
            "api 127.0.0.1:3 OMX_API",
            "mesh 127.0.0.1:2 omx.toml:3",
            "bulk 127.0.0.1:11437 default",
            "mdns true default",
        ]
    );
}

#[test]
fn several_ollamas_are_named_in_one_text_and_none_stands_alone() {
    let told = |text: &str| match Settings::resolve(&[(Key::Ollama, text.to_owned())], nothing, &File::default()) {
        Ok(settings) => ollama_text(&settings.ollama.value),
        Err(error) => shown(error),
    };
    assert_eq!(told("attic"), "http://attic:11434");
    assert_eq!(told("attic:1, http://cellar:2"), "http://attic:1,http://cellar:2");
    assert_eq!(told("none"), "none");
    assert!(told("none,attic").contains("`none` stands alone"));
    assert!(told(",").contains("or `none` is needed"));
    assert!(told(&["attic"; 9].join(",")).contains("8 of them"));
    assert!(told("attic,at tic").starts_with("error: `--ollama` cannot be `attic,at tic`"));
}

#[test]
fn bulk_takes_any_port_when_mesh_does_unless_it_is_set() {
    let bulk = |flags: &[(Key, &str)]| {
        let flags: Vec<_> = flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
        Settings::resolve(&flags, nothing, &File::default()).unwrap().bulk.value.to_string()
    };
    assert_eq!(bulk(&[(Key::Mesh, "127.0.0.1:0")]), "127.0.0.1:0");
    assert_eq!(bulk(&[(Key::Mesh, "127.0.0.1:0"), (Key::Bulk, "0.0.0.0:9")]), "0.0.0.0:9");
}

#[test]
fn a_rate_has_a_unit() {
    for (text, bytes) in [("20MB", 20_000_000), ("1GB", 1_000_000_000), ("1500KB", 1_500_000)] {
        let read = rate(text).unwrap();
        assert_eq!((read.map(std::num::NonZeroU64::get), rate_text(read)), (Some(bytes), text.to_owned()));
    }
    assert_eq!(rate("none").unwrap(), None);
    for text in ["", "20", "MB", "0MB", "-1MB", "1.5MB", "99999999999999GB", "20mb"] {
        assert!(rate(text).is_err(), "{text}");
    }
}

#[test]
fn every_key_can_be_set_at_every_place() {
    for key in Key::ALL {
        let (text, toml) = match key {
            Key::Name => ("n", "'n'"),
            Key::Api | Key::Mesh | Key::Bulk => ("[::1]:7", "'[::1]:7'"),
            Key::Mdns => ("false", "false"),
            Key::AllowHost => ("a,b.lan", "'a, b.lan'"),
            Key::InsecureNoAuth => ("true", "true"),
            Key::TlsCert | Key::TlsKey | Key::OllamaModels => ("/tls/a.pem", "'/tls/a.pem'"),
            Key::Ollama => ("http://attic:1", "'http://attic:1'"),
            Key::Engine => ("off", "'off'"),
            Key::Slots => ("4", "4"),
            Key::UpLimit | Key::DownLimit => ("20MB", "'20MB'"),
            Key::Log => ("debug", "'debug'"),
        };
        let origin = |settings: Settings| {
            let (_, value, origin) = settings.rows().into_iter().find(|(found, ..)| *found == key).unwrap();
            assert_eq!(value, text);
            origin
        };
        let flags = [(key, text.to_owned())];
        assert_eq!(origin(Settings::resolve(&flags, nothing, &File::default()).unwrap()), Origin::Flag);
        let variable = |name: &str| (name == key.variable()).then(|| text.to_owned());
        assert_eq!(origin(Settings::resolve(&[], variable, &File::default()).unwrap()), Origin::Environment);
        let file = file(&format!("\n{} = {toml}\n", key.name()));
        assert_eq!(origin(Settings::resolve(&[], nothing, &file).unwrap()), Origin::File { line: 2 });
    }
}

#[test]
fn a_certificate_comes_with_its_key_or_not_at_all() {
    let resolved = |flags: &[(Key, &str)], toml: &str| {
        let flags: Vec<_> = flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
        Settings::resolve(&flags, nothing, &file(toml)).unwrap()
    };
    let toml = Path::new("d/omx.toml");
    assert_eq!(resolved(&[], "").tls(toml).unwrap(), None);
    let both = resolved(&[(Key::TlsCert, "here.pem")], "tls_cert = 'other.pem'\ntls_key = 'key.pem'");
    assert_eq!(both.tls(toml).unwrap(), Some((Path::new("here.pem"), Path::new("d/key.pem"))));
    let alone = |flags: &[(Key, &str)], toml_text: &str| shown(resolved(flags, toml_text).tls(toml).unwrap_err());
    assert_eq!(
        alone(&[(Key::TlsCert, "a.pem")], ""),
        "error: `--tls-cert` means nothing without `--tls-key`\n\
         hint: TLS takes a certificate and its key, each in a file\n"
    );
    assert!(alone(&[], "tls_key = 'key.pem'").contains("line 1 of `d/omx.toml` means nothing without `--tls-cert`"));
}

#[test]
fn a_bad_value_names_its_place_and_says_what_is_needed() {
    let bad = |flags: &[(Key, String)], toml: &str| shown(Settings::resolve(flags, nothing, &file(toml)).unwrap_err());
    assert_eq!(
        bad(&[(Key::Api, "11435".to_owned())], ""),
        "error: `--api` cannot be `11435`\n  \
         cause: an address and a port are needed, such as `127.0.0.1:11435` or `[::1]:0`\n"
    );
    assert_eq!(
        bad(&[], "\n\nmdns = 'yes'"),
        "error: `mdns` in line 3 of `d/omx.toml` cannot be `yes`\n  cause: `true` or `false` is needed\n"
    );
    for wrong in ["0", "33", "-1", "four", ""] {
        let told = bad(&[(Key::Slots, wrong.to_owned())], "");
        assert!(told.contains("a number from 1 to 32 or `auto` is needed"), "{told}");
    }
    assert!(bad(&[(Key::Name, "Über".to_owned())], "").contains("is not a node name"));
    assert!(bad(&[(Key::Log, "info,debgu".to_owned())], "").contains("`debgu` is none of `off`"));
    let variable = |name: &str| (name == "OMX_LOG").then(|| "net=loud".to_owned());
    assert!(shown(Settings::resolve(&[], variable, &File::default()).unwrap_err()).starts_with("error: `OMX_LOG` "));
}

#[test]
fn an_unknown_key_is_an_error_with_a_line_and_a_suggestion() {
    let unknown = |toml: &str| shown(File::parse(Path::new("d/omx.toml"), toml).unwrap_err());
    assert_eq!(
        unknown("api = '127.0.0.1:1'\n# where others find us\nmehs = '127.0.0.1:2'\n"),
        "error: unknown key `mehs` in line 3 of `d/omx.toml`\nhint: did you mean `mesh`?\n"
    );
    assert!(unknown("insecure-no-auth = true").contains("did you mean `insecure_no_auth`?"));
    assert!(
        unknown("[gateway]\nthreads = 4").ends_with(
            "`insecure_no_auth`, `tls_cert`, `tls_key`, `ollama`, `ollama_models`, `engine`, `slots`, `up_limit`, `down_limit`, `log`\n"
        )
    );
}

#[test]
fn what_is_no_toml_or_no_text_is_told_with_its_line() {
    let wrong = |toml: &str| shown(File::parse(Path::new("d/omx.toml"), toml).unwrap_err());
    assert!(wrong("name = 'a'\napi 127").starts_with("error: line 2 of `d/omx.toml` is not TOML\n  cause: "));
    assert!(wrong("name = 'a'\nname = 'b'").contains("line 2"));
    assert_eq!(
        wrong("name = [ 7 ]"),
        "error: `name` in line 1 of `d/omx.toml` cannot be `[ 7 ]`\n  \
         cause: a text in quotes, a whole number, `true` or `false` is needed, not of type array\n"
    );
}

#[test]
fn a_file_that_is_not_there_sets_nothing() {
    let missing = File::read(Path::new("no/such/folder/omx.toml")).unwrap();
    assert!(missing.values.is_empty());
    assert!(matches!(File::read(Path::new("src")), Err(Error::Unreadable { .. })));
}

#[test]
fn distance_counts_letters() {
    assert_eq!(distance("mesh", "mesh"), 0);
    assert_eq!(distance("mehs", "mesh"), 2);
    assert_eq!(distance("", "api"), 3);
    assert_eq!(distance("kitten", "sitting"), 3);
}
