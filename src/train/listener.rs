//! The callback for training events.

use super::event::Event;
use std::sync::{Arc, Mutex, PoisonError};

type Hear = dyn FnMut(&Event<'_>) + Send;

/// A listener, or none. Clones are the same listener.
#[derive(Clone, Default)]
pub(super) struct Listener(Option<Arc<Mutex<Hear>>>);

impl Listener {
    pub fn new(listener: impl FnMut(&Event<'_>) + Send + 'static) -> Self {
        Self(Some(Arc::new(Mutex::new(listener))))
    }

    pub fn tell(&self, event: &Event<'_>) {
        if let Some(listener) = &self.0 {
            // A listener that has panicked elsewhere is still told.
            (listener.lock().unwrap_or_else(PoisonError::into_inner))(event);
        }
    }
}
