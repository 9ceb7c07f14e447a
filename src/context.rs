//! The device and all that is cached on it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_channel::oneshot;
use rustc_hash::FxHashMap;

use crate::buffer::{Buffer, Pool};
use crate::capabilities::{Capabilities, CooperativeShape, DeviceClass, ParamsTier, SubgroupSizes};
use crate::error::{Error, Result};
use crate::kernel::{BindGroups, Kernel, Layouts};
use crate::layout::Layout;
use crate::recipe::Recipe;
use crate::recorder::{Pass, Profile};
use crate::tensor::Tensor;
use crate::tuned::Tuned;

/// Whether compiled shaders check the bounds of every access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ShaderChecks {
    /// Unchecked: planners prove that every admitted shape stays in bounds; up to 1.3x faster.
    #[default]
    Off,
    /// Checked by the driver or by naga, workgroup memory zeroed: how the matrix is run a second time.
    On,
}

/// Whether a software adapter may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SoftwareAdapters {
    /// Only if there is no hardware.
    #[default]
    Allowed,
    /// Never.
    Refused,
    /// Nothing else.
    Only,
}

/// Whether planners take winners of tuning before their defaults; see [`crate::tuned`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Tuning {
    /// Defaults alone.
    Off,
    /// Those kept in the folder of the pipeline cache, or put into [`Capabilities::tuned`].
    #[default]
    Stored,
    /// These, and models tune what nothing is known of when they first run it: in this time in all.
    Lazy(Duration),
    /// Any candidate, chosen by this seed: with it the correctness matrix shows that results are right whatever a store says.
    Shuffled(u64),
}

/// `off`, `stored`, `shuffled:SEED`, or the seconds that models may spend on what they first run.
impl std::str::FromStr for Tuning {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let seconds = || Duration::try_from_secs_f64(text.parse().ok()?).ok();
        let seed = || text.strip_prefix("shuffled:")?.parse().ok();
        match text {
            "off" => Ok(Self::Off),
            "stored" => Ok(Self::Stored),
            _ => (seconds().map(Self::Lazy))
                .or_else(|| seed().map(Self::Shuffled))
                .ok_or_else(|| {
                    let allowed = "off, stored, shuffled:SEED, or seconds";
                    Error::argument("tuning", text, allowed)
                }),
        }
    }
}

/// Chooses an adapter and opens a [`Context`]; start with [`Context::builder`].
///
/// The environment decides what the builder leaves open: `FLASHWAVE_BACKEND` (vulkan, metal, dx12, gl),
/// `FLASHWAVE_ADAPTER` (a part of the adapter's name), `FLASHWAVE_SOFTWARE` (allowed, refused, only),
/// `FLASHWAVE_CHECKS` (on, off), `FLASHWAVE_CACHE` (folder of compiled pipelines and tunings; empty for none),
/// `FLASHWAVE_TUNING` (see [`Tuning`]'s `FromStr`).
#[derive(Clone, Debug, Default)]
pub struct ContextBuilder {
    backends: Option<wgpu::Backends>,
    name: Option<String>,
    software: Option<SoftwareAdapters>,
    checks: Option<ShaderChecks>,
    params: Option<ParamsTier>,
    subgroups: Option<bool>,
    binding: Option<u64>,
    cache: Option<PathBuf>,
    tuning: Option<Tuning>,
}

