//! Weights saved for backward, copy-on-write: an optimizer may update them in place before backward.
//!
//! A forward pass does not copy trainable weights. Code that changes a variable in place calls [`before_change`] first.
//! It copies the old elements if, and only if, a pending backward pass reads them. So a gradient is always
//! that of its own forward pass, and the usual order (forward, backward, step) copies nothing.

use super::number::with_slice;
use candle_core::{Result, Tensor, TensorId, WithDType};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// The variables that are saved for a pending backward pass.
static SAVED: Mutex<Option<HashMap<TensorId, Vec<Weak<SavedTensor>>>>> = Mutex::new(None);

fn all_saved() -> MutexGuard<'static, Option<HashMap<TensorId, Vec<Weak<SavedTensor>>>>> {
    // The map is consistent at every point where a panic is possible.
    SAVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A tensor's elements as they were when this was made.
pub(crate) struct SavedTensor {
    tensor: Tensor,
    /// The old elements, once the tensor's have changed.
    old: OnceLock<Tensor>,
}

impl SavedTensor {
    /// Saves a tensor that may be trainable.
    pub fn new(tensor: &Tensor) -> Arc<Self> {
        let saved = Arc::new(Self { tensor: tensor.clone(), old: OnceLock::new() });
        if tensor.is_variable() {
            let mut all = all_saved();
            let list = all.get_or_insert_default().entry(tensor.id()).or_default();
            list.retain(|other| other.strong_count() > 0);
            list.push(Arc::downgrade(&saved));
        }
        saved
    }

    /// Lets `f` read the elements.
    pub fn with<T: WithDType, R>(&self, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
        // While the tensor's elements are lent they cannot be written, and an earlier write has stored a copy.
        with_slice(&self.tensor, |now| match self.old.get() {
            Some(old) => with_slice(old, f),
            None => f(now),
        })
    }
}

impl Drop for SavedTensor {
    fn drop(&mut self) {
        if !self.tensor.is_variable() {
            return;
        }
        let mut all = all_saved();
        let Some(map) = all.as_mut() else { return };
        if let Some(list) = map.get_mut(&self.tensor.id()) {
            list.retain(|other| other.strong_count() > 0);
            if list.is_empty() {
                map.remove(&self.tensor.id());
            }
        }
    }
}

/// Must be called before the variable's elements change in place.
pub(crate) fn before_change(var: &Tensor) -> Result<()> {
    // Nothing may be dropped while the lock is held: dropping a saved tensor takes it.
    let mut list: Vec<Arc<SavedTensor>> = {
        let all = all_saved();
        let list = all.as_ref().and_then(|map| map.get(&var.id()));
        list.into_iter().flatten().filter_map(Weak::upgrade).collect()
    };
    list.retain(|saved| saved.old.get().is_none());
    if list.is_empty() {
        return Ok(());
    }
    let old = var.detach().copy()?;
    for saved in list {
        // If another thread was first, it copied the same elements.
        let _ = saved.old.set(old.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_old_elements_are_read_after_a_change_and_no_entry_is_left() {
        let var = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let read = |r: &SavedTensor| r.with(|v: &[f32]| Ok(v.to_vec())).unwrap();
        let change = |to: [f32; 2]| {
            before_change(&var).unwrap();
            var.set(&Tensor::new(&to, &Device::Cpu).unwrap()).unwrap();
        };
        let first = SavedTensor::new(&var);
        change([3.0, 4.0]);
        let second = SavedTensor::new(&var);
        assert_eq!((read(&first), read(&second)), (vec![1.0, 2.0], vec![3.0, 4.0]));
        change([5.0, 6.0]);
        assert_eq!((read(&first), read(&second)), (vec![1.0, 2.0], vec![3.0, 4.0]));
        drop(first);
        assert!(all_saved().as_ref().unwrap().contains_key(&var.id()));
        drop(second);
        assert!(!all_saved().as_ref().unwrap().contains_key(&var.id()));
    }
}
