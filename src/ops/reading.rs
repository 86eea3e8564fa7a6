//! Weights that a backward pass still has to read, though an optimizer may change them before it comes.
//!
//! A forward pass takes no copy of what learns. Whoever changes a variable's numbers in place asks here first, and the
//! old numbers are copied if, and only if, a backward pass that will read them is still to come. So a gradient is
//! always that of its own forward pass, and the usual order (forward, backward, step) pays nothing for it.

use super::real::with_slice;
use candle_core::{Result, Tensor, TensorId, WithDType};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// The variables that are waited for, and who waits.
static WAITING: Mutex<Option<HashMap<TensorId, Vec<Weak<Reading>>>>> = Mutex::new(None);

fn waiting() -> MutexGuard<'static, Option<HashMap<TensorId, Vec<Weak<Reading>>>>> {
    // The map is whole at every moment at which a panic could come.
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A tensor's numbers as they were when this was made.
pub(crate) struct Reading {
    tensor: Tensor,
    /// The old numbers, once the tensor's have changed.
    old: OnceLock<Tensor>,
}

impl Reading {
    /// Of a tensor that may learn.
    pub fn new(tensor: &Tensor) -> Arc<Self> {
        let reading = Arc::new(Self { tensor: tensor.clone(), old: OnceLock::new() });
        if tensor.is_variable() {
            let mut waiting = waiting();
            let list = waiting.get_or_insert_default().entry(tensor.id()).or_default();
            list.retain(|other| other.strong_count() > 0);
            list.push(Arc::downgrade(&reading));
        }
        reading
    }

    /// Lets `f` read the numbers.
    pub fn with<T: WithDType, R>(&self, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
        // While the tensor's numbers are lent nobody can write them, and whoever will has left a copy before.
        with_slice(&self.tensor, |now| match self.old.get() {
            Some(old) => with_slice(old, f),
            None => f(now),
        })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if !self.tensor.is_variable() {
            return;
        }
        let mut waiting = waiting();
        let Some(map) = waiting.as_mut() else { return };
        if let Some(list) = map.get_mut(&self.tensor.id()) {
            list.retain(|other| other.strong_count() > 0);
            if list.is_empty() {
                map.remove(&self.tensor.id());
            }
        }
    }
}

/// To be called before the variable's numbers change in place.
pub(crate) fn before_change(var: &Tensor) -> Result<()> {
    // Nothing may be dropped while the lock is held, for dropping a reading takes it.
    let mut list: Vec<Arc<Reading>> = {
        let waiting = waiting();
        let list = waiting.as_ref().and_then(|map| map.get(&var.id()));
        list.into_iter().flatten().filter_map(Weak::upgrade).collect()
    };
    list.retain(|reading| reading.old.get().is_none());
    if list.is_empty() {
        return Ok(());
    }
    let old = var.detach().copy()?;
    for reading in list {
        // Whoever came first copied the same numbers.
        let _ = reading.old.set(old.clone());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn the_old_numbers_are_read_after_a_change_and_nobody_is_left_waiting() {
        let var = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let read = |r: &Reading| r.with(|v: &[f32]| Ok(v.to_vec())).unwrap();
        let change = |to: [f32; 2]| {
            before_change(&var).unwrap();
            var.set(&Tensor::new(&to, &Device::Cpu).unwrap()).unwrap();
        };
        let first = Reading::new(&var);
        change([3.0, 4.0]);
        let second = Reading::new(&var);
        assert_eq!((read(&first), read(&second)), (vec![1.0, 2.0], vec![3.0, 4.0]));
        change([5.0, 6.0]);
        assert_eq!((read(&first), read(&second)), (vec![1.0, 2.0], vec![3.0, 4.0]));
        drop(first);
        assert!(waiting().as_ref().unwrap().contains_key(&var.id()));
        drop(second);
        assert!(!waiting().as_ref().unwrap().contains_key(&var.id()));
    }
}
