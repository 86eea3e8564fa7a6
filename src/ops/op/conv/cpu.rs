//! The CPU form: one backward pass for convolution, norm, residual and activation.

use super::norm::{Affine, from_f64, to_f64};
use super::recompute::{Normed, Sums};
use super::step::{BatchStatistics, ConvStep, Norm, check_count, check_residual, is_sum_of_outer_products};
use crate::ops::buffer::Buffer;
use crate::ops::epilogue::{Epilogue, Gate, Statistics};
use crate::ops::feature_map::Operation;
use crate::ops::filter::PreparedFilter;
use crate::ops::geometry::Geometry;
use crate::ops::gradient::{Differentiable, Outer};
use crate::ops::graph::{Edge, enter, read, record};
use crate::ops::kernels::conv::{Choice, dense_order};
use crate::ops::kernels::norm;
use crate::ops::op::activate::Activate;
use crate::ops::value::{Recompute, Saved, Value};
use candle_core::{Result, Tensor, bail};
use std::sync::Arc;

pub(super) fn conv_step<T: Differentiable>(
    x: &Value<T>,
    step: &ConvStep,
    residual: Option<&Value<T>>,
) -> Result<(Value<T>, Option<BatchStatistics>)> {
    if step.separates_activation(residual.is_some()) {
        let (y, statistics) = conv_step(x, &step.without_activation(), residual)?;
        return Ok((Activate(step.act).cpu([&y])?, statistics));
    }
    let g = step.geometry(x.dims)?;
    check_residual(residual.map(|r| r.dims), [g.n, g.oh, g.ow, g.k])?;
    match &step.norm {
        Norm::None { bias } => Ok((biased(x, step, &g, *bias, residual)?, None)),
        Norm::Batch { .. } | Norm::Fixed { .. } => normed(x, step, &g, residual),
    }
}

fn biased<T: Differentiable>(
    x: &Value<T>,
    step: &ConvStep,
    g: &Geometry,
    bias: Option<&Tensor>,
    res: Option<&Value<T>>,
) -> Result<Value<T>> {
    let filter = step.filter.prepare::<T>(g)?;
    let bias_values = bias.map(read::<T>).transpose()?;
    if bias_values.as_ref().is_some_and(|b| b.len() != g.k) {
        bail!("a bias has one element per output channel, here {}", g.k);
    }
    let epilogue = Epilogue { bias: bias_values.as_deref(), residual: res.map(|r| &r.data[..]), act: step.act };
    let mut y = Buffer::arbitrary(g.output_len());
    filter.conv(&x.data, g, &epilogue, &mut y)?;
    let y = Arc::new(y);

    let weight = enter::<T>(step.filter.tensor())?;
    let bias = bias.map(enter::<T>).transpose()?.flatten();
    let (input, residual) = (x.edge.clone(), res.and_then(|r| r.edge.clone()));
    let parents = [input.as_ref(), residual.as_ref(), weight.as_ref(), bias.as_ref()].map(Option::<&_>::cloned);
    // Only data that backward reads is saved.
    let saved = step.saves_result(res.is_some()).then(|| y.clone());
    let conv = ConvBackward::new(x, filter, g, weight, input);
    let (k, act) = (g.k, step.act);
    let edge = record(&parents.each_ref().map(Option::as_ref), move |mut d| {
        if let Some(y) = saved {
            norm::choose().gate_by_result(&y, act, &mut d);
        }
        if let Some(bias) = bias {
            bias.give(from_f64(norm::choose().channel_sums(&d, k)));
        }
        conv.run(&d)?;
        if let Some(residual) = residual {
            residual.give(d);
        }
        Ok(())
    })?;
    Ok(Value::new(y, [g.n, g.oh, g.ow, g.k], edge))
}

