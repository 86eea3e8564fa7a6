//! Differentiable operations over NHWC values on the CPU.

use super::activation::Activation;
use super::buffer::Buffer;
use super::geometry::Geometry;
use super::graph::{Edge, enter, exit, read, record};
use super::portable::{norm, pool};
use super::real::{Gate, Real};
use candle_core::{Result, Tensor, bail};
use std::sync::Arc;

mod step;

use step::Recipe;

/// Data of shape (N, H, W, C) and, if something behind it learns, the edge its gradient takes.
#[derive(Clone)]
pub(crate) struct Value<T: Real> {
    pub data: Arc<Buffer<T>>,
    pub dims: [usize; 4],
    pub edge: Option<Edge<T>>,
    /// How the data comes to be again from what the way back keeps anyway.
    recipe: Option<Arc<Recipe<T>>>,
}

/// What the way back keeps of data that it will read.
#[derive(Clone)]
enum Kept<T: Real> {
    Data(Arc<Buffer<T>>),
    Recipe(Arc<Recipe<T>>),
}

impl<T: Real> Kept<T> {
    /// The data, bit for bit.
    fn data(&self) -> Result<Arc<Buffer<T>>> {
        match self {
            Self::Data(data) => Ok(data.clone()),
            Self::Recipe(recipe) => Ok(Arc::new(recipe.make()?)),
        }
    }
}

impl<T: Real> Value<T> {
    fn new(data: Buffer<T>, dims: [usize; 4], edge: Option<Edge<T>>) -> Self {
        Self { data: Arc::new(data), dims, edge, recipe: None }
    }

    fn kept(&self) -> Kept<T> {
        match &self.recipe {
            Some(recipe) => Kept::Recipe(recipe.clone()),
            None => Kept::Data(self.data.clone()),
        }
    }

    /// From features (N, C), as images of one pixel.
    pub fn from_rows(rows: &Tensor) -> Result<Self> {
        let (n, c) = rows.dims2()?;
        Ok(Self::new(read(rows)?, [n, 1, 1, c], enter(rows)?))
    }

    /// From an image tensor (N, C, H, W).
    pub fn from_images(images: &Tensor) -> Result<Self> {
        let nhwc = images.permute((0, 2, 3, 1))?.contiguous()?;
        let (n, h, w, c) = nhwc.dims4()?;
        Ok(Self::new(read(&nhwc)?, [n, h, w, c], enter(&nhwc)?))
    }

    /// To an image tensor (N, C, H, W).
    pub fn to_images(&self) -> Result<Tensor> {
        exit(self.edge.as_ref(), self.data.to_vec(), self.dims.to_vec())?.permute((0, 3, 1, 2))?.contiguous()
    }

    fn pixels(&self) -> usize {
        self.dims[1] * self.dims[2]
    }

    /// The activation as a pass of its own.
    pub fn activate(&self, act: Activation) -> Result<Self> {
        let c = self.dims[3];
        let (one, zero) = (vec![T::one(); c], vec![T::zero(); c]);
        let mut y = Buffer::arbitrary(self.data.len());
        T::affine(&self.data, &one, &zero, None, act, &mut y);
        let (x, input) = (self.data.clone(), self.edge.clone());
        let edge = record(&[self.edge.as_ref()], move |mut d| {
            let gate = Gate { act, a: &one, b: &zero, y: None };
            T::gate_apply(&x, &gate, [&one, &zero, &zero], &mut d, None);
            if let Some(input) = input {
                input.give(d);
            }
            Ok(())
        })?;
        Ok(Self::new(y, self.dims, edge))
    }

