//! Convolution, norm, residual and activation as one step of a network.

use super::{Kept, Value};
use crate::ops::activation::Activation;
use crate::ops::buffer::Buffer;
use crate::ops::filter::Kernel;
use crate::ops::geometry::Geometry;
use crate::ops::gradient::Outer;
use crate::ops::graph::{Edge, enter, read, record};
use crate::ops::map::{BatchMoments, ConvStep, Norm};
use crate::ops::portable::pool;
use crate::ops::real::{Algorithm, Epilogue, Gate, Moments, Real, with_slice};
use candle_core::{Device, Result, Tensor, bail};
use std::sync::Arc;

impl<T: Real> Value<T> {
    /// Convolution, norm, residual and activation as one step with one backward pass.
    pub fn conv_step(&self, step: &ConvStep, residual: Option<&Self>) -> Result<(Self, Option<BatchMoments>)> {
        let kernel = step.filter.dims()?;
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
        let kernel = step.filter.kernel::<T>(g)?;
        let bias_values = bias.map(read::<T>).transpose()?;
        if bias_values.as_ref().is_some_and(|b| b.len() != g.k) {
            bail!("a bias has one number per output channel, here {}", g.k);
        }
        let epilogue = Epilogue { bias: bias_values.as_deref(), residual: res.map(|r| &r.data[..]), act: step.act };
        let mut y = Buffer::arbitrary(g.output_len());
        kernel.conv(&self.data, g, &epilogue, &mut y)?;
        let y = Arc::new(y);

        let weight = enter::<T>(step.filter.tensor())?;
        let bias = bias.map(enter::<T>).transpose()?.flatten();
        let (input, residual) = (self.edge.clone(), res.and_then(|r| r.edge.clone()));
        let parents = [input.as_ref(), residual.as_ref(), weight.as_ref(), bias.as_ref()].map(Option::<&_>::cloned);
        // What is not needed on the way back is not kept.
        let x = weight.is_some().then(|| self.kept());
        let kernel = input.is_some().then_some(kernel);
        let kept = (step.act != Activation::Identity).then(|| y.clone());
        let (g, act) = (*g, step.act);
        let edge = record(&parents.each_ref().map(Option::as_ref), move |mut d| {
            if let Some(y) = kept {
                T::gate_by_result(&y, act, &mut d);
            }
            if let Some(bias) = bias {
                bias.give(from_f64(T::channel_sums(&d, g.k)));
            }
            conv_gradients(x, kernel, &g, &d, weight, input)?;
            if let Some(residual) = residual {
                residual.give(d);
            }
            Ok(())
        })?;
        Ok(Self { data: y, dims: [g.n, g.oh, g.ow, g.k], edge, recipe: None })
    }

    fn conv_normed(&self, step: &ConvStep, g: &Geometry, res: Option<&Self>) -> Result<(Self, Option<BatchMoments>)> {
        let kernel = step.filter.kernel::<T>(g)?;
        let mut z = Buffer::arbitrary(g.output_len());
        kernel.conv(&self.data, g, &Epilogue::NONE, &mut z)?;

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
        let (y, scale) = (Arc::new(y), Arc::new(scale));
        let z = Arc::new(Sums::new(z, self, &kernel, g));

        let (weight, gamma, beta) = (enter::<T>(step.filter.tensor())?, enter::<T>(gamma)?, enter::<T>(beta)?);
        let (input, residual) = (self.edge.clone(), res.and_then(|r| r.edge.clone()));
        let parents = [&input, &residual, &weight, &gamma, &beta].map(Option::clone);
        let x = weight.is_some().then(|| self.kept());
        let kernel = input.is_some().then_some(kernel);
        let recipe = Recipe { z: z.clone(), scale: scale.clone(), act: step.act, pool: None };
        // Without a residual the gate is computed again from z, which is kept anyway.
        let kept = (res.is_some() && step.act != Activation::Identity).then(|| y.clone());
        let (g, act) = (*g, step.act);
        let edge = record(&parents.each_ref().map(Option::as_ref), move |mut d| {
            let sums = z;
            let z = sums.get()?;
            drop(sums);
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
            conv_gradients(x, kernel, &g, &d, weight, input)
        })?;
        let moments = if batch { Some(BatchMoments::new::<T>(&moments, count)?) } else { None };
        // z is kept for this step's own way back, so whoever reads y there need not keep y as well. (With a residual,
        // that would have to be kept instead.)
        let recipe = (edge.is_some() && res.is_none()).then(|| Arc::new(recipe));
        Ok((Self { data: y, dims: [g.n, g.oh, g.ow, g.k], edge, recipe }, moments))
    }
}

