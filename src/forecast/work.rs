//! The work of a training, counted by a dry run.

use super::rehearsal::{Rehearsal, Rehearsed};
use crate::backbone::Backbone;
use crate::data::{Augment, batch_count};
use crate::error::Result;
use crate::freeze::{BatchNormMode, FreezePolicy};
use crate::head::Head;
use crate::optim::Optimizer;
use crate::plan::{HeadStart, Phase, Plan};
use serde::{Deserialize, Serialize};

/// Multiply-adds per image: the products of convolutions and fully connected layers. Norms, activations and pools are
/// not counted, and a convolution counts as if it were computed directly, as in the tables of papers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MultiplyAdds {
    /// Of the forward pass.
    pub forward: u64,
    /// Of the backward pass: the gradients of weights that learn, the gradients of inputs after the first of them, and
    /// the convolutions that are computed again to save memory. About twice the forward pass if everything learns.
    pub backward: u64,
}

/// The data that a plan trains on, as far as the work depends on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Workload {
    /// Training samples.
    pub train: usize,
    /// Validation samples.
    pub valid: usize,
    /// Bytes that cached features may take, in the network's type; 0 without a cache.
    pub cache: usize,
}

/// The work of a whole training: how often each thing is done that takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Work {
    /// Multiply-adds of forward passes without gradients: features of frozen blocks, and validation.
    pub inference: u64,
    /// Multiply-adds of forward and backward passes through blocks that learn, and the head.
    pub training: u64,
    /// Images that are read and prepared.
    pub images: u64,
    /// Steps of the optimizer.
    pub steps: u64,
    /// Elements that these steps update.
    pub updates: u64,
    /// Whether the multiply-adds are [`UNCOUNTED`] ones.
    pub uncounted: bool,
}

/// What one image costs in a phase.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageWork {
    /// Multiply-adds of the forward pass through the frozen blocks.
    pub prefix: u64,
    /// Multiply-adds of the forward pass through the blocks after them, and the head.
    pub suffix: u64,
    /// Multiply-adds of the backward pass.
    pub backward: u64,
    /// Bytes of the map, or features, between the two.
    bytes: usize,
    /// The number of frozen blocks.
    pub frozen_blocks: usize,
    /// Elements that learn.
    pub learning: usize,
    uncounted: bool,
}

/// The forward pass of a network with custom layers, which no dry run covers, in units of its own: one pass. Its
/// backward pass is twice that. Such figures compare the plans of one network, if they freeze all of it or nothing.
const UNCOUNTED: u64 = 1 << 20;

/// Rows that a head is fitted to at a time, at most.
const MOST_FIT: usize = 3072;

/// How often the selection of columns multiplies all of them by as many numbers as there are classes.
const LASSO_PASSES: u64 = 400;

impl Plan {
    /// The work of this plan; `None` for a network with custom layers of which a part is frozen.
    ///
    /// A phase whose frozen blocks see the same images in each epoch runs them once per sample and keeps their
    /// features, if the cache has room; otherwise it runs everything in every epoch. Each epoch ends with a validation.
    pub(crate) fn work(
        &self,
        backbone: &Backbone,
        head: Head,
        classes: usize,
        load: &Workload,
    ) -> Result<Option<Work>> {
        let mut all = self.fit_work(backbone, head, classes, load)?;
        for phase in &self.phases {
            let Some(image) = ImageWork::of(phase, backbone, head, classes)? else { return Ok(None) };
            all = all.plus(&self.work_of(phase, &image, load));
        }
        Ok(Some(all))
    }

    /// The work of fitting the head, and of the fitted head's validation: each image passes the network once.
    fn fit_work(&self, backbone: &Backbone, head: Head, classes: usize, load: &Workload) -> Result<Work> {
        if self.head_start == HeadStart::Random {
            return Ok(Work::default());
        }
        let phase = Phase::new(1, Optimizer::sgd(1.0)).freeze(FreezePolicy::Backbone).batch_norm(BatchNormMode::Frozen);
        let Some(image) = ImageWork::of(&phase, backbone, Head::linear(), classes)? else { return Ok(Work::default()) };
        let columns = self.head(head)?.shapes(backbone.blueprint(), classes).first().map_or(0, |(_, shape)| shape[1]);
        let (images, rows) = ((load.train + load.valid) as u64, load.train.min(MOST_FIT) as u64);
        // The products of all pairs of rows, the inverse of their matrix, and the lasso's passes over all columns.
        let passes = if self.head_start == HeadStart::Stages { LASSO_PASSES * classes as u64 } else { 0 };
        let products = (rows + passes).saturating_mul(rows).saturating_mul(columns as u64);
        let solve = products.saturating_add(rows.saturating_pow(3));
        let inference = image.forward().saturating_mul(images);
        let inference = if image.uncounted { inference } else { inference.saturating_add(solve) };
        Ok(Work { inference, images, uncounted: image.uncounted, ..Work::default() })
    }

