//! MLPs that are larger than the memory they may take on the device: their neurons lie in host memory, and those that fire
//! are brought in (LLM in a flash, arXiv 2312.11514; PowerInfer-2, arXiv 2406.06282).
//!
//! The gates are on the device, which says what fires. A neuron's up row and down column are one bundle, one copy. Of a layer's
//! slots on the device, half are for hot neurons, which fire most; the others are a window that cold ones go through, in a
//! ring, so that those of the last tokens are still there. Between gates and the rest the host has to know what fires: a
//! round trip a layer, which is what this costs where everything is in the window.

use std::sync::{Arc, Mutex};

use crate::context::{Context, lock};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The fewest neurons of a layer that a budget has to have room for.
const LEAST: usize = 16;
/// Hot neurons that change in a layer at a time, at most.
const PROMOTED: usize = 4;
/// Chunks of tokens after which what a neuron did counts half.
const HALF_LIFE: f64 = 32.0;
const NONE: u32 = u32::MAX;

/// What offloaded layers did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streamed {
    /// Neurons that fired, counted once in a layer and chunk of tokens.
    pub fired: u64,
    /// Of these, on the device already.
    pub hits: u64,
    /// Bytes copied to the device.
    pub bytes: u64,
    /// Times that the host waited for the device.
    pub waits: u64,
    /// Bytes of the MLPs' weights on the device.
    pub resident_bytes: u64,
    /// Bytes of all of them.
    pub total_bytes: u64,
}

impl Streamed {
    /// The share of what fired that was on the device.
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / self.fired.max(1) as f64
    }

    fn add(&mut self, other: &Self) {
        self.fired += other.fired;
        self.hits += other.hits;
        self.bytes += other.bytes;
        self.waits += other.waits;
    }
}

/// How many neurons of a layer are on the device, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    pub slots: usize,
    pub neurons: usize,
}

impl Budget {
    /// Of `layers` layers of `neurons` neurons and rows of `width` elements, in `bytes`.
    ///
    /// Errors if there is no room for the gates and a few neurons of each.
    pub(crate) fn new(
        bytes: u64,
        layers: usize,
        [neurons, width]: [usize; 2],
        dtype: DType,
    ) -> Result<Self> {
        let row = (width * dtype.size()) as u64;
        // The gates, and where neurons are.
        let fixed = neurons as u64 * (row + 4);
        let least = layers as u64 * (fixed + LEAST.min(neurons) as u64 * 2 * row);
        if bytes < least {
            let allowed = format!(
                "at least {least}, for the gates and {} neurons of each of {layers} layers",
                LEAST.min(neurons)
            );
            return Err(Error::argument("budget", format!("{bytes} bytes"), allowed));
        }
        let slots = (bytes / layers.max(1) as u64 - fixed) / (2 * row).max(1);
        Ok(Self {
            slots: (slots as usize).min(neurons),
            neurons,
        })
    }

    /// Whether all neurons are on the device.
    pub(crate) fn fits(&self) -> bool {
        self.slots == self.neurons
    }
}

/// The neurons of a layer.
pub(crate) struct HostNeurons {
    /// [neurons, 2 width] of the layer's type.
    bundles: Arc<[u8]>,
    bundle: usize,
    /// [slots, 2 width].
    pub(crate) pairs: Tensor,
    /// [neurons], u32.
    pub(crate) places: Tensor,
    state: Mutex<State>,
}

struct State {
    window: Window,
    done: Streamed,
}

impl HostNeurons {
    /// `bundles` of `width` elements of `dtype`.
    pub(crate) fn new(
        ctx: &Context,
        bundles: Arc<[u8]>,
        width: usize,
        dtype: DType,
        budget: Budget,
    ) -> Result<Self> {
        let state = State {
            window: Window::new(budget),
            done: Streamed::default(),
        };
        Ok(Self {
            bundle: bundles.len() / budget.neurons,
            bundles,
            pairs: Tensor::empty(ctx, dtype, [budget.slots, width])?,
            places: Tensor::empty(ctx, DType::U32, [budget.neurons])?,
            state: Mutex::new(state),
        })
    }

