//! Winners of tuning: which of a planner's candidates was the fastest for a class of problems on this device.
//!
//! Planners ask the store that [`Capabilities::tuned`](crate::Capabilities::tuned) carries before they take their default.
//! What it says is looked for among the planner's own candidates, so a store, wherever it comes from, makes no kernel that the
//! planner would not: what it does not find there it ignores. Winners are kept as what `Debug` writes of them.
//!
//! `search` finds them (natively): it runs what it is given again and again, every time with other candidates.

#[cfg(not(target_arch = "wasm32"))]
mod search;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::context::lock;
use crate::kernels::ceilings::Probe;
use crate::recipe::Recipe;

#[cfg(not(target_arch = "wasm32"))]
pub use search::{Compared, NOISE, Report, Search, Verdict, classes, compare, tune};

/// Of the file's format and of how classes are named: another one's entries are not read.
const VERSION: u32 = 1;

/// The store of a device; clones are one store.
#[derive(Clone, Default)]
pub struct Tuned {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// What winners are of: device, driver, tiers.
    device: String,
    /// Whether there is anything to ask for: planners of an empty store lose no time.
    asked: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the class's name; none where no candidate was faster than the default.
    winners: BTreeMap<String, Option<String>>,
    /// Winners that were asked for, as found among the planner's candidates.
    found: FxHashMap<Recipe, Option<Arc<dyn Any + Send + Sync>>>,
    /// While candidates are tried.
    watched: Option<Vec<(Recipe, Asked)>>,
    lazy: Lazy,
    /// The seed by which candidates are taken in place of winners.
    shuffled: Option<u64>,
}

/// Whether classes without an entry are to be tuned when they are met.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(
    target_arch = "wasm32",
    expect(dead_code, reason = "nothing is tuned there")
)]
enum Lazy {
    #[default]
    Off,
    /// None was met.
    On,
    /// Some were.
    Wanted,
}

/// A class that planners asked for while they were watched.
struct Asked {
    default: (String, Work),
    /// Of the least problem met, the share of the first one's work.
    least: f64,
    candidates: Vec<Candidate>,
    trial: Option<usize>,
}

#[cfg_attr(
    target_arch = "wasm32",
    expect(dead_code, reason = "nothing searches there")
)]
struct Candidate {
    label: String,
    value: Arc<dyn Any + Send + Sync>,
    work: Work,
}

/// What a tuning makes a kernel do at least: bytes to read and write, operations of the kind of a probe.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(
    target_arch = "wasm32",
    expect(dead_code, reason = "nothing searches there")
)]
pub(crate) struct Work {
    pub(crate) bytes: f64,
    pub(crate) operations: f64,
    pub(crate) by: Probe,
}

impl Work {
    /// Bytes to move.
    pub(crate) fn bytes(bytes: u64) -> Self {
        Self {
            bytes: bytes as f64,
            operations: 0.0,
            by: Probe::F32,
        }
    }
}

impl Work {
    /// The least share that this is of another in bytes or operations.
    fn share_of(&self, other: &Self) -> f64 {
        let share = |a: f64, b: f64| if b > 0.0 { a / b } else { 1.0 };
        share(self.bytes, other.bytes).min(share(self.operations, other.operations))
    }
}

/// What a planner asks: its default and what it might take instead.
pub(crate) struct Question<'a, T> {
    pub(crate) default: T,
    /// They depend on nothing that the class leaves out.
    pub(crate) candidates: &'a dyn Fn() -> Vec<T>,
    /// Whether one fits this very problem.
    pub(crate) admits: &'a dyn Fn(&T) -> bool,
    pub(crate) work: &'a dyn Fn(&T) -> Work,
}

/// The tuning to take and, while candidates are tried, the class that it is for: launches carry it, see
/// [`Launch::class`](crate::recipe::Launch::class).
pub(crate) struct Picked<T> {
    pub(crate) tuning: T,
    pub(crate) class: Option<Recipe>,
}

impl<T> Picked<T> {
    /// What the caller gave.
    pub(crate) fn given(tuning: T) -> Self {
        Self {
            tuning,
            class: None,
        }
    }
}

/// A size as classes have it: rounded up to two significant bits.
pub(crate) fn rounded(n: usize) -> u32 {
    let bits = n.max(1).ilog2().saturating_sub(1);
    (n.div_ceil(1 << bits) << bits) as u32
}

/// The contents of a file.
#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    device: String,
    winners: BTreeMap<String, Option<String>>,
}

