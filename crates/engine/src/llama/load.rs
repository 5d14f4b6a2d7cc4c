//! From a spec to a running thread with the model in it.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, OnceLock};

use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::{LlamaBackendDeviceType, LogOptions, list_llama_ggml_backend_devices, send_logs_to_tracing};

use super::embed::{Embedder, TEXTS_MAX, TOKENS_MAX};
use super::worker::{Command, Generating, Worker};
use crate::error::Error;
use crate::reuse::Memory;
use crate::runner::{Facts, Need, Spec};
use crate::window::Window;
use crate::{machine, plan};

/// Tokens of one batch, where a request does not say.
const BATCH: u32 = 512;

/// A further thread pays when it has this many bytes of weights to go through at each step; below, waking it takes
/// longer than its part of the work.
const BYTES_PER_THREAD: u64 = 16 << 20;

/// What was decided about a load before it begins.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) spec: Spec,
    /// Tokens of one request's context.
    pub(super) context: u32,
    pub(super) context_trained: u32,
    pub(super) slots: u32,
    pub(super) only_embeds: bool,
    pub(super) weight_bytes: u64,
    pub(super) context_bytes: u64,
    /// Those with weights of their own, and the output as one more.
    pub(super) layers: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) model: Arc<LlamaModel>,
    pub(super) facts: Facts,
    /// Tokens of a text to embed.
    pub(super) embed_tokens: u32,
}

/// llama.cpp is set up once per process, on first use, and never torn down: its own clean-up would race with the last
/// model's.
fn backend() -> Result<&'static LlamaBackend, Error> {
    static BACKEND: OnceLock<Result<LlamaBackend, String>> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        if let Some(feature) = machine::cpu_lacks() {
            return Err(format!("the processor lacks `{feature}`, which this engine was built to use"));
        }
        send_logs_to_tracing(LogOptions::default());
        LlamaBackend::init().map_err(|error| error.to_string())
    });
    backend.as_ref().map_err(|reason| Error::CannotRun { reason: reason.clone() })
}

/// The body of a model's thread: loads, says how that went, then works until it is told to stop.
pub(super) fn run(plan: Plan, inbox: Receiver<Command>, ready: SyncSender<Result<Ready, Error>>) {
    let gpu_layers = plan.gpu_layers();
    let model = match load(&plan, gpu_layers) {
        Ok(model) => model,
        Err(error) => return told(&ready, Err(error)),
    };
    let worker = match worker(&plan, &model, inbox) {
        Ok(worker) => worker,
        Err(error) => return told(&ready, Err(error)),
    };
    let facts = facts(&plan, &model, gpu_layers.unwrap_or(0));
    told(&ready, Ok(Ready { model: model.clone(), facts, embed_tokens: plan.embed_tokens() }));
    worker.run();
}

/// Who waited for the load may have gone; then the model goes too, since nobody holds its inbox.
fn told(ready: &SyncSender<Result<Ready, Error>>, how: Result<Ready, Error>) {
    let _ = ready.send(how);
}

fn load(plan: &Plan, gpu_layers: Option<u32>) -> Result<Arc<LlamaModel>, Error> {
    let backend = backend()?;
    let options = &plan.spec.options;
    let mut params = LlamaModelParams::default().with_use_mmap(options.use_mmap.unwrap_or(true));
    if let Some(layers) = gpu_layers {
        params = params.with_n_gpu_layers(layers);
    }
    if let Some(gpu) = options.main_gpu.and_then(|gpu| i32::try_from(gpu).ok()) {
        params = params.with_main_gpu(gpu);
    }
    let path: &Path = &plan.spec.file;
    let model = LlamaModel::load_from_file(backend, path, &params);
    model.map(Arc::new).map_err(|_| Error::Load { path: path.to_owned() })
}

fn worker<'m>(plan: &Plan, model: &'m LlamaModel, inbox: Receiver<Command>) -> Result<Worker<'m>, Error> {
    let generating = if plan.only_embeds { None } else { Some(generating(plan, model)?) };
    let params = plan.embed_params(model);
    let (context, slots) = (plan.embed_tokens(), TEXTS_MAX as u32);
    let open = move || {
        let opened = model.new_context(backend()?, params.clone());
        opened.map_err(|_| Error::Context { context, slots })
    };
    Ok(Worker { vocab: model.vocab(), generating, embedder: Embedder::new(open), inbox })
}

