use super::*;
use crate::{Config, Fault, Ollama, Registry, Release, registry};

fn subject(ollama: &Ollama) -> Subject {
    Subject {
        address: ollama.address(),
        headers: Vec::new(),
        model: "fake:1b".to_owned(),
        embedder: Some("fake-embed:latest".to_owned()),
        registry: None,
        differs: Vec::new(),
    }
}

#[tokio::test]
async fn the_fake_answers_as_the_table_says() {
    let ollama = Ollama::start(Config::default()).await.unwrap();
    let report = Table::ollama().check(&subject(&ollama)).await;
    assert!(report.findings.is_empty(), "\n{}", report.text());
    let transfers = Table::ollama().cases.iter().filter(|case| case.transfers).count();
    assert_eq!((report.checked + transfers, report.skipped), (Table::ollama().cases.len(), transfers));
}

#[tokio::test]
async fn so_does_one_whose_models_lie_in_a_folder() {
    let registry = Registry::start(registry::Config::default()).await.unwrap();
    registry.publish("golden:1b", &Release::made(1, 0)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    Release::made(2, 0).install(folder.path(), "fake:1b").unwrap();
    Release::embedding(3, 0).install(folder.path(), "fake-embed").unwrap();
    let config = Config { folder: Some(folder.path().to_owned()), ..Config::default() };
    let ollama = Ollama::start(config).await.unwrap();
    let subject = Subject { registry: Some(registry.address().to_string()), ..subject(&ollama) };
    let report = Table::ollama().check(&subject).await;
    assert!(report.findings.is_empty(), "\n{}", report.text());
    assert_eq!((report.checked, report.skipped), (Table::ollama().cases.len(), 0));
    assert_eq!(registry.asked().pushed.manifests, 1);
}

#[test]
fn statuses_come_in_their_order_and_none_is_left_out() {
    let expected = ["pulling manifest", "pulling #", "success"].map(str::to_owned);
    let lines = |statuses: &[&str]| -> Vec<String> {
        statuses.iter().map(|status| format!("{{\"status\":\"{status}\"}}")).collect()
    };
    let wrong = |statuses: &[&str]| {
        let lines = lines(statuses);
        out_of_order(&expected, &lines.iter().map(String::as_str).collect::<Vec<_>>()).is_some()
    };
    let pulling = "pulling 0123456789ab";
    assert!(!wrong(&["pulling manifest", pulling, pulling, "pulling ba9876543210", "success"]));
    for statuses in [
        &["pulling manifest", "success"][..],
        &["pulling manifest", pulling],
        &[pulling, "pulling manifest", "success"],
        &["pulling manifest", "pulling layers", "success"],
        &["pulling manifest", pulling, "success", pulling],
    ] {
        assert!(wrong(statuses), "{statuses:?}");
    }
}

#[tokio::test]
async fn events_are_framed_whole_and_ended() {
    let ollama = Ollama::start(Config::default()).await.unwrap();
    let subject = subject(&ollama);
    let table = "[[case]]\nname = 'n'\nrequest = 'GET /'\nstatus = 200\nanswer = 'events'\n";
    let table = Table::parse(&format!("{table}first = '1'\nshape = '2'\nlast = '3'")).unwrap();
    let judge = |chunked: bool, text: &str| {
        let kind = Some("text/event-stream".to_owned());
        table.cases[0].judge(&Reply { status: 200, kind, chunked, text: text.to_owned() }, &subject)
    };
    let whole = "data: 1\n\ndata: 2\n\ndata: 2\n\ndata: 3\n\ndata: [DONE]\n\n";
    assert_eq!(judge(true, whole), None);
    assert_eq!(judge(true, &whole.replace("data: 2\n\n", "")), None);
    for wrong in [
        whole.strip_suffix('\n').unwrap().to_owned(),
        whole.replace("data: [DONE]\n\n", ""),
        whole.replace("data: 3\n\n", ""),
        whole.replace("data: 1\n\n", ""),
        whole.replacen("data: 2", "data: 4", 1),
        whole.replacen("data: 2", "event: 2", 1),
        whole.replacen("\n\n", "\n", 1),
    ] {
        assert!(judge(true, &wrong).is_some(), "{wrong:?}");
    }
    assert!(judge(false, whole).is_some());
}

#[tokio::test]
async fn a_server_that_answers_otherwise_is_found() {
    let ollama = Ollama::start(Config::default()).await.unwrap();
    let table = Table::ollama();
    for fault in [Fault::Garbage, Fault::WrongModel, Fault::EndEarly { after: 1 }, Fault::Cut { at: 40 }] {
        ollama.faults().always(fault.clone());
        let report = table.check(&subject(&ollama)).await;
        let found = |name: &str| report.findings.iter().any(|finding| finding.case == name);
        assert!(found("chat streams unless told otherwise"), "{fault:?}: {}", report.text());
        assert!(!found("the models there are"), "{fault:?} is for inference alone");
        ollama.faults().clear();
    }
    ollama.faults().everywhere(Fault::Status { status: 500 });
    let report = table.check(&subject(&ollama)).await;
    assert_eq!(report.findings.len(), report.checked);
}

#[tokio::test]
async fn a_known_difference_is_no_finding_and_one_that_is_gone_is() {
    let ollama = Ollama::start(Config::default()).await.unwrap();
    let subject = Subject {
        model: "other:1b".to_owned(),
        embedder: None,
        differs: vec!["a model shown", "the version", "no case"],
        ..subject(&ollama)
    };
    let report = Table::ollama().check(&subject).await;
    let found = |name: &str| report.findings.iter().any(|finding| finding.case == name);
    assert!(!found("a model shown") && found("the version") && found("no case"));
    assert!(report.skipped > 0);
}

#[tokio::test]
async fn nobody_there_is_a_finding_in_every_case() {
    let ollama = Ollama::start(Config::default()).await.unwrap();
    let subject = subject(&ollama);
    ollama.stop().await;
    let report = Table::ollama().check(&subject).await;
    assert_eq!(report.findings.len(), report.checked);
}

#[test]
fn a_table_that_does_not_say_enough_is_refused() {
    let good = "[[case]]\nname = 'n'\nrequest = 'GET /'\nstatus = 200\nanswer = 'json'\nshape = '{}'\n";
    assert!(Table::parse(good).is_ok());
    for bad in [
        good.replace("shape = '{}'", ""),
        good.replace("shape = '{}'", "shape = '{'"),
        good.replace("'json'", "'text'"),
        good.replace("'json'", "'lines'"),
        good.replace("'json'", "'events'"),
        good.replace("'GET /'", "'GET'"),
        good.replace("name", "nam"),
    ] {
        assert!(Table::parse(&bad).is_err(), "{bad}");
    }
}
