//! A linear head in closed form: ridge regression whose answers are scaled to logits.

use super::columns::Columns;
use super::matrix::{identity, inverse};
use super::ridge::{largest, left_out, pairs};
use crate::error::{Error, Result};
use crate::metrics::{Task, binary_cross_entropy};
use candle_core::{DType, Device, Tensor};

/// What a head is fitted to.
#[derive(Debug, Clone)]
pub(crate) struct Targets {
    /// The probability of each class for each row, row by row: 1 and zeros where its class is known, and 1 for each label
    /// of a list.
    pub values: Vec<f64>,
    /// How many classes there are.
    pub count: usize,
    pub task: Task,
    /// Rows that are left out together: the samples of a group, or one sample. Every row is in one.
    pub units: Vec<Vec<usize>>,
}

/// A linear head for features as they are.
#[derive(Debug, Clone)]
pub(crate) struct Fit {
    /// (classes, columns)
    pub weight: Vec<f64>,
    /// (classes)
    pub bias: Vec<f64>,
    pub known: Known,
}

/// What rows that were left out tell of a fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// The ridge penalty, as a multiple of the mean of the Gram matrix's diagonal.
    pub penalty: f64,
    /// What the answers of the regression are multiplied by.
    pub temperature: f64,
    /// The accuracy on these rows, in [0, 1].
    pub top1: f64,
}

/// The ridge penalties that are tried, as multiples of the mean of the Gram matrix's diagonal.
pub(super) const PENALTIES: [f64; 5] = [1e-3, 1e-2, 1e-1, 1.0, 10.0];

/// The side of the largest matrix that is inverted. Of more samples and more columns than this, the caller takes a
/// sample.
pub(crate) const MOST_SIDE: usize = 3072;

/// Ridge regression of all classes at once (Hoerl and Kennard 1970) by the penalty with the smallest error on rows left
/// out, unit by unit. The intercept is one more column of ones. What is `known` already, the penalty and the scale, is
/// taken as it is.
///
/// Its answers are estimates of probabilities. As logits they are multiplied by the number for which the cross entropy
/// of the answers on the rows left out is smallest (Guo et al. 2017, arXiv 1706.04599). For lists of labels that is the
/// binary cross entropy, and an answer of a half is the logit 0.
pub(crate) fn fit(x: &Columns, targets: &Targets, known: Option<Known>) -> Result<Fit> {
    let (n, d) = x.dims();
    if targets.values.len() != n * targets.count {
        let problem = format!("{} targets of {n} samples and {} classes", targets.values.len(), targets.count);
        return Err(Error::invalid("probe", problem));
    }
    let system = if d + 1 < n { System::primal(x, targets)? } else { System::dual(x)? };
    let mut best: Option<(f64, Solution)> = None;
    let penalties = known.map_or(PENALTIES.to_vec(), |known| vec![known.penalty]);
    for penalty in penalties {
        let solution = system.solve(x, targets, penalty)?;
        let error = solution.residuals.iter().map(|r| r * r).sum::<f64>();
        if best.as_ref().is_none_or(|(_, best)| error < best.residuals.iter().map(|r| r * r).sum::<f64>()) {
            best = Some((penalty, solution));
        }
    }
    let (penalty, solution) = best.ok_or_else(|| Error::invalid("probe", "no penalty was tried"))?;
    let known = known.unwrap_or_else(|| {
        let answers: Vec<f64> = targets.values.iter().zip(&solution.residuals).map(|(y, r)| y - r).collect();
        Known { penalty, temperature: temperature(&answers, targets), top1: top1(&answers, targets) }
    });
    let scaled = |values: Vec<f64>| values.into_iter().map(|v| v * known.temperature).collect::<Vec<f64>>();
    let bias = solution.bias.iter().map(|bias| bias - middle(targets.task)).collect();
    let (weight, bias) = x.unscaled(&scaled(solution.weight), &scaled(bias));
    Ok(Fit { weight, bias, known })
}

/// The answer whose logit is 0.
fn middle(task: Task) -> f64 {
    match task {
        // A softmax is the same for any.
        Task::Classes => 0.0,
        Task::Labels => 0.5,
    }
}

/// The fraction of rows whose largest answer is the target's; of lists of labels those whose labels are all right.
pub(super) fn top1(answers: &[f64], targets: &Targets) -> f64 {
    let rows = || answers.chunks(targets.count).zip(targets.values.chunks(targets.count));
    let right = |(answer, target): &(&[f64], &[f64])| match targets.task {
        Task::Classes => largest(answer) == largest(target),
        Task::Labels => answer.iter().zip(*target).all(|(a, t)| (*a >= 0.5) == (*t > 0.5)),
    };
    rows().filter(right).count() as f64 / rows().count().max(1) as f64
}