impl Tuned {
    /// An empty store of a device.
    pub(crate) fn of(device: String) -> Self {
        let inner = Inner {
            device,
            ..Inner::default()
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// What its winners are of: device, driver and tiers.
    pub fn device(&self) -> &str {
        &self.inner.device
    }

    /// Classes that have been tuned, with their winners; `None` where the planner's default won.
    pub fn entries(&self) -> Vec<(String, Option<String>)> {
        let state = lock(&self.inner.state);
        let pairs = state.winners.iter();
        pairs.map(|(c, w)| (c.clone(), w.clone())).collect()
    }

    /// The winner of a class, by its name.
    pub fn winner(&self, class: &str) -> Option<String> {
        lock(&self.inner.state)
            .winners
            .get(class)
            .cloned()
            .flatten()
    }

    /// All of it as JSON: what a program keeps where there are no files.
    pub fn export(&self) -> String {
        let file = File {
            version: VERSION,
            device: self.inner.device.clone(),
            winners: lock(&self.inner.state).winners.clone(),
        };
        // Strings and numbers cannot fail to be written.
        serde_json::to_string_pretty(&file).unwrap_or_default()
    }

    /// Takes the entries of what [`export`](Self::export) wrote and returns how many: none, and a line in the log, if it is of
    /// another device, driver or version, or not readable.
    pub fn import(&self, json: &str) -> usize {
        let file: File = match serde_json::from_str(json) {
            Ok(file) => file,
            Err(error) => {
                log::warn!("stored tunings are ignored: {error}");
                return 0;
            }
        };
        if (file.version, &file.device) != (VERSION, &self.inner.device) {
            log::info!(
                "stored tunings are ignored: version {} for {}, not {VERSION} for {}",
                file.version,
                file.device,
                self.inner.device
            );
            return 0;
        }
        let taken = file.winners.len();
        self.change(|state| state.winners.extend(file.winners));
        taken
    }

    /// Forgets all entries.
    pub fn clear(&self) {
        self.change(|state| state.winners.clear());
    }

    /// Puts the winner of a class in, or that the default won.
    pub fn set(&self, class: &str, winner: Option<&str>) {
        self.change(|state| {
            let winner = winner.map(str::to_string);
            state.winners.insert(class.to_string(), winner);
        });
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let state = &mut *lock(&self.inner.state);
        let value = change(state);
        state.found.clear();
        let asked = !state.winners.is_empty()
            || state.watched.is_some()
            || state.shuffled.is_some()
            || state.lazy != Lazy::Off;
        self.inner.asked.store(asked, Ordering::Relaxed);
        value
    }

    /// From here on planners take any of their candidates, by this seed.
    pub(crate) fn shuffle(&self, seed: u64) {
        self.change(|state| state.shuffled = Some(seed));
    }

    /// From here on classes without an entry are wanted.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn want(&self) {
        self.change(|state| state.lazy = Lazy::On);
    }

    /// Whether a wanted class was met since the last call.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn wanted(&self) -> bool {
        if !self.inner.asked.load(Ordering::Relaxed) {
            return false;
        }
        let lazy = &mut lock(&self.inner.state).lazy;
        let wanted = *lazy == Lazy::Wanted;
        if wanted {
            *lazy = Lazy::On;
        }
        wanted
    }

    /// The tuning for a problem of this class: the stored winner if it is among the candidates and fits, else the default.
    pub(crate) fn pick<T>(
        &self,
        class: impl FnOnce() -> Recipe,
        question: &Question<'_, T>,
    ) -> Picked<T>
    where
        T: Copy + fmt::Debug + Send + Sync + 'static,
    {
        if !self.inner.asked.load(Ordering::Relaxed) {
            return Picked::given(question.default);
        }
        let class = class();
        let state = &mut *lock(&self.inner.state);
        let (value, class) = match &mut state.watched {
            Some(watched) => {
                let at = match watched.iter().position(|(c, _)| *c == class) {
                    Some(at) => at,
                    None => {
                        watched.push((class.clone(), Asked::new(question)));
                        watched.len() - 1
                    }
                };
                let asked = &mut watched[at].1;
                let work = (question.work)(&question.default);
                asked.least = asked.least.min(work.share_of(&asked.default.1));
                let trial = asked.trial.and_then(|i| asked.candidates.get(i));
                (trial.map(|c| c.value.clone()), Some(class))
            }
            None => (state.stored(class, question), None),
        };
        let value = value.and_then(|v| v.downcast_ref::<T>().copied());
        Picked {
            tuning: value.filter(question.admits).unwrap_or(question.default),
            class,
        }
    }
}

