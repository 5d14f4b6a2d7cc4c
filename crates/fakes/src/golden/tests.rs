use super::*;
use crate::{Config, Fault, Ollama};

fn subject(ollama: &Ollama) -> Subject {
    Subject {
        address: ollama.address(),
        headers: Vec::new(),
        model: "fake:1b".to_owned(),
        embedder: Some("fake-embed:latest".to_owned()),
        differs: Vec::new(),
    }
}

#[tokio::test]
async fn the_fake_answers_as_the_table_says() {
    let ollama = Ollama::start(Config::default()).await.unwrap();
    let report = Table::ollama().check(&subject(&ollama)).await;
    assert!(report.findings.is_empty(), "\n{}", report.text());
    assert_eq!((report.checked, report.skipped), (Table::ollama().cases.len(), 0));
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
    assert_eq!(table.check(&subject(&ollama)).await.findings.len(), table.cases.len());
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
        good.replace("'GET /'", "'GET'"),
        good.replace("name", "nam"),
    ] {
        assert!(Table::parse(&bad).is_err(), "{bad}");
    }
}