/// The gradients of a convolution's kernel and input, each only if asked for.
fn conv_gradients<T: Real>(
    x: Option<Kept<T>>,
    kernel: Option<Kernel<T>>,
    g: &Geometry,
    dz: &[T],
    weight: Option<Edge<T>>,
    input: Option<Edge<T>>,
) -> Result<()> {
    if let (Some(weight), Some(x)) = (weight, x) {
        let x = x.data()?;
        if T::algorithm(g) == Algorithm::Dense && g.n > 0 {
            weight.give_numbers(Outer::numbers(g.n, dz, T::dense_order(&x, g)));
        } else {
            let mut dw = Buffer::arbitrary(g.kernel_len());
            T::conv_weight(&x, dz, g, &mut dw);
            weight.give(dw);
        }
    }
    if let (Some(input), Some(kernel)) = (input, kernel) {
        input.with(g.input_len(), |dx, add| kernel.input(dz, g, dx, add))?;
    }
    Ok(())
}

/// y = act(a z + b): how the result of a step comes to be again.
///
/// The way back of a batch norm needs z, that of the next convolution y. Making y again is one pass over memory, far
/// quicker than a convolution, and halves what a training step keeps (as Chen et al. 2016, arXiv 1604.06174, propose).
#[derive(Clone)]
pub(super) struct Recipe<T: Real> {
    z: Arc<Sums<T>>,
    scale: Arc<Scale<T>>,
    act: Activation,
    /// A max-pool that follows: which of the window's positions won.
    pool: Option<(Arc<Buffer<u8>>, Geometry)>,
}

impl<T: Real> Recipe<T> {
    /// y, bit for bit.
    pub fn make(&self) -> Result<Buffer<T>> {
        let mut z = self.z.get()?;
        if let Some((tap, g)) = &self.pool {
            z = Arc::new(pool::winners(&z, tap, g));
        }
        // What was made for this alone is changed in place.
        match Arc::try_unwrap(z) {
            Ok(mut y) => {
                T::affine_in_place(&mut y, &self.scale.a, &self.scale.b, self.act);
                Ok(y)
            }
            Err(z) => {
                let mut y = Buffer::arbitrary(z.len());
                T::affine(&z, &self.scale.a, &self.scale.b, None, self.act, &mut y);
                Ok(y)
            }
        }
    }

    /// With a max-pool behind it: of one pool only, and one in whose windows there always is a pixel.
    pub fn pooled(&self, tap: Arc<Buffer<u8>>, g: Geometry) -> Option<Self> {
        let full = g.pad.iter().all(|&p| p < g.kh.min(g.kw));
        (full && self.pool.is_none()).then(|| Self { pool: Some((tap, g)), ..self.clone() })
    }
}

/// The sums of a convolution that a batch norm needs on the way back.
enum Sums<T: Real> {
    Kept(Arc<Buffer<T>>),
    /// Computed again for each of the two that ask: the next convolution and the norm.
    Again {
        x: Kept<T>,
        kernel: Kernel<T>,
        g: Geometry,
    },
}

impl<T: Real> Sums<T> {
    fn new(z: Buffer<T>, x: &Value<T>, kernel: &Kernel<T>, g: &Geometry) -> Self {
        // So few terms cost no more than a few passes over memory. It is a first convolution, over the colours alone, or
        // the expansion of a few channels: the largest maps of all.
        if g.groups == 1 && g.c * g.kh * g.kw <= 32 {
            Self::Again { x: x.kept(), kernel: kernel.clone(), g: *g }
        } else {
            Self::Kept(Arc::new(z))
        }
    }

    /// The sums, bit for bit.
    fn get(&self) -> Result<Arc<Buffer<T>>> {
        match self {
            Self::Kept(z) => Ok(z.clone()),
            Self::Again { x, kernel, g } => {
                let mut z = Buffer::arbitrary(g.output_len());
                kernel.conv(&x.data()?, g, &Epilogue::NONE, &mut z)?;
                Ok(Arc::new(z))
            }
        }
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
    with_slice::<T, _>(t, |v| Ok(v.iter().map(|v| v.to_f64()).collect()))
}

fn from_f64<T: Real>(values: Vec<f64>) -> Buffer<T> {
    let mut buffer = Buffer::arbitrary(values.len());
    buffer.iter_mut().zip(values).for_each(|(b, v)| *b = T::from_f64(v));
    buffer
}
