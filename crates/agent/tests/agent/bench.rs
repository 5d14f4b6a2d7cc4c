//! One agent before one fake.

use std::time::Duration;

use agent::state::State;
use agent::{Answer, Ask, Config, Error, Handle, Request, Route, Way};
use bytes::Bytes;
use fakes::{Model, Ollama};
use scheduler::{Chain, Class, Tenant, Work};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub(crate) const NAME: &str = "fake:1b";
/// Far beyond what anything here takes; who waits so long has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Bench {
    pub(crate) fake: Ollama,
    pub(crate) agent: Handle,
    _tasks: JoinSet<()>,
}

pub(crate) async fn bench(fake: fakes::Config, config: Config) -> Bench {
    let fake = Ollama::start(fake).await.unwrap();
    let at: ollama::Endpoint = fake.address().to_string().parse().unwrap();
    let (agent, task) = agent::new(config, Box::new(move || Ok(Way { at: at.clone(), secret: None })));
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run());
    let bench = Bench { fake, agent, _tasks: tasks };
    bench.until(|agent| agent.state() == State::Up).await;
    bench
}

pub(crate) fn model(answer_tokens: u32, decode: f64) -> fakes::Config {
    let model = Model { answer_tokens: Some(answer_tokens), decode, ..Model::completion(NAME) };
    fakes::Config { models: vec![model], slots: 64, ..fakes::Config::default() }
}

pub(crate) fn slots(slots: u16) -> Config {
    Config { slots: Some(slots), waiting_max: 2000, ..Config::default() }
}

impl Bench {
    pub(crate) async fn until(&self, so: impl Fn(&Handle) -> bool) {
        let look = async {
            while !so(&self.agent) {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(LIMIT, look).await.expect("it did not come to that");
    }

    pub(crate) fn ask(&self) -> Ask {
        let work = Work {
            model: self.agent.model(NAME).unwrap(),
            chain: Chain::default(),
            prompt: 10,
            output: 10,
            context: None,
            class: Class::Interactive,
            tenant: Tenant::ANONYMOUS,
            deadline: None,
        };
        Ask { work, weight: 1.0, wait_max: None, key: None }
    }

    pub(crate) fn request(&self) -> Request {
        let body = format!(r#"{{"model":"{NAME}","prompt":"hello"}}"#);
        Request { route: Route::Generate, ask: self.ask(), body: Bytes::from(body) }
    }

    pub(crate) async fn run(&self) -> Result<Answer, Error> {
        timeout(LIMIT, self.agent.run(self.request())).await.unwrap()
    }
}
