//! Feature maps over our own graph on the CPU.

use super::buffer::Buffer;
use super::gradient::Differentiable;
use super::graph::{Edge, enter, exit, read};
use super::number::with_slice;
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Data of shape (N, H, W, C) and, if any earlier tensor is trainable, the edge of its gradient.
#[derive(Clone)]
pub(crate) struct Value<T: Differentiable> {
    pub data: Arc<Buffer<T>>,
    pub dims: [usize; 4],
    pub edge: Option<Edge<T>>,
    /// How the data is recomputed from data that backward saves anyway.
    recompute: Option<Arc<dyn Recompute<T>>>,
}

/// A selection of elements, each of which stays in its channel: (N, H, W, C) to (N, H', W', C).
pub(super) type Select<'a, T> = &'a dyn Fn(&[T]) -> Buffer<T>;

/// Data that can be recomputed, bit for bit, from data that backward saves anyway (Chen et al. 2016, arXiv 1604.06174).
pub(super) trait Recompute<T: Differentiable>: Send + Sync {
    /// The data, or the selection `select` of it, without computing the other elements.
    fn data(&self, select: Option<Select<T>>) -> Result<Buffer<T>>;

    /// Whether `data` takes a selection.
    fn is_selectable(&self) -> bool;

    /// How many convolutions are recomputed one from the other's result.
    fn depth(&self) -> usize;
}

/// Data saved for backward.
#[derive(Clone)]
pub(super) enum Saved<T: Differentiable> {
    Data(Arc<Buffer<T>>),
    Recompute(Arc<dyn Recompute<T>>),
}

impl<T: Differentiable> Saved<T> {
    /// The data, bit for bit.
    pub fn data(&self) -> Result<Arc<Buffer<T>>> {
        match self {
            Self::Data(data) => Ok(data.clone()),
            Self::Recompute(recompute) => Ok(Arc::new(recompute.data(None)?)),
        }
    }

    /// How many convolutions are recomputed one from the other's result.
    pub fn depth(&self) -> usize {
        if let Self::Recompute(recompute) = self { recompute.depth() } else { 0 }
    }
}

impl<T: Differentiable> Value<T> {
    pub(super) fn new(data: impl Into<Arc<Buffer<T>>>, dims: [usize; 4], edge: Option<Edge<T>>) -> Self {
        Self { data: data.into(), dims, edge, recompute: None }
    }

    /// The same value. Who saves it for backward recomputes the data instead.
    pub(super) fn recomputed_by(self, recompute: Option<Arc<dyn Recompute<T>>>) -> Self {
        Self { recompute, ..self }
    }

    pub(super) fn recompute(&self) -> Option<&Arc<dyn Recompute<T>>> {
        self.recompute.as_ref()
    }

    /// The data, saved for backward.
    pub(super) fn saved(&self) -> Saved<T> {
        match &self.recompute {
            Some(recompute) => Saved::Recompute(recompute.clone()),
            None => Saved::Data(self.data.clone()),
        }
    }

    /// From features (N, C), as images of one pixel.
    pub fn from_rows(rows: &Tensor) -> Result<Self> {
        let (n, c) = rows.dims2()?;
        Ok(Self::new(read(rows)?, [n, 1, 1, c], enter(rows)?))
    }

    /// From an image tensor (N, C, H, W).
    pub fn from_images(images: &Tensor) -> Result<Self> {
        if images.track_op() {
            // Candle's graph takes the gradient back to the images' order.
            let nhwc = images.permute((0, 2, 3, 1))?.contiguous()?;
            let (n, h, w, c) = nhwc.dims4()?;
            return Ok(Self::new(read(&nhwc)?, [n, h, w, c], enter(&nhwc)?));
        }
        let (n, c, h, w) = images.dims4()?;
        let (image, pixels) = ((h * w * c).max(1), (h * w).max(1));
        let mut data = Buffer::arbitrary(n * h * w * c);
        with_slice(images, |planes: &[T]| {
            data.par_chunks_mut(image).zip(planes.par_chunks(image)).for_each(|(to, planes)| {
                for (channel, plane) in planes.chunks_exact(pixels).enumerate() {
                    to.iter_mut().skip(channel).step_by(c).zip(plane).for_each(|(to, &v)| *to = v);
                }
            });
            Ok(())
        })?;
        Ok(Self::new(data, [n, h, w, c], None))
    }

    /// To an image tensor (N, C, H, W).
    pub fn to_images(&self) -> Result<Tensor> {
        exit(self.edge.as_ref(), self.data.to_vec(), self.dims.to_vec())?.permute((0, 3, 1, 2))?.contiguous()
    }

    /// All elements of an image in one row, (N, H * W * C): the way out into plain Candle.
    pub fn into_rows(self) -> Result<Tensor> {
        let [n, h, w, c] = self.dims;
        exit(self.edge.as_ref(), self.data.to_vec(), (n, h * w * c))
    }

    pub(super) fn pixels(&self) -> usize {
        self.dims[1] * self.dims[2]
    }
}
