//! Device memory: buffers that go back to a pool when the last tensor on them is dropped.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::capabilities::Capabilities;
use crate::context::{Context, Inner, lock};
use crate::error::{Error, Result};

/// Buffers are multiples of this, so that kernels may read whole 16-byte vectors at the end of a tensor.
const GRANULE: u64 = 256;
/// Larger buffers (weights) are freed, not pooled.
const POOLED_LIMIT: u64 = 64 << 20;
/// Free bytes that the pool keeps at most.
const POOL_BYTES: u64 = 1 << 30;

/// A storage buffer with an identity for the bind-group cache.
pub(crate) struct Buffer {
    pub(crate) id: u64,
    pub(crate) raw: wgpu::Buffer,
    /// Where it goes in the pool.
    key: u64,
    owner: Weak<Inner>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(inner) = self.owner.upgrade() else {
            return;
        };
        let size = self.raw.size();
        let kept = inner.pool.kept.load(Ordering::Relaxed);
        if size <= POOLED_LIMIT && kept + size <= POOL_BYTES {
            let free = Free {
                id: self.id,
                raw: self.raw.clone(),
            };
            inner.pool.kept.fetch_add(size, Ordering::Relaxed);
            lock(&inner.pool.free)
                .entry(self.key)
                .or_default()
                .push(free);
        } else {
            lock(&inner.bind_groups).forget(self.id);
            inner.pool.alive.fetch_sub(size, Ordering::Relaxed);
        }
    }
}

struct Free {
    id: u64,
    raw: wgpu::Buffer,
}

/// Free buffers by size.
pub(crate) struct Pool {
    free: Mutex<HashMap<u64, Vec<Free>>>,
    limit: u64,
    alive: AtomicU64,
    kept: AtomicU64,
    created: AtomicU64,
}

impl Pool {
    pub(crate) fn new(caps: &Capabilities) -> Self {
        Self {
            free: Mutex::default(),
            limit: caps.tensor_bytes(),
            alive: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            created: AtomicU64::new(0),
        }
    }

    pub(crate) fn bytes_alive(&self) -> u64 {
        self.alive.load(Ordering::Relaxed)
    }

    pub(crate) fn created(&self) -> u64 {
        self.created.load(Ordering::Relaxed)
    }

    pub(crate) fn clear(&self) {
        let freed: u64 = lock(&self.free)
            .drain()
            .flat_map(|(_, list)| list)
            .map(|f| f.raw.size())
            .sum();
        self.alive.fetch_sub(freed, Ordering::Relaxed);
        self.kept.fetch_sub(freed, Ordering::Relaxed);
    }

    /// A buffer of at least `bytes`; its contents are whatever the last user left.
    pub(crate) fn allocate(&self, ctx: &Context, bytes: u64) -> Result<Arc<Buffer>> {
        let limit = self.limit;
        if bytes > limit {
            return Err(Error::argument(
                "tensor",
                format!("{bytes} bytes"),
                format!(
                    "at most {limit} bytes, this device's limit for one storage binding: split it"
                ),
            ));
        }
        let size = size_class(bytes).min(limit);
        let copies = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        self.take(ctx, size, size, wgpu::BufferUsages::STORAGE | copies)
    }

    /// A buffer for uniform parameters.
    pub(crate) fn allocate_uniform(&self, ctx: &Context, size: u64) -> Result<Arc<Buffer>> {
        // Pooled apart from storage, by a key that no storage buffer has.
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        self.take(ctx, size, size + 1, usage)
    }

    fn take(
        &self,
        ctx: &Context,
        size: u64,
        key: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<Arc<Buffer>> {
        let owner = Arc::downgrade(&ctx.inner);
        if let Some(Free { id, raw }) = lock(&self.free).get_mut(&key).and_then(Vec::pop) {
            self.kept.fetch_sub(size, Ordering::Relaxed);
            return Ok(Arc::new(Buffer {
                id,
                raw,
                key,
                owner,
            }));
        }
        let raw = match self.create(ctx, size, usage) {
            // What the pool keeps may be what is missing.
            Err(Error::OutOfMemory(_)) => {
                ctx.trim();
                self.create(ctx, size, usage)?
            }
            created => created?,
        };
        Ok(Arc::new(Buffer {
            id: ctx.fresh_id(),
            raw,
            key,
            owner,
        }))
    }

    fn create(&self, ctx: &Context, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let descriptor = wgpu::BufferDescriptor {
            label: None,
            size,
            usage,
            mapped_at_creation: false,
        };
        let raw = ctx
            .scoped(|device| device.create_buffer(&descriptor))
            .map_err(|e| match e {
                Error::OutOfMemory(_) => Error::OutOfMemory(format!(
                    "{size} bytes more than the {} in use",
                    self.bytes_alive()
                )),
                other => other,
            })?;
        self.alive.fetch_add(size, Ordering::Relaxed);
        self.created.fetch_add(1, Ordering::Relaxed);
        Ok(raw)
    }
}

/// Pooled sizes go up in eighths of powers of two (at most 12.5% is wasted); large ones are exact.
fn size_class(bytes: u64) -> u64 {
    let bytes = bytes.max(1).next_multiple_of(GRANULE);
    if bytes > POOLED_LIMIT {
        return bytes;
    }
    let step = (bytes.next_power_of_two() / 16).max(GRANULE);
    bytes.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_hold_and_waste_little() {
        for bytes in (1..100_000)
            .step_by(37)
            .chain([1 << 20, (1 << 20) + 1, 65 << 20])
        {
            let class = size_class(bytes);
            assert!(class >= bytes && class.is_multiple_of(GRANULE));
            assert!(
                class - bytes <= (bytes / 8).max(GRANULE),
                "{bytes} -> {class}"
            );
            assert_eq!(size_class(class), class);
        }
    }
}