    /// Max-pool; `geometry` has one channel per group.
    pub fn max_pool(&self, kernel: usize, stride: usize, padding: super::Padding) -> Result<Self> {
        if kernel * kernel > usize::from(u8::MAX) {
            bail!("a max-pool over more than 15 x 15 pixels is not supported, and this one is {kernel} x {kernel}");
        }
        let c = self.dims[3];
        let g = Geometry::new(self.dims, (c, 1, kernel, kernel), stride, 1, c.max(1), padding)?;
        let mut y = Buffer::arbitrary(g.output_len());
        let mut tap = Buffer::arbitrary(y.len());
        T::max_pool(&self.data, &g, &mut y, &mut tap);
        let (input, tap) = (self.edge.clone(), Arc::new(tap));
        let recipe = self.recipe.as_ref().and_then(|r| r.pooled(tap.clone(), g)).map(Arc::new);
        let edge = record(&[self.edge.as_ref()], move |d| {
            if let Some(input) = input {
                input.with(g.input_len(), |dx, add| {
                    T::max_pool_input(&d, &tap, &g, dx, add);
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        Ok(Self { recipe, ..Self::new(y, [g.n, g.oh, g.ow, c], edge) })
    }

    /// Average over windows that divide the image into `rows` x `columns` (PyTorch's AdaptiveAvgPool2d).
    pub fn adaptive_average(&self, rows: usize, columns: usize) -> Result<Self> {
        let [n, h, w, c] = self.dims;
        if rows == 0 || columns == 0 || h == 0 || w == 0 {
            bail!("an average pool from {h} x {w} to {rows} x {columns} pixels is empty");
        }
        self.average(pool::adaptive_windows(h, rows), pool::adaptive_windows(w, columns), [n, rows, columns, c])
    }

    /// Average over windows of `kernel` x `kernel` pixels without padding (PyTorch's AvgPool2d).
    pub fn average_pool(&self, kernel: usize, stride: usize) -> Result<Self> {
        let [n, h, w, c] = self.dims;
        let g = Geometry::new(self.dims, (c, 1, kernel, kernel), stride, 1, c.max(1), super::Padding::Even(0))?;
        let windows = |count: usize| (0..count).map(|i| (i * stride, i * stride + kernel)).collect();
        debug_assert!(h >= kernel && w >= kernel);
        self.average(windows(g.oh), windows(g.ow), [n, g.oh, g.ow, c])
    }

    fn average(&self, rows: pool::Windows, columns: pool::Windows, dims: [usize; 4]) -> Result<Self> {
        let mut y = Buffer::arbitrary(dims.iter().product());
        pool::average(&self.data, self.dims, &rows, &columns, &mut y);
        let (input, from) = (self.edge.clone(), self.dims);
        let edge = record(&[self.edge.as_ref()], move |d| {
            let mut dx = Buffer::arbitrary(from.iter().product());
            pool::average_gradient(&d, from, &rows, &columns, &mut dx);
            if let Some(input) = input {
                input.give(dx);
            }
            Ok(())
        })?;
        Ok(Self::new(y, dims, edge))
    }

    /// The mean over all pixels, as an image of one pixel.
    pub fn mean_pixels(&self) -> Result<Self> {
        let [n, _, _, c] = self.dims;
        let pixels = self.pixels();
        let y = norm::mean_pixels(&self.data, n, pixels, c);
        let input = self.edge.clone();
        let edge = record(&[self.edge.as_ref()], move |d| {
            if let Some(input) = input {
                input.with(n * pixels * c, |dx, add| {
                    norm::mean_pixels_gradient(&d, pixels, c, dx, add);
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        Ok(Self::new(y, [n, 1, 1, c], edge))
    }

    /// Every channel times a factor of its own per image; `factors` has one pixel.
    pub fn scale(&self, factors: &Self) -> Result<Self> {
        let [n, _, _, c] = self.dims;
        if factors.dims != [n, 1, 1, c] {
            bail!("factors of shape {:?} (NHWC) cannot scale a map of shape {:?}", factors.dims, self.dims);
        }
        let pixels = self.pixels();
        let mut y = Buffer::arbitrary(self.data.len());
        norm::scale(&self.data, &factors.data, pixels, c, &mut y, false);
        let (x, s) = (factors.edge.is_some().then(|| self.kept()), factors.data.clone());
        let (input, by) = (self.edge.clone(), factors.edge.clone());
        let edge = record(&[self.edge.as_ref(), factors.edge.as_ref()], move |d| {
            if let (Some(by), Some(x)) = (by, x) {
                let x = x.data()?;
                by.with(n * c, |ds, add| {
                    norm::scale_gradient(&x, &d, pixels, c, ds, add);
                    Ok(())
                })?;
            }
            if let Some(input) = input {
                input.with(n * pixels * c, |dx, add| {
                    norm::scale(&d, &s, pixels, c, dx, add);
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        Ok(Self::new(y, self.dims, edge))
    }

    /// Every `stride`-th pixel, with `before` and `after` channels of zeros around: the parameter-free shortcut of
    /// the CIFAR ResNets (He et al. 2015, option A).
    pub fn subsample(&self, stride: usize, before: usize, after: usize) -> Result<Self> {
        let [n, h, w, c] = self.dims;
        let (oh, ow, k) = (h.div_ceil(stride), w.div_ceil(stride), before + c + after);
        let mut y = Buffer::zeros(n * oh * ow * k);
        let from = move |pixel: usize| {
            let (ox, rest) = (pixel % ow, pixel / ow);
            (((rest / oh) * h + (rest % oh) * stride) * w + ox * stride) * c
        };
        for (pixel, y) in y.chunks_exact_mut(k).enumerate() {
            y[before..before + c].copy_from_slice(&self.data[from(pixel)..][..c]);
        }
        let input = self.edge.clone();
        let edge = record(&[self.edge.as_ref()], move |d| {
            let mut dx = Buffer::zeros(n * h * w * c);
            for (pixel, d) in d.chunks_exact(k).enumerate() {
                dx[from(pixel)..][..c].copy_from_slice(&d[before..before + c]);
            }
            if let Some(input) = input {
                input.give(dx);
            }
            Ok(())
        })?;
        Ok(Self::new(y, [n, oh, ow, k], edge))
    }

    /// The sum of two values of one shape.
    pub fn add(&self, other: &Self) -> Result<Self> {
        if self.dims != other.dims {
            bail!("maps of shapes {:?} and {:?} (NHWC) cannot be added", self.dims, other.dims);
        }
        let mut y = Buffer::copy_of(&self.data);
        T::add_into(&mut y, &other.data);
        let (a, b) = (self.edge.clone(), other.edge.clone());
        let edge = record(&[self.edge.as_ref(), other.edge.as_ref()], move |d| {
            match (a, b) {
                (Some(a), Some(b)) => {
                    a.give(Buffer::copy_of(&d));
                    b.give(d);
                }
                (Some(one), None) | (None, Some(one)) => one.give(d),
                (None, None) => {}
            }
            Ok(())
        })?;
        Ok(Self::new(y, self.dims, edge))
    }

    /// One pixel's channels as a tensor (N, C): the way out into plain Candle.
    pub fn into_rows(self) -> Result<Tensor> {
        let [n, h, w, c] = self.dims;
        exit(self.edge.as_ref(), self.data.to_vec(), (n, h * w * c))
    }
}
