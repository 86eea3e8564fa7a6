//! Losses over logits with weights per class and a focal factor, by softmax or by one sigmoid per class.

use crate::ops::number::with_slice;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, WithDType, bail};

/// The kind of a loss, and what weighs its terms.
#[derive(Debug, Clone)]
pub(crate) struct LossTerms {
    /// A sigmoid for each class instead of a softmax over them.
    pub sigmoid: bool,
    /// The exponent of (1 - p), where p is the probability of the answer (Lin et al. 2017, arXiv 1708.02002); 0 for
    /// plain cross entropy.
    pub gamma: f64,
    /// A weight per class: of its terms with a softmax, of its positive terms with sigmoids.
    pub weights: Option<Vec<f64>>,
    /// What the sum of all terms is divided by.
    pub divisor: f64,
}

/// The sum over all elements, divided by `divisor`, of
/// `-w t (1 - p)^gamma log p` with p = softmax(logits), or of
/// `-w t (1 - p)^gamma log p - (1 - t) p^gamma log(1 - p)` with p = sigmoid(logits).
///
/// `logits` and `targets` are (N, classes); the result is a scalar on the CPU. No gradient reaches the targets.
pub(crate) fn weighted_loss(logits: &Tensor, targets: &Tensor, terms: LossTerms) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    if logits.dims() != targets.dims() || logits.elem_count() == 0 {
        bail!("a loss takes logits and targets (N, classes), but got {:?} and {:?}", logits.dims(), targets.dims());
    }
    if terms.weights.as_ref().is_some_and(|weights| weights.len() != classes) {
        bail!("a loss over {classes} classes takes that many weights");
    }
    let targets = targets.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    debug_assert_eq!(targets.len(), n * classes);
    // A few numbers per sample: computed on the CPU wherever the network runs.
    logits.to_device(&Device::Cpu)?.contiguous()?.apply_op1(WeightedLoss { targets, terms })
}

struct WeightedLoss {
    targets: Vec<f64>,
    terms: LossTerms,
}

/// A term's value and its derivative by the logit.
type Term = (f64, f64);

impl WeightedLoss {
    /// Value, and derivatives by the logits into `d`, of all rows.
    fn compute(&self, logits: &[f64], classes: usize, d: &mut [f64]) -> f64 {
        let rows =
            logits.chunks_exact(classes).zip(self.targets.chunks_exact(classes)).zip(d.chunks_exact_mut(classes));
        let sum: f64 = rows
            .map(|((x, t), d)| if self.terms.sigmoid { self.sigmoids(x, t, d) } else { self.softmax(x, t, d) })
            .sum();
        d.iter_mut().for_each(|d| *d /= self.terms.divisor);
        sum / self.terms.divisor
    }

    fn weight(&self, class: usize) -> f64 {
        self.terms.weights.as_ref().map_or(1.0, |weights| weights[class])
    }

    fn softmax(&self, x: &[f64], t: &[f64], d: &mut [f64]) -> f64 {
        let most = x.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
        let log_sum = x.iter().map(|v| (v - most).exp()).sum::<f64>().ln() + most;
        let p: Vec<f64> = x.iter().map(|v| (v - log_sum).exp()).collect();
        // The loss is a sum of f(log p_c); d log p_c / d x_k = [c = k] - p_k.
        let (mut value, mut total) = (0.0, 0.0);
        for c in 0..x.len() {
            d[c] = 0.0;
            // A class of no weight adds nothing, however unlikely: zero times infinity would be NaN.
            if t[c] != 0.0 {
                let w = t[c] * self.weight(c);
                let (term, slope) = focal(x[c] - log_sum, p[c], 1.0 - p[c], self.terms.gamma);
                value += w * term;
                d[c] = w * slope;
                total += w * slope;
            }
        }
        for c in 0..x.len() {
            d[c] -= total * p[c];
        }
        value
    }

    fn sigmoids(&self, x: &[f64], t: &[f64], d: &mut [f64]) -> f64 {
        let mut value = 0.0;
        for c in 0..x.len() {
            // log p and log (1 - p), without overflow.
            let tail = (-x[c].abs()).exp().ln_1p();
            let (log_p, log_q) = (x[c].min(0.0) - tail, (-x[c]).min(0.0) - tail);
            let (p, q) = (log_p.exp(), log_q.exp());
            let (yes, no) = (self.weight(c) * t[c], 1.0 - t[c]);
            d[c] = 0.0;
            if yes != 0.0 {
                let (term, slope) = focal(log_p, p, q, self.terms.gamma);
                value += yes * term;
                // d log p / dx = 1 - p
                d[c] += yes * slope * q;
            }
            if no != 0.0 {
                let (term, slope) = focal(log_q, q, p, self.terms.gamma);
                value += no * term;
                d[c] -= no * slope * p;
            }
        }
        value
    }
}

/// `-(1 - p)^gamma log p` and its derivative by log p; `q` is 1 - p.
fn focal(log_p: f64, p: f64, q: f64, gamma: f64) -> Term {
    if gamma == 0.0 {
        return (-log_p, -1.0);
    }
    let factor = q.powf(gamma);
    // Where q is 0 the term is 0, and so is its slope: log p falls as fast as q.
    let inner = if q > 0.0 { gamma * q.powf(gamma - 1.0) * p * log_p } else { 0.0 };
    (-factor * log_p, inner - factor)
}

/// The elements in f64.
fn wide(storage: &CpuStorage, layout: &Layout) -> Result<Vec<f64>> {
    let Some((from, to)) = layout.contiguous_offsets() else { bail!("a loss takes contiguous logits") };
    Ok(match storage {
        CpuStorage::F32(v) => v[from..to].iter().map(|&v| f64::from(v)).collect(),
        CpuStorage::F64(v) => v[from..to].to_vec(),
        _ => bail!("a loss takes logits of f32 or f64"),
    })
}

impl CustomOp1 for WeightedLoss {
    fn name(&self) -> &'static str {
        "weighted-loss"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, classes) = layout.shape().dims2()?;
        let x64 = wide(x, layout)?;
        let value = self.compute(&x64, classes, &mut vec![0.0; x64.len()]);
        let storage = match x {
            CpuStorage::F32(_) => f32::to_cpu_storage_owned(vec![value as f32]),
            _ => f64::to_cpu_storage_owned(vec![value]),
        };
        Ok((storage, Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (_, classes) = x.dims2()?;
        let g = g.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let wide = x.to_dtype(DType::F64)?.detach();
        let gradient = with_slice::<f64, _>(&wide, |values| {
            let mut d = vec![0.0; values.len()];
            self.compute(values, classes, &mut d);
            d.iter_mut().for_each(|d| *d *= g);
            Tensor::from_vec(d, x.shape(), &Device::Cpu)
        })?;
        gradient.to_dtype(x.dtype()).map(Some)
    }
}