    fn work_of(&self, phase: &Phase, image: &ImageWork, load: &Workload) -> Work {
        let none = Augment::none();
        let augment = if phase.augmented { &self.augment } else { &none };
        let views = if augment.is_random() { self.views } else { Some(1) };
        let (train, valid, epochs) = (load.train as u64, load.valid as u64, phase.epochs as u64);
        let bytes = |samples: usize| samples.saturating_mul(image.bytes);
        let divided = image.frozen_blocks > 0 && load.cache > 0;
        let views = views.filter(|views| divided && bytes(load.train).saturating_mul(*views) <= load.cache);
        let taken = views.map_or(0, |views| bytes(load.train).saturating_mul(views));
        let valid_cached = divided && bytes(load.valid) <= load.cache - taken;
        // How often the frozen blocks see the images of each part.
        let train_passes = views.map_or(epochs, |views| views as u64).saturating_mul(train);
        let valid_passes = if valid_cached { valid } else { epochs.saturating_mul(valid) };
        let (trained, validated) = (epochs.saturating_mul(train), epochs.saturating_mul(valid));
        let passes = train_passes.saturating_add(valid_passes);
        let steps = epochs.saturating_mul(batch_count(load.train, self.batch_size) as u64);
        Work {
            inference: image.prefix.saturating_mul(passes).saturating_add(image.suffix.saturating_mul(validated)),
            training: image.suffix.saturating_add(image.backward).saturating_mul(trained),
            images: passes,
            steps,
            updates: steps.saturating_mul(image.learning as u64),
            uncounted: image.uncounted,
        }
    }
}

impl Work {
    fn plus(&self, other: &Self) -> Self {
        Self {
            inference: self.inference.saturating_add(other.inference),
            training: self.training.saturating_add(other.training),
            images: self.images.saturating_add(other.images),
            steps: self.steps.saturating_add(other.steps),
            updates: self.updates.saturating_add(other.updates),
            uncounted: self.uncounted || other.uncounted,
        }
    }

    /// All multiply-adds, if they are counted.
    pub fn multiply_adds(&self) -> Option<u64> {
        (!self.uncounted).then(|| self.inference.saturating_add(self.training))
    }
}

impl ImageWork {
    /// Multiply-adds of the whole forward pass.
    pub fn forward(&self) -> u64 {
        self.prefix.saturating_add(self.suffix)
    }

    /// Multiply-adds of a step that are no inference.
    pub fn training(&self) -> u64 {
        self.suffix.saturating_add(self.backward)
    }

    /// Of one image in this phase; `None` for a network with custom layers of which a part is frozen.
    pub fn of(phase: &Phase, backbone: &Backbone, head: Head, classes: usize) -> Result<Option<Self>> {
        let rehearsal = Rehearsal::new(phase, backbone, head, classes)?;
        let (frozen_blocks, learning) = (rehearsal.frozen.prefix, rehearsal.learns().iter().sum());
        let profile = &backbone.inner.profile;
        if !profile.blueprint.is_opaque() {
            let Rehearsed { logits, prefix, boundary } = rehearsal.run(1, None)?;
            let forward = logits.multiply_adds();
            let backward = logits.backward(&[]).backward;
            let bytes = boundary * profile.dtype.size_in_bytes();
            let suffix = forward - prefix;
            return Ok(Some(Self { prefix, suffix, backward, bytes, frozen_blocks, learning, uncounted: false }));
        }
        let (prefix, suffix, backward) = match frozen_blocks {
            0 if rehearsal.learns_entirely() => (0, UNCOUNTED, 2 * UNCOUNTED),
            k if k == backbone.blocks().len() => (UNCOUNTED, 0, 0),
            _ => return Ok(None),
        };
        let bytes = backbone.feature_dim() * profile.dtype.size_in_bytes();
        Ok(Some(Self { prefix, suffix, backward, bytes, frozen_blocks, learning, uncounted: true }))
    }
}

#[cfg(test)]
mod tests;