    /// Brings in what fires for some row of `activations` [rows, neurons] and calls `rest` for ranges of neurons that are there, from 0
    /// on. Waits for the device. `rest` submits what it records.
    pub(crate) fn bring(
        &self,
        activations: &Tensor,
        mut rest: impl FnMut(std::ops::Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let values: Vec<f32> = activations.to_vec()?;
        let mut state = lock(&self.state);
        let State { window, done } = &mut *state;
        let neurons = window.place.len();
        let fires = |i: &u32| {
            values
                .iter()
                .skip(*i as usize)
                .step_by(neurons)
                .any(|a| *a != 0.0)
        };
        let fired: Vec<u32> = (0..neurons as u32).filter(fires).collect();
        done.waits += 1;
        done.fired += fired.len() as u64;
        done.hits += window.begin(&fired);
        let mut first = 0;
        while first < neurons {
            let round = window.round(&fired, first as u32);
            self.copy(&round.loads)?;
            done.bytes += (round.loads.len() * self.bundle) as u64;
            self.places.write(&window.place)?;
            rest(first..round.end as usize)?;
            first = round.end as usize;
        }
        Ok(())
    }

    /// Copies neurons to slots; those of neighbouring slots in one piece.
    fn copy(&self, loads: &[Load]) -> Result<()> {
        for run in loads.chunk_by(|a, b| a.slot + 1 == b.slot) {
            let bytes: Vec<u8> = run
                .iter()
                .flat_map(|load| &self.bundles[load.neuron as usize * self.bundle..][..self.bundle])
                .copied()
                .collect();
            self.pairs
                .write_bytes(run[0].slot as usize * self.bundle, &bytes)?;
        }
        Ok(())
    }

    /// What it did, added to `sum`.
    pub(crate) fn add_to(&self, sum: &mut Streamed, gate: &Tensor) {
        sum.add(&lock(&self.state).done);
        let gate = gate.layout().bytes();
        sum.resident_bytes += gate + self.pairs.layout().bytes() + self.places.layout().bytes();
        sum.total_bytes += gate + self.bundles.len() as u64;
    }
}

/// A neuron to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    neuron: u32,
    slot: u32,
}

/// Neurons up to `end` that can be computed once `loads` are copied.
struct Round {
    end: u32,
    loads: Vec<Load>,
}

/// Which neurons are on the device: slots below `hot` for those that fire most, then a ring.
struct Window {
    place: Vec<u32>,
    holds: Vec<u32>,
    hot: usize,
    /// The next slot of the ring, once all slots have been filled from the first on.
    head: usize,
    filled: usize,
    /// How often a neuron fired, halved every [`HALF_LIFE`] chunks: as the logarithm that it would have at chunk 0.
    heat: Vec<f64>,
    chunk: f64,
    /// Whether a neuron is needed by what is left of the chunk.
    wanted: Vec<bool>,
}

impl Window {
    fn new(Budget { slots, neurons }: Budget) -> Self {
        Self {
            place: vec![NONE; neurons],
            holds: vec![NONE; slots],
            hot: slots / 2,
            head: slots / 2,
            filled: 0,
            heat: vec![f64::NEG_INFINITY; neurons],
            chunk: 0.0,
            wanted: vec![false; neurons],
        }
    }

    /// Begins a chunk in which these neurons fire, in ascending order; how many of them are there.
    fn begin(&mut self, fired: &[u32]) -> u64 {
        self.chunk += 1.0;
        let now = self.chunk / HALF_LIFE;
        let mut hits = 0;
        for &neuron in fired {
            let i = neuron as usize;
            self.heat[i] = now + ((self.heat[i] - now).exp2() + 1.0).log2();
            self.wanted[i] = true;
            hits += u64::from(self.place[i] != NONE);
        }
        hits
    }

    fn put(&mut self, neuron: u32, slot: usize) -> Load {
        if let Some(place) = self.place.get_mut(self.holds[slot] as usize) {
            *place = NONE;
        }
        let old = self.place[neuron as usize];
        if let Some(holds) = self.holds.get_mut(old as usize) {
            *holds = NONE;
        }
        self.holds[slot] = neuron;
        self.place[neuron as usize] = slot as u32;
        Load {
            neuron,
            slot: slot as u32,
        }
    }

    fn is_wanted(&self, slot: usize) -> bool {
        self.wanted.get(self.holds[slot] as usize) == Some(&true)
    }

    /// A slot for a neuron that is missing: one never used, or the next of the ring that holds nothing wanted. With `force`, the
    /// next of the ring.
    fn slot(&mut self, force: bool) -> Option<usize> {
        if self.filled < self.holds.len() {
            self.filled += 1;
            return Some(self.filled - 1);
        }
        for _ in self.hot..self.holds.len() {
            let slot = self.head;
            self.head = if slot + 1 == self.holds.len() {
                self.hot
            } else {
                slot + 1
            };
            if force || !self.is_wanted(slot) {
                return Some(slot);
            }
        }
        None
    }