impl ContextBuilder {
    /// Only adapters of these backends.
    pub fn backends(mut self, backends: wgpu::Backends) -> Self {
        self.backends = Some(backends);
        self
    }
    /// Only adapters whose name contains `part`, ignoring case.
    pub fn adapter_name(mut self, part: impl Into<String>) -> Self {
        self.name = Some(part.into());
        self
    }
    /// Whether software adapters count.
    pub fn software(mut self, software: SoftwareAdapters) -> Self {
        self.software = Some(software);
        self
    }
    /// Whether shaders check bounds.
    pub fn checks(mut self, checks: ShaderChecks) -> Self {
        self.checks = Some(checks);
        self
    }
    /// Forgoes the fast tiers: parameters through uniforms, reductions without subgroups, as WebGPU promises no more.
    pub fn portable(mut self) -> Self {
        self.params = Some(ParamsTier::Uniform);
        self.subgroups = Some(false);
        self
    }
    /// In a browser: JavaScript has the device require `subgroups`, of which wgpu does not know there (`tools/web/page`).
    #[cfg(target_arch = "wasm32")]
    pub fn requires_subgroups(mut self) -> Self {
        self.subgroups = Some(true);
        self
    }
    /// Opens a device whose bindings, and so tensors, have at most so many bytes, whatever the adapter offers. Of a model
    /// weights beyond that are split.
    pub fn binding_limit(mut self, bytes: u64) -> Self {
        self.binding = Some(bytes);
        self
    }
    /// Keeps compiled pipelines, where the backend can, and tunings in this folder.
    pub fn pipeline_cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }

    /// Whether planners take winners of tuning.
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = Some(tuning);
        self
    }

    /// Opens the context, waiting.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn build(self) -> Result<Context> {
        pollster::block_on(self.build_async())
    }

    /// Opens the context.
    pub async fn build_async(mut self) -> Result<Context> {
        let adapter = self.pick().await?;
        Context::open(adapter, self).await
    }

    /// The capabilities of the adapter that [`build`](Self::build) would open, among [`Context::adapters`].
    pub async fn chosen(mut self) -> Result<Capabilities> {
        let adapter = self.pick().await?;
        let features = wanted_features(&adapter);
        Ok(capabilities(&adapter, features, &self.limits(&adapter)))
    }

    /// The adapter's limits, as low as was asked for.
    fn limits(&self, adapter: &wgpu::Adapter) -> wgpu::Limits {
        let mut limits = adapter.limits();
        let most = self.binding.unwrap_or(u64::MAX);
        limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(most);
        limits
    }

    async fn pick(&mut self) -> Result<wgpu::Adapter> {
        self.read_environment()?;
        let all = self.backends.unwrap_or(wgpu::Backends::all());
        // OpenGL is the last resort, and looking for it alone makes drivers print to the terminal.
        match self.choose(adapters(all - wgpu::Backends::GL).await) {
            Err(error) if all.contains(wgpu::Backends::GL) => self
                .choose(adapters(wgpu::Backends::GL).await)
                .map_err(|_| error),
            chosen => chosen,
        }
    }

    fn read_environment(&mut self) -> Result<()> {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let bad = |name: &str, was: &str, allowed: &str| Err(Error::argument(name, was, allowed));
        if let (None, Some(v)) = (self.backends, var("FLASHWAVE_BACKEND")) {
            self.backends = Some(match v.to_ascii_lowercase().as_str() {
                "vulkan" => wgpu::Backends::VULKAN,
                "metal" => wgpu::Backends::METAL,
                "dx12" => wgpu::Backends::DX12,
                "gl" => wgpu::Backends::GL,
                _ => return bad("FLASHWAVE_BACKEND", &v, "vulkan, metal, dx12 or gl"),
            });
        }
        if let (None, Some(v)) = (&self.name, var("FLASHWAVE_ADAPTER")) {
            self.name = Some(v);
        }
        if let (None, Some(v)) = (self.software, var("FLASHWAVE_SOFTWARE")) {
            self.software = Some(match v.as_str() {
                "allowed" => SoftwareAdapters::Allowed,
                "refused" => SoftwareAdapters::Refused,
                "only" => SoftwareAdapters::Only,
                _ => return bad("FLASHWAVE_SOFTWARE", &v, "allowed, refused or only"),
            });
        }
        if let (None, Some(v)) = (self.checks, var("FLASHWAVE_CHECKS")) {
            self.checks = Some(match v.as_str() {
                "on" => ShaderChecks::On,
                "off" => ShaderChecks::Off,
                _ => return bad("FLASHWAVE_CHECKS", &v, "on or off"),
            });
        }
        if let (None, Some(v)) = (self.tuning, var("FLASHWAVE_TUNING")) {
            self.tuning = Some(v.parse()?);
        }
        if self.cache.is_none() {
            self.cache = std::env::var_os("FLASHWAVE_CACHE").map(PathBuf::from);
        }
        Ok(())
    }

    /// The best adapter: hardware before software, discrete before integrated, and the first among equals.
    fn choose(&self, adapters: Vec<wgpu::Adapter>) -> Result<wgpu::Adapter> {
        let rank = |adapter: &wgpu::Adapter| {
            let info = adapter.get_info();
            let native = !matches!(info.backend, wgpu::Backend::Gl);
            let class = match device_class(info.device_type) {
                DeviceClass::Discrete => 4,
                DeviceClass::Integrated => 3,
                DeviceClass::Virtual => 2,
                DeviceClass::Other => 1,
                DeviceClass::Software => 0,
            };
            (class, native)
        };
        let software = self.software.unwrap_or_default();
        let fits = |adapter: &wgpu::Adapter| {
            let info = adapter.get_info();
            let soft = device_class(info.device_type) == DeviceClass::Software;
            let computes = adapter.limits().max_compute_invocations_per_workgroup > 0;
            let allowed = match software {
                SoftwareAdapters::Allowed => true,
                SoftwareAdapters::Refused => !soft,
                SoftwareAdapters::Only => soft,
            };
            let backend = self
                .backends
                .is_none_or(|b| b.contains(info.backend.into()));
            let named = self
                .name
                .as_ref()
                .is_none_or(|n| info.name.to_lowercase().contains(&n.to_lowercase()));
            computes && allowed && backend && named
        };
        let seen: Vec<String> = adapters
            .iter()
            .map(|a| format!("{} ({})", a.get_info().name, a.get_info().backend))
            .collect();
        let mut best: Option<wgpu::Adapter> = None;
        for adapter in adapters.into_iter().filter(fits) {
            if best.as_ref().is_none_or(|b| rank(&adapter) > rank(b)) {
                best = Some(adapter);
            }
        }
        best.ok_or_else(|| {
            let found = if seen.is_empty() { "none".to_string() } else { seen.join(", ") };
            Error::NoAdapter(format!(
                "asked for backend {:?}, name {:?}, software {:?}; found {found}. On Debian or Ubuntu, `apt-get \
                 install libvulkan1 mesa-vulkan-drivers` gives a software adapter",
                self.backends, self.name, software
            ))
        })
    }
}

