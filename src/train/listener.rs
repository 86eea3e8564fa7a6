//! The callback for training events.

use super::event::Event;

type Hear = dyn FnMut(&Event<'_>) + Send;

/// A listener, or none.
#[derive(Default)]
pub(super) struct Listener(Option<Box<Hear>>);

impl Listener {
    pub fn new(listener: impl FnMut(&Event<'_>) + Send + 'static) -> Self {
        Self(Some(Box::new(listener)))
    }

    pub fn tell(&mut self, event: &Event<'_>) {
        if let Some(listener) = &mut self.0 {
            listener(event);
        }
    }
}