    /// As many of `fired` from neuron `first` on as there is room for at a time.
    fn round(&mut self, fired: &[u32], first: u32) -> Round {
        let mut loads = Vec::new();
        // Those of the round before have been computed.
        let left = fired.partition_point(|&n| n < first);
        for &neuron in &fired[..left] {
            self.wanted[neuron as usize] = false;
        }
        if first == 0 {
            self.promote(fired, &mut loads);
        }
        for (at, &neuron) in fired.iter().enumerate().skip(left) {
            if self.place[neuron as usize] != NONE {
                continue;
            }
            // The first of a round may drive out what is wanted later.
            match self.slot(at == left) {
                Some(slot) => loads.push(self.put(neuron, slot)),
                None => return Round { end: neuron, loads },
            }
        }
        for &neuron in fired {
            self.wanted[neuron as usize] = false;
        }
        Round {
            end: self.place.len() as u32,
            loads,
        }
    }

    /// Neurons that fire now and twice as much as the coldest hot ones take their slots.
    fn promote(&mut self, fired: &[u32], loads: &mut Vec<Load>) {
        if self.filled < self.holds.len() {
            return;
        }
        let heat = |window: &Self, neuron: u32| window.heat.get(neuron as usize).copied();
        let mut coldest: Vec<usize> = (0..self.hot).filter(|&s| !self.is_wanted(s)).collect();
        let cold = |s: &usize| heat(self, self.holds[*s]).unwrap_or(f64::NEG_INFINITY);
        coldest.sort_by(|a, b| cold(a).total_cmp(&cold(b)));
        coldest.truncate(PROMOTED);
        let is_hot = |n: u32| (self.place[n as usize] as usize) < self.hot;
        let mut rising: Vec<u32> = fired.iter().copied().filter(|&n| !is_hot(n)).collect();
        rising.sort_by(|&a, &b| self.heat[b as usize].total_cmp(&self.heat[a as usize]));
        for (slot, neuron) in coldest.into_iter().zip(rising) {
            let is = heat(self, self.holds[slot]).unwrap_or(f64::NEG_INFINITY);
            if self.heat[neuron as usize] > is + 1.0 {
                loads.push(self.put(neuron, slot));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs chunks, checking that every neuron is there when its turn comes; how many were copied.
    fn run(window: &mut Window, chunks: &[Vec<u32>]) -> usize {
        let neurons = window.place.len();
        let mut copied = 0;
        let mut memory = vec![NONE; window.holds.len()];
        for fired in chunks {
            window.begin(fired);
            let mut first = 0u32;
            while (first as usize) < neurons {
                let round = window.round(fired, first);
                assert!(round.end > first);
                for load in &round.loads {
                    memory[load.slot as usize] = load.neuron;
                }
                copied += round.loads.len();
                for &n in fired.iter().filter(|n| (first..round.end).contains(n)) {
                    assert_eq!(memory[window.place[n as usize] as usize], n);
                }
                first = round.end;
            }
            assert!(!window.wanted.contains(&true));
        }
        copied
    }

    #[test]
    fn whatever_fires_is_there_in_time() {
        for slots in [1, 2, 3, 7, 20, 40] {
            let mut window = Window::new(Budget { slots, neurons: 40 });
            let chunks: Vec<Vec<u32>> = (0..60u32)
                .map(|t| (0..40).filter(|i| (i * 7 + t * t) % 5 < t % 6).collect())
                .collect();
            run(&mut window, &chunks);
        }
    }

    #[test]
    fn what_fires_again_stays_and_what_fires_most_becomes_hot() {
        let mut window = Window::new(Budget {
            slots: 16,
            neurons: 64,
        });
        // Four that always fire among others that fire once.
        let chunks: Vec<Vec<u32>> = (0..200u32)
            .map(|t| {
                let mut fired = vec![3, 17, 40, 63, 4 + t * 5 % 12, 20 + t % 19];
                fired.sort_unstable();
                fired
            })
            .collect();
        let copied = run(&mut window, &chunks);
        for hot in [3, 17, 40, 63] {
            assert!((window.place[hot] as usize) < window.hot);
        }
        assert!(copied < 2 * 200 + 40, "{copied}");
    }

    #[test]
    fn budgets_have_room_for_the_gates_and_a_few_neurons() {
        let row = 8 * 2;
        let least = 2 * (100 * (row + 4) + 16 * 2 * row);
        let new = |bytes| Budget::new(bytes, 2, [100, 8], DType::F16);
        assert_eq!(new(least).unwrap().slots, 16);
        assert!(new(1 << 20).unwrap().fits());
        let refused = new(least - 1).unwrap_err().to_string();
        assert!(refused.starts_with("budget: "), "{refused}");
        assert!(refused.contains(&format!("at least {least}")), "{refused}");
    }
}