/// The equations of a regression, without the penalty.
enum System {
    /// The products of all pairs of rows, over the mean of their diagonal, and 1 for the intercept: (n, n).
    Dual(Tensor),
    /// The products of all pairs of columns, in the same units, and those of the columns with the targets.
    Primal { products: Tensor, with_targets: Tensor },
}

struct Solution {
    /// (classes, columns), for scaled columns.
    weight: Vec<f64>,
    bias: Vec<f64>,
    /// (rows, classes): target - answer of the fit without the row's unit.
    residuals: Vec<f64>,
}

fn matrix(values: Vec<f64>, rows: usize) -> Result<Tensor> {
    let columns = values.len() / rows.max(1);
    Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)
}

/// Rows of scaled features with a column of ones, in the units of the system.
fn with_ones(x: &Columns, rows: &[usize]) -> Result<Tensor> {
    let part = (x.rows(rows)? / x.diagonal().sqrt())?;
    Ok(Tensor::cat(&[part, Tensor::ones((rows.len(), 1), DType::F64, &Device::Cpu)?], 1)?)
}

impl System {
    fn dual(x: &Columns) -> Result<Self> {
        Ok(Self::Dual(((x.products()? / x.diagonal())? + 1.0)?))
    }

    fn primal(x: &Columns, targets: &Targets) -> Result<Self> {
        let (n, d) = x.dims();
        let y = matrix(targets.values.clone(), n)?;
        let mut products = Tensor::zeros((d + 1, d + 1), DType::F64, &Device::Cpu)?;
        let mut with_targets = Tensor::zeros((d + 1, targets.count), DType::F64, &Device::Cpu)?;
        let all: Vec<usize> = (0..n).collect();
        for rows in all.chunks(x.rows_at_a_time()) {
            let z = with_ones(x, rows)?;
            products = (products + z.t()?.matmul(&z)?)?;
            with_targets = (with_targets + z.t()?.matmul(&y.narrow(0, rows[0], rows.len())?)?)?;
        }
        Ok(Self::Primal { products, with_targets })
    }

    fn solve(&self, x: &Columns, targets: &Targets, penalty: f64) -> Result<Solution> {
        match self {
            Self::Dual(products) => by_rows(products, x, targets, penalty),
            Self::Primal { products, with_targets } => by_columns(products, with_targets, x, targets, penalty),
        }
    }
}

/// With C the inverse of (G + penalty) and A = C Y, the weights are Xᵀ A, and the residuals of a unit left out
/// C_uu⁻¹ A_u (the block form of the leave-one-out residuals of Allen 1974).
fn by_rows(products: &Tensor, x: &Columns, targets: &Targets, penalty: f64) -> Result<Solution> {
    let ((n, d), count) = (x.dims(), targets.count);
    let c = inverse(&(products + (identity(n)? * penalty)?)?)?;
    let a = c.matmul(&matrix(targets.values.clone(), n)?)?;
    let mut weight = Tensor::zeros((count, d), DType::F64, &Device::Cpu)?;
    let all: Vec<usize> = (0..n).collect();
    for rows in all.chunks(x.rows_at_a_time()) {
        let part = a.narrow(0, rows[0], rows.len())?.t()?.contiguous()?;
        weight = (weight + part.matmul(&x.rows(rows)?)?)?;
    }
    let weight = (weight / x.diagonal())?.flatten_all()?.to_vec1()?;
    let bias = a.sum(0)?.to_vec1()?;
    let (a, c): (Vec<f64>, Vec<f64>) = (a.flatten_all()?.to_vec1()?, c.flatten_all()?.to_vec1()?);
    let residuals = left_out(&targets.units, count, &a, |unit| pairs(unit, |i, j| c[i * n + j]));
    Ok(Solution { weight, bias, residuals })
}

