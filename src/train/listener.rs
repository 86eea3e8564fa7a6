//! The callbacks for training events.

use super::event::Event;
use std::sync::{Arc, Mutex, PoisonError};

type Hear = dyn FnMut(&Event<'_>) + Send;

/// Listeners, told in the order in which they were added. A clone has the same ones.
#[derive(Clone, Default)]
pub(super) struct Listener(Vec<Arc<Mutex<Hear>>>);

impl Listener {
    pub fn add(&mut self, listener: impl FnMut(&Event<'_>) + Send + 'static) {
        self.0.push(Arc::new(Mutex::new(listener)));
    }

    pub fn tell(&self, event: &Event<'_>) {
        for listener in &self.0 {
            // A listener that has panicked elsewhere is still told.
            (listener.lock().unwrap_or_else(PoisonError::into_inner))(event);
        }
    }
}
