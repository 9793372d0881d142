//! Metrics of the queues' places: loads of the scheduler's last period, and moves.

use super::{counters, gauges};
use crate::Control;
use crate::scheduler::{Loads, QueueId};
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;

pub(super) fn encode(control: &Control, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let moves = control.scheduler.moves().into_iter().map(|(by, count)| ([("by", by.to_owned())], count));
    counters(encoder, "queue_moves", "Queues that were moved to another worker", None, moves)?;
    let Loads { workers, queues } = control.scheduler.loads();
    let workers = workers.into_iter().enumerate().map(|(worker, load)| ([("worker", worker.to_string())], load));
    gauges(encoder, "worker_load_ratio", "Part of its time that the worker was busy in the last period", workers)?;
    let queues = queues.into_iter().map(|load| {
        let QueueId { device, queue } = load.queue;
        let (kind, queue) = (device.subsystem().to_owned(), queue.to_string());
        (
            [("kind", kind), ("name", device.name().to_owned()), ("queue", queue), ("worker", load.worker.to_string())],
            load.load,
        )
    });
    gauges(encoder, "queue_load_ratio", "Part of its worker's time that the queue took in the last period", queues)
}
