//! `omx engine`: the process in which models run, started by `omx up` and nobody else.

use std::path::Path;

use node::Program;

/// Below the data folder, in Ollama's layout.
const MODELS: &str = "models";

/// How a node of this data folder starts its engine: this same program under another verb. `None` where it was built
/// without.
pub(super) fn program(data_folder: &Path) -> Option<Program> {
    if cfg!(not(feature = "engine")) {
        return None;
    }
    let file = std::env::current_exe().ok()?;
    let models = data_folder.join(MODELS);
    Some(Program { file, arguments: ["engine".into(), "--models".into(), models.into()].into() })
}

#[cfg(feature = "engine")]
pub(super) use child::Engine;

#[cfg(feature = "engine")]
mod child {
    use std::path::PathBuf;

    use clap::Args;

    use crate::exit::Exit;
    use crate::failure::Failure;

    /// The model of the first start.
    const GUIDE: &[u8] = include_bytes!("../../testnet/model/omx-guide.gguf");

    /// Run models for the node that started this process
    ///
    /// Reads its secret from stdin, says on stdout where it serves, and ends with its stdin. `omx up` starts it.
    #[derive(Debug, Args)]
    #[command(after_help = "Examples:\n  omx up --engine on      starts it, wherever an Ollama is")]
    pub(in crate::cli) struct Engine {
        /// The models, in Ollama's layout
        #[arg(long, value_name = "DIR")]
        models: PathBuf,
    }

    impl Engine {
        pub(in crate::cli) fn run(self) -> Result<Exit, Failure> {
            // The node puts these lines into its own log, with their time.
            let log = tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(std::io::stderr);
            log.with_env_filter("info,llama-cpp-2=error").init();
            let config = engine::child::Config {
                models: self.models,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                first: engine::child::First { name: node::FIRST_MODEL, weights: GUIDE },
            };
            engine::child::run(config).map_err(|error| Failure::new(Exit::General, error))?;
            Ok(Exit::Ok)
        }
    }
}
