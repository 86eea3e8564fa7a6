//! The result of a step with a norm, recomputed from the norm's input.
//!
//! The backward pass of a batch norm reads z, that of the next convolution y = act(a z + b). Computing y from z is one
//! pass over memory, far cheaper than a convolution, and halves what a training step keeps (as Chen et al. 2016, arXiv
//! 1604.06174, propose).

use super::norm::Affine;
use super::step::recomputes_sums;
use crate::ops::activation::Activation;
use crate::ops::buffer::Buffer;
use crate::ops::epilogue::Epilogue;
use crate::ops::filter::PreparedFilter;
use crate::ops::geometry::Geometry;
use crate::ops::gradient::Differentiable;
use crate::ops::kernels::norm;
use crate::ops::value::{Recompute, Saved, Select, Value};
use candle_core::Result;
use std::sync::Arc;

/// The sums of a convolution that a batch norm reads in backward.
pub(super) enum Sums<T: Differentiable> {
    Saved(Arc<Buffer<T>>),
    /// Recomputed for each of its two readers: the next convolution and the norm.
    Recompute {
        x: Saved<T>,
        filter: PreparedFilter<T>,
        g: Geometry,
    },
}

impl<T: Differentiable> Sums<T> {
    pub fn new(z: Buffer<T>, x: &Value<T>, filter: &PreparedFilter<T>, g: &Geometry) -> Self {
        if recomputes_sums(g, x.saved().depth()) {
            Self::Recompute { x: x.saved(), filter: filter.clone(), g: *g }
        } else {
            Self::Saved(Arc::new(z))
        }
    }

    /// The sums, bit for bit.
    pub fn get(&self) -> Result<Arc<Buffer<T>>> {
        match self {
            Self::Saved(z) => Ok(z.clone()),
            Self::Recompute { x, filter, g } => {
                let mut z = Buffer::arbitrary(g.output_len());
                filter.conv(&x.data()?, g, &Epilogue::NONE, &mut z)?;
                Ok(Arc::new(z))
            }
        }
    }
}

/// y = act(a z + b)
pub(super) struct Normed<T: Differentiable> {
    pub z: Arc<Sums<T>>,
    pub affine: Arc<Affine<T>>,
    pub act: Activation,
}

impl<T: Differentiable> Recompute<T> for Normed<T> {
    fn data(&self, select: Option<Select<T>>) -> Result<Buffer<T>> {
        let Affine { a, b, .. } = &*self.affine;
        let mut z = self.z.get()?;
        if let Some(select) = select {
            z = Arc::new(select(&z));
        }
        // Data computed for this alone is changed in place.
        match Arc::try_unwrap(z) {
            Ok(mut y) => {
                norm::choose().affine_in_place(&mut y, a, b, self.act);
                Ok(y)
            }
            Err(z) => {
                let mut y = Buffer::arbitrary(z.len());
                norm::choose().affine(&z, a, b, None, self.act, &mut y);
                Ok(y)
            }
        }
    }

    fn is_selectable(&self) -> bool {
        true
    }

    fn depth(&self) -> usize {
        match &*self.z {
            Sums::Saved(_) => 0,
            Sums::Recompute { x, .. } => 1 + x.depth(),
        }
    }
}
