//! Congestion control for a thin stream: PROTOCOL.md §11.1.
//!
//! A stream of tokens never fills its congestion window, so the window never grows; but each loss shrinks it, down to two packets, and
//! then fresh tokens wait for acknowledgements of old ones. Here Cubic decides as ever, but while a connection sends less than
//! [`THIN_BYTES_PER_S`] it may have [`FLOOR_BYTES`] on their way: what it sends then is bounded by its own rate, not by the window, and
//! that rate is below what one bulk flow takes of a link that is worth the name. Above it Cubic alone decides.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// On their way at least, while the sending rate is that of a thin stream: 300 ms of it, and as much again while losses are made good.
pub(crate) const FLOOR_BYTES: u64 = 40_000;
/// Up to here a connection counts as thin: 64 kB/s, half a megabit. Eight streams of 50 tokens/s with their repeats are below it.
pub(crate) const THIN_BYTES_PER_S: u64 = 64_000;
/// Over which the rate is measured; a burst of as much is still thin.
const RATE_TIME: Duration = Duration::from_millis(500);

/// Makes the controller of each path.
#[derive(Debug, Default)]
pub(crate) struct ThinStreamConfig(Arc<CubicConfig>);

impl ControllerFactory for ThinStreamConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(ThinStream { inner: self.0.clone().build(now, current_mtu), rate: Rate { level: 0, at: now } })
    }
}

struct ThinStream {
    inner: Box<dyn Controller>,
    rate: Rate,
}

/// A bucket that fills with what is sent and drains at the thin rate.
#[derive(Clone, Copy, Debug)]
struct Rate {
    level: u64,
    at: Instant,
}

impl Rate {
    fn sent(&mut self, now: Instant, bytes: u64) {
        let drained = now.saturating_duration_since(self.at).as_micros() as u64 * THIN_BYTES_PER_S / 1_000_000;
        self.level = self.level.saturating_sub(drained) + bytes;
        self.at = now.max(self.at);
    }

    fn is_thin(&self) -> bool {
        self.level <= THIN_BYTES_PER_S * RATE_TIME.as_millis() as u64 / 1000
    }
}

impl Controller for ThinStream {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.rate.sent(now, bytes);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.rate.is_thin() { self.inner.window().max(FLOOR_BYTES) } else { self.inner.window() }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), rate: self.rate })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: u16 = 1200;

    fn controller(now: Instant) -> Box<dyn Controller> {
        Arc::new(ThinStreamConfig::default()).build(now, PACKET)
    }

    /// Losses one after another, until Cubic has shrunk as far as it goes.
    fn lose_much(controller: &mut dyn Controller, now: Instant) {
        for n in 0..40 {
            let at = now + Duration::from_secs(n);
            controller.on_congestion_event(at, at, false, 1200);
        }
    }

    #[test]
    fn a_thin_stream_keeps_its_floor_whatever_is_lost() {
        let now = Instant::now();
        let mut controller = controller(now);
        lose_much(&mut *controller, now);
        // 50 tokens a second, each in two packets of 300 bytes.
        for n in 0..1000 {
            controller.on_sent(now + Duration::from_millis(n * 10), 300, n);
            assert!(controller.window() >= FLOOR_BYTES);
        }
    }

    #[test]
    fn a_bulk_transfer_has_no_floor() {
        let now = Instant::now();
        let mut controller = controller(now);
        lose_much(&mut *controller, now);
        for n in 0..100 {
            controller.on_sent(now + Duration::from_millis(n), 1200, n);
        }
        assert!(controller.window() < FLOOR_BYTES / 4, "{}", controller.window());
        controller.on_sent(now + Duration::from_secs(5), 1200, 100);
        assert!(controller.window() >= FLOOR_BYTES, "thin again");
    }
}
