//! What the machine has to spare: memory, GPU memory, processor time.

use std::{
    env,
    sync::Arc,
    time::{Duration, Instant},
};

use nvml_wrapper::{Device, Nvml};
use parking_lot::Mutex;
use sysinfo::{MemoryRefreshKind, System};

/// How long a reading is good for: reading again sooner costs a few files and driver calls and says nothing new, and
/// processor time needs 200 ms between two readings to mean anything.
const LIFETIME: Duration = Duration::from_millis(500);
const MIB: u64 = 1 << 20;

/// One reading. Memory in MiB; GPU memory is 0 where there is no GPU that NVML knows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    pub(crate) total_ram_mb: i64,
    pub(crate) free_ram_mb: i64,
    pub(crate) total_vram_mb: i64,
    pub(crate) free_vram_mb: i64,
    /// Of all processors together, 0 to 100.
    pub(crate) cpu_percent: f64,
}

/// Reads the machine. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Telemetry {
    reader: Arc<Mutex<Reader>>,
}

struct Reader {
    system: System,
    /// `None` where no NVIDIA driver is installed: it is loaded when the program runs, not linked.
    nvml: Option<Nvml>,
    last: Option<(Instant, Sample)>,
}

impl Telemetry {
    /// Loads the GPU driver's library, if there is one and the engine computes on a GPU: that of another program's GPU says nothing about this agent.
    pub(crate) fn new(uses_gpu: bool) -> Self {
        let nvml = uses_gpu.then(Nvml::init).and_then(|nvml| {
            nvml.inspect_err(|error| tracing::warn!(%error, "no NVML: GPU memory is not reported")).ok()
        });
        let reader = Reader { system: System::new(), nvml, last: None };
        Self { reader: Arc::new(Mutex::new(reader)) }
    }

    /// The state of the last half second.
    pub(crate) async fn sample(&self) -> Sample {
        let reader = Arc::clone(&self.reader);
        // Files and driver calls: off the threads that carry tokens.
        let sample = tokio::task::spawn_blocking(move || reader.lock().sample()).await;
        sample.unwrap_or_default()
    }
}

impl Reader {
    fn sample(&mut self) -> Sample {
        if let Some((at, sample)) = self.last
            && at.elapsed() < LIFETIME
        {
            return sample;
        }
        self.system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        self.system.refresh_cpu_usage();
        let mut total = self.system.total_memory();
        let mut free = self.system.available_memory();
        // In a container its limit counts. What it uses is its resident memory: the page cache gives way.
        if total > 0
            && let Some(limits) = self.system.cgroup_limits()
            && limits.total_memory < total
        {
            total = limits.total_memory;
            free = free.min(total.saturating_sub(limits.rss));
        }
        let (total_vram, free_vram) = self.nvml.as_ref().map_or((0, 0), gpu_memory);
        let sample = Sample {
            total_ram_mb: mib(total),
            free_ram_mb: mib(free),
            total_vram_mb: mib(total_vram),
            free_vram_mb: mib(free_vram),
            cpu_percent: f64::from(self.system.global_cpu_usage()),
        };
        self.last = Some((Instant::now(), sample));
        sample
    }
}

/// Total and free bytes of the GPUs that this process may use. A GPU that does not answer is left out.
fn gpu_memory(nvml: &Nvml) -> (u64, u64) {
    let visible = env::var("CUDA_VISIBLE_DEVICES").ok();
    let devices: Vec<Device<'_>> = match visible.as_deref() {
        None => (0..nvml.device_count().unwrap_or(0)).filter_map(|index| nvml.device_by_index(index).ok()).collect(),
        Some(list) => visible_devices(list)
            .filter_map(|device| match device.parse() {
                Ok(index) => nvml.device_by_index(index).ok(),
                Err(_) => nvml.device_by_uuid(device).ok(),
            })
            .collect(),
    };
    let memory = devices.iter().filter_map(|device| device.memory_info().ok());
    memory.fold((0, 0), |(total, free), memory| (total + memory.total, free + memory.free))
}

/// The indices and UUIDs in `CUDA_VISIBLE_DEVICES`; CUDA stops reading at the first negative one.
fn visible_devices(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).take_while(|device| !device.is_empty() && !device.starts_with('-'))
}

fn mib(bytes: u64) -> i64 {
    i64::try_from(bytes / MIB).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_has_memory() {
        let sample = Telemetry::new(true).sample().await;
        assert!(sample.total_ram_mb > 0 && sample.free_ram_mb > 0, "{sample:?}");
        assert!(sample.free_ram_mb <= sample.total_ram_mb && sample.free_vram_mb <= sample.total_vram_mb, "{sample:?}");
        assert!((0.0..=100.0).contains(&sample.cpu_percent), "{sample:?}");
    }

    #[test]
    fn hidden_gpus_are_not_counted() {
        assert_eq!(visible_devices("1, GPU-8932f937,-1,0").collect::<Vec<_>>(), ["1", "GPU-8932f937"]);
        assert_eq!(visible_devices("").count(), 0);
    }
}