/// A device with its queue, memory pool and pipelines. Cheap to clone; all clones are one device.
#[derive(Clone)]
pub struct Context {
    pub(crate) inner: Arc<Inner>,
}

/// What an error scope of a browser will have caught.
#[cfg(target_arch = "wasm32")]
type Answer = std::pin::Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>;

type Constants = FxHashMap<Vec<u32>, (Arc<Buffer>, Layout)>;

pub(crate) struct Inner {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) caps: Capabilities,
    pub(crate) pool: Pool,
    pub(crate) bind_groups: Mutex<BindGroups>,
    pub(crate) staging: Mutex<Vec<wgpu::Buffer>>,
    pub(crate) scratch: Mutex<Vec<Option<Arc<Buffer>>>>,
    pub(crate) layouts: Mutex<Layouts>,
    /// Tables that operators read, by what they are of.
    constants: Mutex<Constants>,
    checks: ShaderChecks,
    kernels: Mutex<FxHashMap<Recipe, Arc<Kernel>>>,
    lost: Arc<Mutex<Option<String>>>,
    cache: Option<(wgpu::PipelineCache, PathBuf)>,
    /// Where tunings are kept.
    tunings: Option<PathBuf>,
    /// What is left of the time for tuning.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) lazy: Mutex<Duration>,
    /// What a browser's device has yet to say of calls made.
    #[cfg(target_arch = "wasm32")]
    answers: Mutex<Vec<Answer>>,
    pub(crate) next_id: AtomicU64,
    pub(crate) submissions: AtomicU64,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context({})", self.inner.caps)
    }
}

