//! Makes tensors of storages.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::archive::Archive;
use super::{Storage, View};
use crate::error::Result;
use crate::weights::{element_count, quoted};

impl Archive {
    /// Reads every storage once and makes its tensors.
    pub fn tensors(&mut self, views: &BTreeMap<&str, &View>) -> Result<BTreeMap<String, Tensor>> {
        let mut storages: BTreeMap<&str, Vec<(&str, &View)>> = BTreeMap::new();
        for (&name, &view) in views {
            storages.entry(&view.storage.key).or_default().push((name, view));
        }
        let mut tensors = BTreeMap::new();
        // At most this many elements are copied, so that a few bytes cannot be expanded to gigabytes.
        let mut budget = self.len;
        for views in storages.values() {
            let storage = &views[0].1.storage;
            for &(name, view) in views {
                self.check(name, view, storage)?;
            }
            let data = self.storage(storage)?;
            // Views of the whole storage share it. Others are copied out, and equal ones share the copy.
            let (whole, parts): (Vec<_>, Vec<_>) = views.iter().partition(|(_, view)| is_whole(view));
            let mut made: BTreeMap<(usize, &[usize], &[usize]), Tensor> = BTreeMap::new();
            for (name, view) in parts {
                let key = (view.offset, &view.shape[..], &view.stride[..]);
                let tensor = if let Some(tensor) = made.get(&key) {
                    tensor.clone()
                } else {
                    let count = element_count(&view.shape).unwrap_or(usize::MAX) as u64;
                    budget = budget.checked_sub(count).ok_or_else(|| {
                        self.error(format!(
                            "tensor {}: refused: views have more elements than the file has bytes; save contiguous \
                             tensors",
                            quoted(name)
                        ))
                    })?;
                    let part = data.gather(view.offset, &view.shape, &view.stride);
                    part.map_err(|cause| self.error(format!("tensor {}: {cause}", quoted(name))))?
                        .into_tensor(&view.shape)?
                };
                made.insert(key, tensor.clone());
                tensors.insert(name.to_owned(), tensor);
            }
            if !whole.is_empty() {
                let data = data.into_tensor(&[storage.count])?;
                for (name, view) in whole {
                    tensors.insert(name.to_owned(), data.reshape(&view.shape[..])?);
                }
            }
        }
        Ok(tensors)
    }

    /// Checks that a view lies in its storage.
    fn check(&self, name: &str, view: &View, storage: &Storage) -> Result<()> {
        if *view.storage != *storage {
            return Err(self.error(format!(
                "tensor {}: another tensor gives storage {:?} another type or length",
                quoted(name),
                storage.key
            )));
        }
        if !lies_in_storage(view) {
            return Err(self.error(format!(
                "tensor {}: shape {:?} with strides {:?} from element {} does not lie in its storage of {} elements",
                quoted(name),
                view.shape,
                view.stride,
                view.offset,
                storage.count
            )));
        }
        Ok(())
    }
}

/// Whether every element of a view lies in its storage.
fn lies_in_storage(View { storage, offset, shape, stride }: &View) -> bool {
    if shape.len() != stride.len() || *offset > storage.count {
        return false;
    }
    let last = || {
        let mut axes = shape.iter().zip(stride);
        axes.try_fold(*offset, |at, (&length, &stride)| at.checked_add((length - 1).checked_mul(stride)?))
    };
    match element_count(shape) {
        None => false,
        Some(0) => true,
        Some(_) => last().is_some_and(|last| last < storage.count),
    }
}

/// Whether a view is its whole storage in row-major order. Strides of axes of length one do not matter.
fn is_whole(view: &View) -> bool {
    let mut expected = 1;
    let contiguous = view.shape.iter().zip(&view.stride).rev().all(|(&length, &stride)| {
        let follows = length == 1 || stride == expected;
        expected *= length.max(1);
        follows
    });
    contiguous && element_count(&view.shape) == Some(view.storage.count)
}