/// With M the inverse of (ZᵀZ + penalty), the weights are M ZᵀY, and the residuals of a unit left out
/// (1 - Z_u M Z_uᵀ)⁻¹ (Y - Z W)_u.
fn by_columns(
    products: &Tensor,
    with_targets: &Tensor,
    x: &Columns,
    targets: &Targets,
    penalty: f64,
) -> Result<Solution> {
    let ((n, d), count) = (x.dims(), targets.count);
    let m = inverse(&(products + (identity(d + 1)? * penalty)?)?)?;
    let w = m.matmul(with_targets)?;
    let mut residuals = vec![0f64; n * count];
    // Units of few rows are worked on together.
    let mut units = targets.units.as_slice();
    while !units.is_empty() {
        let mut rows = 0;
        let fit = |unit: &&Vec<usize>| {
            rows += unit.len();
            rows <= x.rows_at_a_time()
        };
        let taken = units.iter().take_while(fit).count().max(1);
        let (now, rest) = units.split_at(taken);
        units = rest;
        let rows = now.concat();
        let z = with_ones(x, &rows)?;
        let zm: Vec<f64> = z.matmul(&m)?.flatten_all()?.to_vec1()?;
        let answers: Vec<f64> = z.matmul(&w)?.flatten_all()?.to_vec1()?;
        let z: Vec<f64> = z.flatten_all()?.to_vec1()?;
        let target = |k: usize, class: usize| targets.values[rows[k] * count + class];
        let r: Vec<f64> = answers.iter().enumerate().map(|(i, a)| target(i / count, i % count) - a).collect();
        let hat = |i: usize, j: usize| {
            let row = |row: usize| row * (d + 1)..(row + 1) * (d + 1);
            zm[row(i)].iter().zip(&z[row(j)]).map(|(a, b)| a * b).sum::<f64>()
        };
        let mut from = 0;
        let places: Vec<Vec<usize>> = now
            .iter()
            .map(|unit| {
                from += unit.len();
                (from - unit.len()..from).collect()
            })
            .collect();
        let block = |unit: &[usize]| pairs(unit, |i, j| f64::from(u8::from(i == j)) - hat(i, j));
        let of_rows = left_out(&places, count, &r, block);
        for (row, r) in rows.iter().zip(of_rows.chunks(count)) {
            residuals[row * count..][..count].copy_from_slice(r);
        }
    }
    let bias = w.get(d)?.to_vec1()?;
    let weight = (w.narrow(0, 0, d)? / x.diagonal().sqrt())?.t()?.contiguous()?.flatten_all()?.to_vec1()?;
    Ok(Solution { weight, bias, residuals })
}

/// The logarithms of the numbers by which answers may be multiplied.
const LOGARITHMS: (f64, f64) = (-4.0, 6.0);

/// The number for which the cross entropy of the answers times it is smallest: a search by golden sections (Kiefer
/// 1953) over its logarithm, in which the cross entropy has one minimum.
///
/// The targets are smoothed as if every class, of a label both outcomes, had been seen once more (after Platt 1999,
/// "Probabilistic outputs for support vector machines"): where every answer is right, no number would be too large.
pub(super) fn temperature(answers: &[f64], targets: &Targets) -> f64 {
    let loss = |log: f64| smoothed_loss(answers, targets, log.exp());
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = LOGARITHMS;
    let (mut a, mut b) = (high - golden * (high - low), low + golden * (high - low));
    let (mut at_a, mut at_b) = (loss(a), loss(b));
    for _ in 0..32 {
        if at_a <= at_b {
            (high, b, at_b) = (b, a, at_a);
            a = high - golden * (high - low);
            at_a = loss(a);
        } else {
            (low, a, at_a) = (a, b, at_b);
            b = low + golden * (high - low);
            at_b = loss(b);
        }
    }
    f64::midpoint(low, high).exp()
}

/// The cross entropy of all answers times `scale` with the smoothed targets.
fn smoothed_loss(answers: &[f64], targets: &Targets, scale: f64) -> f64 {
    let count = targets.count;
    let rows = answers.len() / count.max(1);
    let outcomes = if targets.task == Task::Labels { 2 } else { count };
    let smooth = |target: &f64| (rows as f64 * target + 1.0) / (rows + outcomes) as f64;
    let both = answers.chunks(count).zip(targets.values.chunks(count));
    both.map(|(answer, target)| {
        let target: Vec<f64> = target.iter().map(smooth).collect();
        match targets.task {
            Task::Classes => cross_entropy(answer, &target, scale),
            Task::Labels => {
                let logits = answer.iter().map(|a| (a - middle(Task::Labels)) * scale);
                logits.zip(target).map(|(logit, target)| binary_cross_entropy(logit, target)).sum()
            }
        }
    })
    .sum()
}

/// Of the softmax of scaled answers.
fn cross_entropy(answer: &[f64], target: &[f64], scale: f64) -> f64 {
    let most = answer.iter().fold(f64::MIN, |most, a| most.max(*a));
    let sum = answer.iter().map(|a| ((a - most) * scale).exp()).sum::<f64>().ln();
    answer.iter().zip(target).map(|(a, t)| t * (sum - (a - most) * scale)).sum()
}

#[cfg(test)]
mod tests;