/// Locks, and goes on with the data if another thread panicked while holding it: every structure guarded
/// here is consistent between statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    /// The best adapter there is, or what the environment says (see [`ContextBuilder`]).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// A builder for choosing the adapter.
    pub fn builder() -> ContextBuilder {
        ContextBuilder::default()
    }

    /// The capabilities of every adapter that any backend has.
    pub async fn adapters() -> Vec<Capabilities> {
        adapters(wgpu::Backends::all())
            .await
            .iter()
            .map(|a| capabilities(a, wanted_features(a), &a.limits()))
            .collect()
    }

    async fn open(adapter: wgpu::Adapter, options: ContextBuilder) -> Result<Self> {
        let mut features = wanted_features(&adapter);
        if options.subgroups == Some(false) {
            features.remove(wgpu::Features::SUBGROUP);
        }
        if options.params == Some(ParamsTier::Uniform) {
            features.remove(wgpu::Features::IMMEDIATES);
        }
        let mut limits = options.limits(&adapter);
        if !features.contains(wgpu::Features::IMMEDIATES) {
            limits.max_immediate_size = 0;
        }
        let experimental = if features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
            // SAFETY: the experimental feature is used only by the cooperative-matrix shaders, which naga
            // validates in the tests.
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            wgpu::ExperimentalFeatures::disabled()
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("flashwave"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: experimental,
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let name = adapter.get_info().name;
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::NoAdapter(format!("{name} refused a device: {e}")))?;
        let lost = Arc::new(Mutex::new(None));
        let slot = lost.clone();
        device.set_device_lost_callback(move |reason, message| {
            *lock(&slot) = Some(format!("{reason:?}: {message}"));
        });
        // Errors are caught by scopes around every call; what slips past them must not abort the process.
        device.on_uncaptured_error(Arc::new(|e| log::error!("uncaptured GPU error: {e}")));
        let mut caps = capabilities(&adapter, features, &limits);
        if options.subgroups == Some(true) {
            caps.subgroups = Some(subgroup_sizes(&adapter.get_info()));
        }
        let folder = options.cache.filter(|f| !f.as_os_str().is_empty());
        let cache = open_cache(&adapter, &device, features, folder.as_deref());
        let inner = Inner {
            pool: Pool::new(&caps),
            bind_groups: Mutex::default(),
            layouts: Mutex::default(),
            constants: Mutex::default(),
            staging: Mutex::default(),
            scratch: Mutex::default(),
            checks: options.checks.unwrap_or_default(),
            kernels: Mutex::default(),
            #[cfg(target_arch = "wasm32")]
            answers: Mutex::default(),
            next_id: AtomicU64::new(1),
            submissions: AtomicU64::new(0),
            device,
            queue,
            caps,
            lost,
            cache,
            tunings: None,
            #[cfg(not(target_arch = "wasm32"))]
            lazy: Mutex::default(),
        };
        let mut ctx = Self {
            inner: Arc::new(inner),
        };
        ctx.ask_for_matrices();
        ctx.open_tunings(options.tuning.unwrap_or_default(), folder);
        Ok(ctx)
    }

    /// The store of tunings, with what is kept of this device, its tiers and checks.
    fn open_tunings(&mut self, tuning: Tuning, folder: Option<PathBuf>) {
        let (caps, checks) = (&self.inner.caps, self.inner.checks);
        let device = format!("{caps}; {}; checks {checks:?}", caps.tier_summary());
        let named = device.chars().map(|c| match c {
            c if c.is_ascii_alphanumeric() || c == '.' => c,
            _ => '_',
        });
        let file = format!("tuned_{}.json", named.collect::<String>());
        let path = folder.map(|f| f.join(file));
        let tuned = Tuned::of(device);
        if let (Tuning::Stored | Tuning::Lazy(_), Some(path)) = (tuning, &path) {
            match std::fs::read_to_string(path) {
                Ok(json) => {
                    tuned.import(&json);
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => log::warn!("stored tunings are ignored: {}: {e}", path.display()),
            }
        }
        if let Tuning::Shuffled(seed) = tuning {
            tuned.shuffle(seed);
        }
        #[cfg(not(target_arch = "wasm32"))]
        if let Tuning::Lazy(budget) = tuning {
            tuned.want();
            *lock(&self.inner.lazy) = budget;
        }
        // Nothing else holds the context yet.
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.caps.tuned = tuned;
            inner.tunings = path;
        }
    }

    /// Finds out whether kernels can count on where the elements of cooperative matrices lie, and on those of int8.
    fn ask_for_matrices(&mut self) {
        #[cfg(not(target_arch = "wasm32"))]
        {
            let told = |what: &str, answer: Result<bool>| {
                answer.unwrap_or_else(|error| {
                    log::warn!("{what}: {error}");
                    false
                })
            };
            let elements = crate::kernels::fragments::plan(&self.inner.caps).is_ok()
                && told(
                    "elements of cooperative matrices",
                    crate::kernels::fragments::lie_as_expected(self),
                );
            let int8 = self.inner.caps.matrix_int8
                && told(
                    "cooperative matrices of int8",
                    crate::kernels::gemm8::multiplies_int8(self),
                );
            // Nothing else holds the context yet.
            if let Some(inner) = Arc::get_mut(&mut self.inner) {
                inner.caps.matrix_elements = elements;
                inner.caps.matrix_int8 = int8;
            }
        }
    }

    /// The table of complex numbers that `key` stands for, made at the first use and kept as long as the device.
    pub(crate) fn complex_table(
        &self,
        key: &[u32],
        make: impl FnOnce() -> Vec<[f32; 2]>,
    ) -> Result<Tensor> {
        if let Some((buffer, layout)) = lock(&self.inner.constants).get(key) {
            return Ok(Tensor::over(self, buffer.clone(), layout.clone()));
        }
        let table = make();
        let flat: &[f32] = bytemuck::cast_slice(&table);
        let tensor = Tensor::from_slice(self, flat, [table.len(), 2])?;
        let kept = (tensor.buffer().clone(), tensor.layout().clone());
        lock(&self.inner.constants).insert(key.to_vec(), kept);
        Ok(tensor)
    }

    /// What the device can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.inner.caps
    }

    /// Whether shaders check bounds.
    pub fn checks(&self) -> ShaderChecks {
        self.inner.checks
    }

    pub(crate) fn fresh_id(&self) -> u64 {
        self.inner.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Fails with [`Error::DeviceLost`] once the device is gone.
    pub fn alive(&self) -> Result<()> {
        match &*lock(&self.inner.lost) {
            Some(reason) => Err(Error::DeviceLost(reason.clone())),
            None => Ok(()),
        }
    }

    /// Gives the device up, as when a driver resets: every later call answers [`Error::DeviceLost`].
    pub fn destroy(&self) {
        self.inner.device.destroy();
        let mut lost = lock(&self.inner.lost);
        lost.get_or_insert_with(|| "destroyed by the program".into());
    }

    /// Runs `body`, which calls the device, and returns the first error that the device reports for it.
    pub(crate) fn scoped<T>(&self, body: impl FnOnce(&wgpu::Device) -> T) -> Result<T> {
        self.alive()?;
        let device = &self.inner.device;
        let scopes = [
            wgpu::ErrorFilter::Validation,
            wgpu::ErrorFilter::OutOfMemory,
            wgpu::ErrorFilter::Internal,
        ]
        .map(|filter| device.push_error_scope(filter));
        let value = body(device);
        // The scopes nest: popped innermost first.
        let first = self.first_error(scopes.into_iter().rev());
        self.alive()?;
        first.map_or(Ok(value), |error| Err(of_device(error)))
    }

    /// The first error that scopes caught: natively the answer is there at once.
    #[cfg(not(target_arch = "wasm32"))]
    fn first_error(
        &self,
        scopes: impl Iterator<Item = wgpu::ErrorScopeGuard>,
    ) -> Option<wgpu::Error> {
        // All are popped, in this order, whatever the first has caught.
        scopes.fold(None, |first, scope| {
            let error = pollster::block_on(scope.pop());
            first.or(error)
        })
    }

    /// None yet: a browser answers later, and the next read-back or [`wait_async`](Self::wait_async) returns it.
    #[cfg(target_arch = "wasm32")]
    fn first_error(
        &self,
        scopes: impl Iterator<Item = wgpu::ErrorScopeGuard>,
    ) -> Option<wgpu::Error> {
        let answers = scopes.map(|scope| Box::pin(scope.pop()) as Answer);
        lock(&self.inner.answers).extend(answers);
        None
    }

    /// Waits for what a browser's device has to say of all calls so far, and returns the first error.
    #[cfg(target_arch = "wasm32")]
    async fn answered(&self) -> Result<()> {
        let answers = std::mem::take(&mut *lock(&self.inner.answers));
        let mut first = None;
        for answer in answers {
            let error = answer.await;
            first = first.or(error);
        }
        self.alive()?;
        first.map_or(Ok(()), |error| Err(of_device(error)))
    }

    /// Natively every call has been answered.
    #[cfg(not(target_arch = "wasm32"))]
    #[expect(clippy::unused_async, reason = "a browser's has to wait")]
    async fn answered(&self) -> Result<()> {
        self.alive()
    }

    /// The compiled pipeline of a recipe; compiled at the first call.
    pub fn kernel(&self, recipe: &Recipe) -> Result<Arc<Kernel>> {
        if let Some(kernel) = lock(&self.inner.kernels).get(recipe) {
            return Ok(kernel.clone());
        }
        let cache = self.inner.cache.as_ref().map(|(cache, _)| cache);
        let kernel = Arc::new(Kernel::compile(self, recipe, cache)?);
        log::debug!("compiled {recipe}");
        lock(&self.inner.kernels).insert(recipe.clone(), kernel.clone());
        Ok(kernel)
    }

    /// Records dispatches into one pass and submits them. Nothing waits: reading a tensor does.
    ///
    /// If `body` fails, nothing of it is submitted.
    pub fn record<T>(&self, body: impl FnOnce(&mut Pass<'_>) -> Result<T>) -> Result<T> {
        Ok(Pass::record(self, Profile::Off, body)?.0)
    }

    /// As [`record`](Self::record), and waits for the GPU's time: for the whole pass, and with
    /// [`Profile::EachLaunch`] for every dispatch. `None` where the device has no timestamps.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn profile<T>(
        &self,
        profile: Profile,
        body: impl FnOnce(&mut Pass<'_>) -> Result<T>,
    ) -> Result<(T, Option<crate::recorder::Times>)> {
        pollster::block_on(self.profile_async(profile, body))
    }

    /// As `profile`, without blocking.
    pub async fn profile_async<T>(
        &self,
        profile: Profile,
        body: impl FnOnce(&mut Pass<'_>) -> Result<T>,
    ) -> Result<(T, Option<crate::recorder::Times>)> {
        let (value, pending) = Pass::record(self, profile, body)?;
        let times = match pending {
            Some(pending) => Some(pending.read(self).await?),
            None => None,
        };
        Ok((value, times))
    }

    /// The variants that `body` would run, each with its class ([`crate::tuned`]).
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn recipes_of(
        &self,
        body: impl FnOnce(&mut Pass<'_>) -> Result<()>,
    ) -> Result<crate::recorder::Listed> {
        Pass::list(self, body)
    }

    /// Waits until everything submitted has run.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn wait(&self) -> Result<()> {
        self.alive()?;
        let poll = self.inner.device.poll(wgpu::PollType::Wait {
            submission_index: None,
            timeout: Some(Duration::from_secs(600)),
        });
        self.alive()?;
        poll.map(|_| ())
            .map_err(|e| Error::DeviceLost(format!("waiting: {e}")))
    }

    /// Waits until everything submitted has run; in a browser also for the errors of calls made before.
    pub async fn wait_async(&self) -> Result<()> {
        self.alive()?;
        let (sender, receiver) = oneshot::channel();
        self.inner.queue.on_submitted_work_done(move || {
            // The receiver waits below; if it is gone nobody needs the answer.
            sender.send(()).ok();
        });
        #[cfg(not(target_arch = "wasm32"))]
        self.wait()?;
        let done = receiver.await;
        self.answered().await?;
        done.map_err(|_| Error::DeviceLost("waiting was dropped".into()))
    }

    /// Hands pending uploads to the device and waits for them, which frees their staging memory.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn flush(&self) -> Result<()> {
        self.inner.queue.submit([]);
        self.wait()
    }

    /// A browser takes uploads at once.
    #[cfg(target_arch = "wasm32")]
    pub(crate) fn flush(&self) -> Result<()> {
        self.alive()
    }

    /// Frees pooled buffers and what refers to them.
    pub fn trim(&self) {
        lock(&self.inner.bind_groups).clear();
        lock(&self.inner.scratch).clear();
        self.inner.pool.clear();
        lock(&self.inner.staging).clear();
    }

    /// Bytes of device memory held by tensors and by the pool.
    pub fn memory_bytes(&self) -> u64 {
        self.inner.pool.bytes_alive()
    }

    /// Buffers made on the device since the context was opened: a decode step makes none.
    pub fn buffers_created(&self) -> u64 {
        self.inner.pool.created()
    }

    /// Recorded passes submitted since the context was opened: one a decode step.
    pub fn submissions(&self) -> u64 {
        self.inner.submissions.load(Ordering::Relaxed)
    }

    /// Writes [`Capabilities::tuned`] to the folder of the pipeline cache, and returns the file's path; none without a folder.
    pub fn save_tuned(&self) -> Result<Option<&std::path::Path>> {
        let Some(path) = &self.inner.tunings else {
            return Ok(None);
        };
        replace(path, self.inner.caps.tuned.export().as_bytes())?;
        Ok(Some(path))
    }

    /// Writes the pipeline cache to its folder; also done when the last clone is dropped.
    pub fn save_pipeline_cache(&self) -> Result<()> {
        self.inner.save_cache()
    }
}

impl Inner {
    fn save_cache(&self) -> Result<()> {
        let Some((cache, path)) = &self.cache else {
            return Ok(());
        };
        let Some(data) = cache.get_data() else {
            return Ok(());
        };
        replace(path, &data)
    }
}

/// Writes a file, in a folder that is made if need be: beside it and renamed, so that a reader never sees half of one.
fn replace(path: &std::path::Path, data: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    std::fs::write(&partial, data).map_err(|e| Error::io(&partial, e))?;
    std::fs::rename(&partial, path).map_err(|e| Error::io(path, e))
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.save_cache() {
            log::warn!("pipeline cache: {error}");
        }
    }
}