fn normed<T: Differentiable>(
    x: &Value<T>,
    step: &ConvStep,
    g: &Geometry,
    res: Option<&Value<T>>,
) -> Result<(Value<T>, Option<BatchStatistics>)> {
    let filter = step.filter.prepare::<T>(g)?;
    let mut z = Buffer::arbitrary(g.output_len());
    filter.conv(&x.data, g, &Epilogue::NONE, &mut z)?;

    let (gamma, beta, eps) = match &step.norm {
        Norm::Batch { gamma, beta, eps } | Norm::Fixed { gamma, beta, eps, .. } => (*gamma, *beta, *eps),
        Norm::None { .. } => bail!("a convolution without a norm takes the other path"),
    };
    let count = z.len() / g.k.max(1);
    let (statistics, batch) = match &step.norm {
        Norm::Fixed { mean, var, .. } => (Statistics { mean: to_f64::<T>(mean)?, var: to_f64::<T>(var)? }, false),
        _ => {
            check_count(count)?;
            (norm::choose().moments(&z, g.k), true)
        }
    };
    let affine = Affine::<T>::new(&statistics, &to_f64::<T>(gamma)?, &to_f64::<T>(beta)?, eps)?;
    let mut y = Buffer::arbitrary(z.len());
    norm::choose().affine(&z, &affine.a, &affine.b, res.map(|r| &r.data[..]), step.act, &mut y);
    let (y, affine) = (Arc::new(y), Arc::new(affine));
    let z = Arc::new(Sums::new(z, x, &filter, g));

    let (weight, gamma, beta) = (enter::<T>(step.filter.tensor())?, enter::<T>(gamma)?, enter::<T>(beta)?);
    let (input, residual) = (x.edge.clone(), res.and_then(|r| r.edge.clone()));
    let parents = [&input, &residual, &weight, &gamma, &beta].map(Option::clone);
    let recompute = Normed { z: z.clone(), affine: affine.clone(), act: step.act };
    let saved = step.saves_result(res.is_some()).then(|| y.clone());
    let conv = ConvBackward::new(x, filter, g, weight, input);
    let act = step.act;
    let edge = record(&parents.each_ref().map(Option::as_ref), move |mut d| {
        let sums = z;
        let z = sums.get()?;
        drop(sums);
        let gate = Gate { act, a: &affine.a, b: &affine.b, y: saved.as_ref().map(|y| &y[..]) };
        let affine_learns = gamma.is_some() || beta.is_some();
        let (sum, sum_z) = if batch || affine_learns {
            norm::choose().gate_sums(&z, &gate, &d, &affine.mean)
        } else {
            Default::default()
        };
        let [k0, k1, k2] = affine.backward(batch.then_some((&sum, &sum_z)), count);
        let mut through = residual.as_ref().map(|_| Buffer::arbitrary(d.len()));
        norm::choose().gate_apply(&z, &gate, [&k0, &k1, &k2], &mut d, through.as_deref_mut());
        drop((z, saved));
        if let (Some(residual), Some(through)) = (residual, through) {
            residual.give(through);
        }
        if let Some(gamma) = gamma {
            gamma.give(from_f64(sum_z.iter().zip(&affine.inv).map(|(s, i)| s * i).collect()));
        }
        if let Some(beta) = beta {
            beta.give(from_f64(sum));
        }
        conv.run(&d)
    })?;
    let statistics = if batch { Some(BatchStatistics::new::<T>(&statistics, count)?) } else { None };
    let recomputable = edge.is_some() && step.is_recomputable(res.is_some());
    let recompute = recomputable.then(|| -> Arc<dyn Recompute<T>> { Arc::new(recompute) });
    Ok((Value::new(y, [g.n, g.oh, g.ow, g.k], edge).recomputed_by(recompute), statistics))
}

/// The gradients of a convolution's kernel and input, each only if it is needed.
struct ConvBackward<T: Differentiable> {
    choice: Choice,
    g: Geometry,
    /// The edge of the kernel's gradient, and the input that it is computed from.
    weight: Option<(Edge<T>, Saved<T>)>,
    /// The edge of the input's gradient, and the filter that it is computed from.
    input: Option<(Edge<T>, PreparedFilter<T>)>,
}

impl<T: Differentiable> ConvBackward<T> {
    fn new(
        x: &Value<T>,
        filter: PreparedFilter<T>,
        g: &Geometry,
        weight: Option<Edge<T>>,
        input: Option<Edge<T>>,
    ) -> Self {
        let choice = filter.choice;
        let (weight, input) = (weight.map(|edge| (edge, x.saved())), input.map(|edge| (edge, filter)));
        Self { choice, g: *g, weight, input }
    }

    fn run(self, dz: &[T]) -> Result<()> {
        let Self { choice, g, weight, input } = self;
        if let Some((weight, x)) = weight {
            let x = x.data()?;
            if is_sum_of_outer_products(choice, &g) {
                weight.give_elements(Outer::elements(g.n, dz, dense_order(&x, &g)));
            } else {
                let mut dw = Buffer::arbitrary(g.kernel_len());
                choice.weight_gradient(&x, dz, &g, &mut dw);
                weight.give(dw);
            }
        }
        if let Some((input, filter)) = input {
            input.with(g.input_len(), |dx, add| filter.input_gradient(dz, &g, dx, add))?;
        }
        Ok(())
    }
}