impl State {
    fn stored<T>(
        &mut self,
        class: Recipe,
        question: &Question<'_, T>,
    ) -> Option<Arc<dyn Any + Send + Sync>>
    where
        T: Copy + fmt::Debug + Send + Sync + 'static,
    {
        if let Some(found) = self.found.get(&class) {
            return found.clone();
        }
        let name = class.to_string();
        if let Some(seed) = self.shuffled {
            let any = shuffled(question, &name, seed);
            self.found.insert(class, any.clone());
            return any;
        }
        let found = match self.winners.get(&name) {
            None => {
                if self.lazy != Lazy::Off {
                    self.lazy = Lazy::Wanted;
                }
                None
            }
            Some(None) => None,
            Some(Some(label)) => {
                let all = (question.candidates)().into_iter();
                let found = all.map(|c| (format!("{c:?}"), c)).find(|(l, _)| l == label);
                if found.is_none() {
                    log::info!("stored tuning ignored: {label} is no candidate for {name}");
                }
                found.map(|(_, c)| Arc::new(c) as Arc<dyn Any + Send + Sync>)
            }
        };
        self.found.insert(class, found.clone());
        found
    }
}

/// A candidate that is as good as any.
fn shuffled<T>(
    question: &Question<'_, T>,
    name: &str,
    seed: u64,
) -> Option<Arc<dyn Any + Send + Sync>>
where
    T: Copy + Send + Sync + 'static,
{
    let mut all = (question.candidates)();
    all.retain(question.admits);
    let hash = name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    let any = all.get((hash >> 32) as usize % all.len().max(1));
    any.map(|c| Arc::new(*c) as Arc<dyn Any + Send + Sync>)
}

impl Asked {
    fn new<T: Copy + fmt::Debug + Send + Sync + 'static>(question: &Question<'_, T>) -> Self {
        let default = format!("{:?}", question.default);
        let admitted = (question.candidates)().into_iter().filter(question.admits);
        let candidates = admitted.map(|value| Candidate {
            label: format!("{value:?}"),
            work: (question.work)(&value),
            value: Arc::new(value),
        });
        Self {
            candidates: candidates.filter(|c| c.label != default).collect(),
            default: (default, (question.work)(&question.default)),
            least: 1.0,
            trial: None,
        }
    }
}

impl fmt::Debug for Tuned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = lock(&self.inner.state).winners.len();
        write!(f, "Tuned({entries} classes)")
    }
}

/// What was tuned is no capability: devices are alike without it.
impl PartialEq for Tuned {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class() -> Recipe {
        Recipe::new("family").with("N", 4096)
    }

    fn picked(store: &Tuned) -> u32 {
        let question = Question {
            default: 1,
            candidates: &|| vec![1, 2, 3, 64],
            admits: &|n| *n < 10,
            work: &|_| Work::bytes(1),
        };
        store.pick(class, &question).tuning
    }

    #[test]
    fn a_winner_among_the_candidates_is_taken() {
        let store = Tuned::of("card".into());
        assert_eq!(picked(&store), 1);
        store.set("family N=4096", Some("3"));
        assert_eq!(picked(&store), 3);
        store.set("family N=4096", None);
        assert_eq!(picked(&store), 1);
    }

    #[test]
    fn foreign_winners_are_not() {
        let store = Tuned::of("card".into());
        // Not a candidate; one that does not fit the problem; no tuning at all; of another class.
        for (class, winner) in [
            ("family N=4096", "4"),
            ("family N=4096", "64"),
            ("family N=4096", "drop table"),
            ("family N=2048", "3"),
        ] {
            store.clear();
            store.set(class, Some(winner));
            assert_eq!(picked(&store), 1, "{class}: {winner}");
        }
    }

    #[test]
    fn what_is_exported_comes_back_on_the_same_device_alone() {
        let store = Tuned::of("card".into());
        store.set("family N=4096", Some("3"));
        store.set("family N=8192", None);
        let json = store.export();
        let same = Tuned::of("card".into());
        assert_eq!(same.import(&json), 2);
        assert_eq!((same.entries(), picked(&same)), (store.entries(), 3));
        let other = Tuned::of("another card".into());
        assert_eq!((other.import(&json), picked(&other)), (0, 1));
        let version = format!("\"version\": {VERSION}");
        let stale = json.replace(&version, "\"version\": 0");
        assert_ne!(stale, json);
        for text in [
            &*stale,
            "",
            "{",
            "[]",
            "{\"version\": 1}",
            "\u{0}",
            &json[..40],
        ] {
            let fresh = Tuned::of("card".into());
            assert_eq!(
                (fresh.import(text), fresh.entries().len()),
                (0, 0),
                "{text}"
            );
        }
    }

    #[test]
    fn sizes_of_a_class_are_within_half_of_each_other() {
        for (n, class) in [
            (0, 0),
            (1, 1),
            (3, 3),
            (5, 6),
            (4096, 4096),
            (4097, 6144),
            (11008, 12288),
            (14336, 16384),
        ] {
            assert_eq!(rounded(n), class);
        }
        for n in 1..10_000 {
            let class = rounded(n) as usize;
            assert!(n <= class && 2 * class <= 3 * n, "{n}: {class}");
        }
    }
}