async fn adapters(backends: wgpu::Backends) -> Vec<wgpu::Adapter> {
    if backends.is_empty() {
        return Vec::new();
    }
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    // Validation layers are for debugging drivers; wgpu's own validation is always on.
    descriptor.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(descriptor)
        .enumerate_adapters(backends)
        .await
}

fn open_cache(
    adapter: &wgpu::Adapter,
    device: &wgpu::Device,
    features: wgpu::Features,
    folder: Option<&std::path::Path>,
) -> Option<(wgpu::PipelineCache, PathBuf)> {
    let folder = folder?;
    if !features.contains(wgpu::Features::PIPELINE_CACHE) {
        return None;
    }
    let path = folder.join(wgpu::util::pipeline_cache_key(&adapter.get_info())?);
    let data = std::fs::read(&path).ok();
    // SAFETY: the data was written by `save_cache` for this adapter and driver; `fallback` starts an empty
    // cache if the driver does not take it.
    let cache = unsafe {
        device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
            label: Some("flashwave"),
            data: data.as_deref(),
            fallback: true,
        })
    };
    Some((cache, path))
}

fn wanted_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    // Other backends take other languages that way.
    let spirv = match adapter.get_info().backend {
        wgpu::Backend::Vulkan => wgpu::Features::PASSTHROUGH_SHADERS,
        _ => wgpu::Features::empty(),
    };
    adapter.features()
        & (wgpu::Features::IMMEDIATES
            | wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_F16
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES
            | wgpu::Features::PIPELINE_CACHE
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
            | spirv)
}

