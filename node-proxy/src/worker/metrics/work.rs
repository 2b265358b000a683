//! A task whose steps are timed for its pod.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::meter::Meter;
use crate::worker::connection::Connection;
use crate::worker::record::Record;

/// What every connection costs besides its task.
const BESIDES: usize = size_of::<Connection>() + size_of::<Record>();

/// Runs a future and counts the time of each of its steps, and its size while it lives, for one pod. Two readings of the clock a
/// step, through the vDSO (about 25 ns each).
pub struct Work<F: ?Sized> {
    meter: Arc<Meter>,
    size: usize,
    // Boxed by those who know its size best; so this needs no pinning of its own.
    future: Pin<Box<F>>,
}

impl<F: ?Sized> Work<F> {
    /// For the pod of this meter.
    pub fn new(meter: Arc<Meter>, future: Pin<Box<F>>) -> Self {
        let size = size_of_val(&*future) + BESIDES;
        meter.holds(size);
        Self { meter, size, future }
    }
}

impl<F: Future + ?Sized> Future for Work<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        if !self.meter.is_on() {
            return self.future.as_mut().poll(cx);
        }
        let begin = Instant::now();
        let polled = self.future.as_mut().poll(cx);
        self.meter.worked(begin.elapsed());
        polled
    }
}

impl<F: ?Sized> Drop for Work<F> {
    fn drop(&mut self) {
        self.meter.released(self.size);
    }
}
