//! Differentiable operations over NHWC values on the CPU.

use super::activation::Activation;
use super::buffer::Buffer;
use super::geometry::Geometry;
use super::graph::{Edge, enter, exit, read, record};
use super::map::{BatchMoments, ConvStep, Norm};
use super::portable::{norm, pool};
use super::real::{Epilogue, Gate, Moments, Real};
use candle_core::{Device, Result, Tensor, bail};
use std::sync::Arc;

/// Data of shape (N, H, W, C) and, if something behind it learns, the edge its gradient takes.
#[derive(Clone)]
pub(crate) struct Value<T: Real> {
    pub data: Arc<Buffer<T>>,
    pub dims: [usize; 4],
    pub edge: Option<Edge<T>>,
}

impl<T: Real> Value<T> {
    fn new(data: Buffer<T>, dims: [usize; 4], edge: Option<Edge<T>>) -> Self {
        Self { data: Arc::new(data), dims, edge }
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

    /// Convolution, norm, residual and activation as one step with one backward pass.
    pub fn conv_step(&self, step: &ConvStep, residual: Option<&Self>) -> Result<(Self, Option<BatchMoments>)> {
        let kernel = step.filter.tensor().dims4()?;
        let g = Geometry::new(self.dims, kernel, step.stride, step.dilation, step.groups, step.padding)?;
        let dims = [g.n, g.oh, g.ow, g.k];
        if let Some(residual) = residual.filter(|r| r.dims != dims) {
            bail!("a residual of shape {:?} (NHWC) cannot be added to a result of shape {dims:?}", residual.dims);
        }
        match &step.norm {
            Norm::None { bias } if step.act.gates_by_result() => {
                Ok((self.conv_biased(step, &g, *bias, residual)?, None))
            }
            Norm::None { bias } => {
                // The activation needs its input on the way back: a pass of its own.
                let plain = ConvStep { act: Activation::Identity, ..*step };
                Ok((self.conv_biased(&plain, &g, *bias, residual)?.activate(step.act)?, None))
            }
            Norm::Batch { .. } | Norm::Fixed { .. } if residual.is_some() && !step.act.gates_by_result() => {
                let plain = ConvStep { act: Activation::Identity, ..*step };
                let (y, moments) = self.conv_normed(&plain, &g, residual)?;
                Ok((y.activate(step.act)?, moments))
            }
            Norm::Batch { .. } | Norm::Fixed { .. } => self.conv_normed(step, &g, residual),
        }
    }

    fn conv_biased(&self, step: &ConvStep, g: &Geometry, bias: Option<&Tensor>, res: Option<&Self>) -> Result<Self> {
        let packed = step.filter.packed::<T>(g)?;
        let bias_values = bias.map(read::<T>).transpose()?;
        if bias_values.as_ref().is_some_and(|b| b.len() != g.k) {
            bail!("a bias has one number per output channel, here {}", g.k);
        }
        let epilogue = Epilogue { bias: bias_values.as_deref(), residual: res.map(|r| &r.data[..]), act: step.act };
        let mut y = Buffer::arbitrary(g.output_len());
        T::conv(&self.data, &packed, g, &epilogue, &mut y);
        let y = Arc::new(y);

        let weight = enter::<T>(step.filter.tensor())?;
        let bias = bias.map(enter::<T>).transpose()?.flatten();
        let (input, residual) = (self.edge.clone(), res.and_then(|r| r.edge.clone()));
        let parents = [input.as_ref(), residual.as_ref(), weight.as_ref(), bias.as_ref()].map(Option::<&_>::cloned);
        // What is not needed on the way back is not kept.
        let x = weight.is_some().then(|| self.data.clone());
        let packed = input.is_some().then_some(packed);
        let kept = (step.act != Activation::Identity).then(|| y.clone());
        let (g, act) = (*g, step.act);
        let edge = record(&parents.each_ref().map(Option::as_ref), move |mut d| {
            if let Some(y) = kept {
                T::gate_by_result(&y, act, &mut d);
            }
            if let Some(bias) = bias {
                bias.give(from_f64(T::channel_sums(&d, g.k)));
            }
            conv_gradients(x, packed, &g, &d, weight, input);
            if let Some(residual) = residual {
                residual.give(d);
            }
            Ok(())
        })?;
        Ok(Self { data: y, dims: [g.n, g.oh, g.ow, g.k], edge })
    }

    fn conv_normed(&self, step: &ConvStep, g: &Geometry, res: Option<&Self>) -> Result<(Self, Option<BatchMoments>)> {
        let packed = step.filter.packed::<T>(g)?;
        let mut z = Buffer::arbitrary(g.output_len());
        T::conv(&self.data, &packed, g, &Epilogue::NONE, &mut z);

        let (gamma, beta, eps) = match &step.norm {
            Norm::Batch { gamma, beta, eps } | Norm::Fixed { gamma, beta, eps, .. } => (*gamma, *beta, *eps),
            Norm::None { .. } => bail!("a convolution without a norm takes the other way"),
        };
        let count = z.len() / g.k.max(1);
        let (moments, batch) = match &step.norm {
            Norm::Fixed { mean, var, .. } => (Moments { mean: to_f64::<T>(mean)?, var: to_f64::<T>(var)? }, false),
            _ if count < 2 => bail!(
                "a batch norm over {count} value per channel has no variance: \
                 use a larger batch or larger images, or freeze the statistics (BatchNormMode::FrozenStats)"
            ),
            _ => (T::moments(&z, g.k), true),
        };
        let scale = Scale::<T>::new(&moments, &to_f64::<T>(gamma)?, &to_f64::<T>(beta)?, eps)?;
        let mut y = Buffer::arbitrary(z.len());
        T::affine(&z, &scale.a, &scale.b, res.map(|r| &r.data[..]), step.act, &mut y);
        let y = Arc::new(y);

        let (weight, gamma, beta) = (enter::<T>(step.filter.tensor())?, enter::<T>(gamma)?, enter::<T>(beta)?);
        let (input, residual) = (self.edge.clone(), res.and_then(|r| r.edge.clone()));
        let parents = [&input, &residual, &weight, &gamma, &beta].map(Option::clone);
        let x = weight.is_some().then(|| self.data.clone());
        let packed = input.is_some().then_some(packed);
        // Without a residual the gate is computed again from z, which is kept anyway.
        let kept = (res.is_some() && step.act != Activation::Identity).then(|| y.clone());
        let (g, act) = (*g, step.act);
        let edge = record(&parents.each_ref().map(Option::as_ref), move |mut d| {
            let gate = Gate { act, a: &scale.a, b: &scale.b, y: kept.as_ref().map(|y| &y[..]) };
            let affine_learns = gamma.is_some() || beta.is_some();
            let (sum, sum_z) =
                if batch || affine_learns { T::gate_sums(&z, &gate, &d, &scale.mean) } else { Default::default() };
            let [k0, k1, k2] = scale.backward(batch.then_some((&sum, &sum_z)), count);
            let mut through = residual.as_ref().map(|_| Buffer::arbitrary(d.len()));
            T::gate_apply(&z, &gate, [&k0, &k1, &k2], &mut d, through.as_deref_mut());
            drop((z, kept));
            if let (Some(residual), Some(through)) = (residual, through) {
                residual.give(through);
            }
            if let Some(gamma) = gamma {
                gamma.give(from_f64(sum_z.iter().zip(&scale.inv).map(|(s, i)| s * i).collect()));
            }
            if let Some(beta) = beta {
                beta.give(from_f64(sum));
            }
            conv_gradients(x, packed, &g, &d, weight, input);
            Ok(())
        })?;
        let moments = if batch { Some(BatchMoments::new::<T>(&moments, count)?) } else { None };
        Ok((Self { data: y, dims: [g.n, g.oh, g.ow, g.k], edge }, moments))
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
        let input = self.edge.clone();
        let edge = record(&[self.edge.as_ref()], move |d| {
            if let Some(input) = input {
                input.with(g.input_len(), |dx, add| T::max_pool_input(&d, &tap, &g, dx, add));
            }
            Ok(())
        })?;
        Ok(Self::new(y, [g.n, g.oh, g.ow, c], edge))
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
                input.with(n * pixels * c, |dx, add| norm::mean_pixels_gradient(&d, pixels, c, dx, add));
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
        let (x, s) = (self.data.clone(), factors.data.clone());
        let (input, by) = (self.edge.clone(), factors.edge.clone());
        let edge = record(&[self.edge.as_ref(), factors.edge.as_ref()], move |d| {
            if let Some(by) = by {
                by.with(n * c, |ds, add| norm::scale_gradient(&x, &d, pixels, c, ds, add));
            }
            if let Some(input) = input {
                input.with(n * pixels * c, |dx, add| norm::scale(&d, &s, pixels, c, dx, add));
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

/// The gradients of a convolution's kernel and input, each only if asked for.
fn conv_gradients<T: Real>(
    x: Option<Arc<Buffer<T>>>,
    packed: Option<Arc<super::real::Packed<T>>>,
    g: &Geometry,
    dz: &[T],
    weight: Option<Edge<T>>,
    input: Option<Edge<T>>,
) {
    if let (Some(weight), Some(x)) = (weight, x) {
        let mut dw = Buffer::arbitrary(g.kernel_len());
        T::conv_weight(&x, dz, g, &mut dw);
        weight.give(dw);
    }
    if let (Some(input), Some(packed)) = (input, packed) {
        input.with(g.input_len(), |dx, add| T::conv_input(dz, &packed, g, dx, add));
    }
}

/// A batch norm as the affine map y = a z + b.
struct Scale<T> {
    mean: Vec<T>,
    /// 1 / sqrt(var + eps)
    inv: Vec<f64>,
    a: Vec<T>,
    b: Vec<T>,
    exact_a: Vec<f64>,
    exact_mean: Vec<f64>,
}

impl<T: Real> Scale<T> {
    fn new(m: &Moments, gamma: &[f64], beta: &[f64], eps: f64) -> Result<Self> {
        let c = m.mean.len();
        if [m.var.len(), gamma.len(), beta.len()] != [c; 3] {
            bail!("a batch norm's weight, bias, mean and variance have one number per channel, here {c}");
        }
        let inv: Vec<f64> = m.var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        let exact_a: Vec<f64> = gamma.iter().zip(&inv).map(|(g, i)| g * i).collect();
        let b = (0..c).map(|j| T::from_f64(beta[j] - m.mean[j] * exact_a[j])).collect();
        let round = |v: &[f64]| v.iter().map(|&v| T::from_f64(v)).collect();
        Ok(Self { mean: round(&m.mean), inv, a: round(&exact_a), b, exact_a, exact_mean: m.mean.clone() })
    }

    /// dz = k0 g + k1 z + k2. With batch statistics these carry the gradient through mean and variance
    /// (Ioffe and Szegedy 2015, arXiv 1502.03167); with fixed ones dz = a g.
    fn backward(&self, sums: Option<(&Vec<f64>, &Vec<f64>)>, count: usize) -> [Vec<T>; 3] {
        let c = self.a.len();
        let Some((sum, sum_z)) = sums else { return [self.a.clone(), vec![T::zero(); c], vec![T::zero(); c]] };
        let m = count as f64;
        let k1: Vec<f64> = (0..c).map(|j| -self.exact_a[j] * self.inv[j] * self.inv[j] * sum_z[j] / m).collect();
        let k2 = (0..c).map(|j| T::from_f64(-self.exact_a[j] * sum[j] / m - k1[j] * self.exact_mean[j])).collect();
        [self.a.clone(), k1.into_iter().map(T::from_f64).collect(), k2]
    }
}

impl BatchMoments {
    fn new<T: Real>(m: &Moments, count: usize) -> Result<Self> {
        let unbiased = count as f64 / (count as f64 - 1.0);
        let tensor = |v: Vec<f64>| Tensor::from_vec(v, m.mean.len(), &Device::Cpu)?.to_dtype(T::DTYPE);
        let var = m.var.iter().map(|v| v * unbiased).collect();
        Ok(Self { mean: tensor(m.mean.clone())?, var: tensor(var)? })
    }
}

fn to_f64<T: Real>(t: &Tensor) -> Result<Vec<f64>> {
    super::with_slice::<T, _>(t, |v| Ok(v.iter().map(|v| v.to_f64()).collect()))
}

fn from_f64<T: Real>(values: Vec<f64>) -> Buffer<T> {
    let mut buffer = Buffer::arbitrary(values.len());
    buffer.iter_mut().zip(values).for_each(|(b, v)| *b = T::from_f64(v));
    buffer
}