fn subgroup_sizes(info: &wgpu::AdapterInfo) -> SubgroupSizes {
    SubgroupSizes {
        min: info.subgroup_min_size,
        max: info.subgroup_max_size,
    }
}

fn device_class(device_type: wgpu::DeviceType) -> DeviceClass {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => DeviceClass::Discrete,
        wgpu::DeviceType::IntegratedGpu => DeviceClass::Integrated,
        wgpu::DeviceType::VirtualGpu => DeviceClass::Virtual,
        wgpu::DeviceType::Cpu => DeviceClass::Software,
        wgpu::DeviceType::Other => DeviceClass::Other,
    }
}

fn capabilities(
    adapter: &wgpu::Adapter,
    features: wgpu::Features,
    limits: &wgpu::Limits,
) -> Capabilities {
    let info = adapter.get_info();
    let has = |f| features.contains(f);
    let half = wgpu::CooperativeScalarType::F16;
    let cooperative = if has(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        let shapes = adapter.cooperative_matrix_properties();
        let float = |t| {
            matches!(
                t,
                wgpu::CooperativeScalarType::F16 | wgpu::CooperativeScalarType::F32
            )
        };
        let shapes = shapes
            .into_iter()
            .filter(|p| float(p.ab_type) && float(p.cr_type));
        shapes
            .map(|p| CooperativeShape {
                m: p.m_size,
                n: p.n_size,
                k: p.k_size,
                f16_inputs: p.ab_type == half,
                f32_accumulator: p.cr_type != half,
            })
            .collect()
    } else {
        Vec::new()
    };
    Capabilities {
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info)
            .trim()
            .to_string(),
        class: device_class(info.device_type),
        subgroups: has(wgpu::Features::SUBGROUP).then_some(subgroup_sizes(&info)),
        shader_f16: has(wgpu::Features::SHADER_F16),
        immediate_bytes: if has(wgpu::Features::IMMEDIATES) {
            limits.max_immediate_size
        } else {
            0
        },
        timestamps: has(wgpu::Features::TIMESTAMP_QUERY),
        timestamps_in_pass: has(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
        pipeline_cache: has(wgpu::Features::PIPELINE_CACHE),
        cooperative,
        matrix_elements: false,
        matrix_int8: has(wgpu::Features::PASSTHROUGH_SHADERS)
            && has(wgpu::Features::SHADER_F16)
            && has(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
            && [info.subgroup_min_size, info.subgroup_max_size] == [32; 2]
            && crate::vulkan::multiplies_int8(adapter),
        spirv: has(wgpu::Features::PASSTHROUGH_SHADERS),
        binding_bytes: limits.max_storage_buffer_binding_size & !15,
        buffer_bytes: limits.max_buffer_size & !15,
        storage_buffers: limits.max_storage_buffers_per_shader_stage,
        invocations: limits
            .max_compute_invocations_per_workgroup
            .min(limits.max_compute_workgroup_size_x),
        workgroup_bytes: limits.max_compute_workgroup_storage_size,
        workgroups: limits.max_compute_workgroups_per_dimension,
        uniform_alignment: limits.min_uniform_buffer_offset_alignment,
        tuned: Tuned::default(),
        name: info.name,
    }
}

/// Waits for a mapping's answer: natively by polling the device, in a browser by yielding to it.
pub(crate) async fn mapped(ctx: &Context, answer: oneshot::Receiver<Mapped>) -> Result<()> {
    #[cfg(not(target_arch = "wasm32"))]
    ctx.wait()?;
    let answer = answer.await;
    // An error of a call before says more than that there is nothing to read.
    ctx.answered().await?;
    answer
        .map_err(|_| Error::DeviceLost("a read-back was dropped".into()))?
        .map_err(|e| Error::DeviceLost(format!("read-back: {e}")))
}

/// The crate's error for one of wgpu's.
fn of_device(error: wgpu::Error) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory("the device refused".into()),
        wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
            Error::Validation(description)
        }
    }
}

/// What `map_async` answers.
pub(crate) type Mapped = Result<(), wgpu::BufferAsyncError>;