fn generating<'m>(plan: &Plan, model: &'m LlamaModel) -> Result<Generating<'m>, Error> {
    let context = model.new_context(backend()?, plan.answer_params());
    let context = context.map_err(|_| Error::Context { context: plan.context, slots: plan.slots })?;
    let runs = model.is_recurrent() || model.is_hybrid();
    let memory = if runs { Memory::Running } else { Memory::PerToken };
    Ok(Generating::new(context, plan.slots as usize, memory))
}

impl Plan {
    /// Layers to put on GPUs, as asked or as fit; `None` without a GPU.
    fn gpu_layers(&self) -> Option<u32> {
        let free = gpu_memory()?;
        let need = Need { weights: self.weight_bytes, context: self.context_bytes };
        let all = || u32::try_from(self.layers).unwrap_or(u32::MAX);
        Some(self.spec.options.num_gpu.or_else(|| plan::layers_that_fit(self.layers, need, free)).unwrap_or_else(all))
    }

    /// An estimate: llama.cpp does not tell where its buffers are.
    fn share_of(&self, size: u64, layers: u32) -> u64 {
        let all = self.layers.max(1);
        (u128::from(size) * u128::from(u64::from(layers).min(all)) / u128::from(all)) as u64
    }

    /// Of one text to embed.
    fn embed_tokens(&self) -> u32 {
        self.context.min(TOKENS_MAX)
    }

    fn answer_params(&self) -> LlamaContextParams {
        let cells = self.context.saturating_mul(self.slots);
        let batch = self.spec.options.num_batch.unwrap_or(BATCH).clamp(self.slots.max(Window::SMALLEST), cells);
        // One memory for all slots: a beginning that two requests share is kept once, and a step is one batch whoever
        // takes part. No slot holds more than its context, so there is always room.
        self.threads(LlamaContextParams::default())
            .with_n_ctx(NonZeroU32::new(cells))
            .with_n_batch(batch)
            .with_n_ubatch(batch)
            .with_n_seq_max(self.slots)
            .with_kv_unified(true)
    }

    fn embed_params(&self, model: &LlamaModel) -> LlamaContextParams {
        let tokens = self.embed_tokens();
        // A model that says nothing of pooling was made to answer; the mean is what its users expect of it.
        let architecture = model.meta_val_str("general.architecture").unwrap_or_default();
        let states_pooling = model.meta_val_str(&format!("{architecture}.pooling_type")).is_ok();
        let pooling = if states_pooling { LlamaPoolingType::Unspecified } else { LlamaPoolingType::Mean };
        self.threads(LlamaContextParams::default())
            .with_n_ctx(NonZeroU32::new(tokens))
            .with_n_batch(tokens)
            .with_n_ubatch(tokens)
            .with_n_seq_max(TEXTS_MAX as u32)
            .with_kv_unified(true)
            .with_embeddings(true)
            .with_pooling_type(pooling)
    }

    fn threads(&self, params: LlamaContextParams) -> LlamaContextParams {
        let asked = self.spec.options.num_thread.filter(|threads| *threads > 0);
        let worth = usize::try_from(self.weight_bytes / BYTES_PER_THREAD).unwrap_or(usize::MAX).max(1);
        let threads = asked.map_or(worth.min(machine::cores()), |asked| asked as usize).min(512) as i32;
        params.with_n_threads(threads).with_n_threads_batch(threads)
    }
}

fn facts(plan: &Plan, model: &LlamaModel, gpu_layers: u32) -> Facts {
    let size = model.size().saturating_add(plan.context_bytes);
    Facts {
        size,
        size_gpu: plan.share_of(size, gpu_layers),
        context: plan.context,
        context_trained: plan.context_trained,
        slots: if plan.only_embeds { 1 } else { plan.slots },
        only_embeds: plan.only_embeds,
        embedding_length: u32::try_from(model.n_embd_out()).unwrap_or(0),
    }
}

/// Free bytes of all GPUs together; `None` without any.
fn gpu_memory() -> Option<u64> {
    let is_gpu = |kind| matches!(kind, LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu);
    let gpus = list_llama_ggml_backend_devices().into_iter().filter(|device| is_gpu(device.device_type));
    gpus.map(|gpu| gpu.memory_free as u64).reduce(u64::saturating_add)
}
