//! Ridge regression on features, and nearest neighbours, each sample judged without itself.

use super::matrix::{factor, identity, inverse, solve};
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

/// The samples of a probe.
#[derive(Debug, Clone)]
pub(crate) struct Labels {
    /// The class of each row.
    pub classes: Vec<u32>,
    /// How many classes there are.
    pub count: usize,
    /// Rows that are left out together: a sample and its views, or the samples of a group. Every row is in one.
    pub units: Vec<Vec<usize>>,
}

impl Labels {
    /// Of some of the rows; each row once, in any order.
    pub fn among(&self, rows: &[usize]) -> Self {
        let place: BTreeMap<usize, usize> = rows.iter().enumerate().map(|(to, &from)| (from, to)).collect();
        let unit =
            |unit: &Vec<usize>| -> Vec<usize> { unit.iter().filter_map(|row| place.get(row).copied()).collect() };
        let units = self.units.iter().map(unit).filter(|unit| !unit.is_empty()).collect();
        Self { classes: rows.iter().map(|&row| self.classes[row]).collect(), count: self.count, units }
    }
}

/// The ridge penalties that are tried, as multiples of the mean of the Gram matrix's diagonal.
///
/// The best of them is taken by the same left-out samples that give the accuracy, which flatters every stage alike by
/// less than its standard error.
pub(super) const PENALTIES: [f64; 3] = [0.01, 0.1, 1.0];

/// Neighbours that vote.
const NEIGHBOURS: usize = 5;

/// The answers of a probe, each row's without its own unit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// Whether each row was right.
    pub correct: Vec<bool>,
    /// The mean squared error of the targets, 1 for the row's class and 0 for the others.
    pub error: f64,
}

impl Verdict {
    /// The fraction of rows that were right.
    pub fn top1(&self) -> f64 {
        self.correct.iter().filter(|&&c| c).count() as f64 / self.correct.len().max(1) as f64
    }
}

/// The inner products of all pairs of rows, of features that were centred and scaled column by column.
#[derive(Clone)]
pub(crate) struct Gram {
    /// (n, n), f64, on the CPU; the mean of its diagonal is 1.
    products: Tensor,
    n: usize,
    /// The mean of the diagonal before: the number of columns that vary.
    columns: f64,
}

impl Gram {
    /// Of features (N, D) or maps (N, C, H, W).
    ///
    /// Centring and scaling use all rows, also those that are judged: they know no classes.
    pub fn new(features: &Tensor) -> Result<Self> {
        let x = features.flatten_from(1)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let (n, _) = x.dims2()?;
        let x = x.broadcast_sub(&x.mean_keepdim(0)?)?;
        let variance = x.sqr()?.mean_keepdim(0)?;
        // Columns that hardly vary carry no information, and would be all noise after scaling.
        let least = variance.mean_all()?.to_scalar::<f32>()? as f64 * 1e-6 + f64::from(f32::MIN_POSITIVE);
        let x = x.broadcast_div(&(variance + least)?.sqrt()?)?;
        let products = x.matmul(&x.t()?)?.to_dtype(DType::F64)?;
        let diagonal: f64 =
            (0..n).map(|i| products.get(i)?.get(i)?.to_scalar::<f64>()).sum::<candle_core::Result<f64>>()?
                / n.max(1) as f64;
        let products = if diagonal > 0.0 { (products / diagonal)? } else { products };
        Ok(Self { products, n, columns: diagonal })
    }

    /// Of the columns of both together.
    pub fn beside(&self, other: &Self) -> Result<Self> {
        let columns = self.columns + other.columns;
        if columns <= 0.0 {
            return Ok(Self { products: self.products.clone(), ..*self });
        }
        let share = |gram: &Self| &gram.products * (gram.columns / columns);
        Ok(Self { products: (share(self)? + share(other)?)?, n: self.n, columns })
    }

    /// Of some of the rows.
    pub fn among(&self, rows: &[usize]) -> Result<Self> {
        let at = Tensor::from_iter(rows.iter().map(|&row| row as u32), &Device::Cpu)?;
        let products = self.products.index_select(&at, 0)?.index_select(&at, 1)?;
        Ok(Self { products, n: rows.len(), columns: self.columns })
    }

    /// (n, n), f64.
    pub(super) fn products(&self) -> &Tensor {
        &self.products
    }

    /// Ridge regression of all classes at once, by the best of the penalties.
    ///
    /// The answer for a unit left out needs no second fit: with C the inverse of (G + penalty) and A = C Y, the unit's
    /// residuals are C_uu⁻¹ A_u (the block form of the leave-one-out residuals of Allen 1974).
    pub fn ridge(&self, labels: &Labels) -> Result<Verdict> {
        let Labels { classes, count, units } = labels;
        if classes.len() != self.n {
            return Err(Error::invalid("probe", format!("{} labels of {} rows", classes.len(), self.n)));
        }
        let mut targets = vec![0f64; self.n * count];
        classes.iter().enumerate().for_each(|(i, &class)| targets[i * count + class as usize] = 1.0);
        let y = Tensor::from_vec(targets.clone(), (self.n, *count), &Device::Cpu)?;
        let mut best: Option<Verdict> = None;
        for penalty in PENALTIES {
            // The added 1 is a constant column: the intercept.
            let c = inverse(&((&self.products + 1.0)? + (identity(self.n)? * penalty)?)?)?;
            let a: Vec<f64> = c.matmul(&y)?.flatten_all()?.to_vec1()?;
            let c: Vec<f64> = c.flatten_all()?.to_vec1()?;
            let residuals = left_out(units, *count, &a, |unit| pairs(unit, |i, j| c[i * self.n + j]));
            let verdict = verdict(&targets, &residuals, classes, *count);
            if best.as_ref().is_none_or(|best| verdict.error < best.error) {
                best = Some(verdict);
            }
        }
        best.ok_or_else(|| Error::invalid("probe", "no penalty was tried"))
    }

    /// The vote of the nearest rows by the cosine of centred features; ties go to the nearer ones.
    pub fn neighbours(&self, labels: &Labels) -> Result<Verdict> {
        let Labels { classes, count, units } = labels;
        let g: Vec<f64> = self.products.flatten_all()?.to_vec1()?;
        let n = self.n;
        let length: Vec<f64> = (0..n).map(|i| g[i * n + i].max(f64::MIN_POSITIVE).sqrt()).collect();
        let mut unit_of = vec![0; n];
        units.iter().enumerate().for_each(|(u, rows)| rows.iter().for_each(|&i| unit_of[i] = u));
        let mut correct = Vec::with_capacity(n);
        for i in 0..n {
            let mut near: Vec<(f64, usize)> = (0..n)
                .filter(|&j| unit_of[j] != unit_of[i])
                .map(|j| (g[i * n + j] / (length[i] * length[j]), j))
                .collect();
            let k = NEIGHBOURS.min(near.len());
            if k == 0 {
                correct.push(false);
                continue;
            }
            near.select_nth_unstable_by(k - 1, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let mut votes = vec![0f64; *count];
            near[..k].iter().for_each(|&(cosine, j)| votes[classes[j] as usize] += 1.0 + 1e-3 * cosine);
            correct.push(largest(&votes) == classes[i] as usize);
        }
        let error = 1.0 - correct.iter().filter(|&&c| c).count() as f64 / n.max(1) as f64;
        Ok(Verdict { correct, error })
    }
}

/// The residuals of each unit by a fit to the others, B_u⁻¹ R_u, for a matrix R (rows, classes) and the blocks B of the
/// units.
pub(super) fn left_out(
    units: &[Vec<usize>],
    count: usize,
    right: &[f64],
    block: impl Fn(&[usize]) -> Vec<f64>,
) -> Vec<f64> {
    let mut residuals = vec![0f64; right.len()];
    for unit in units {
        let mut block = block(unit);
        factor(&mut block, unit.len());
        for class in 0..count {
            let mut r: Vec<f64> = unit.iter().map(|&i| right[i * count + class]).collect();
            solve(&block, &mut r);
            unit.iter().zip(r).for_each(|(&i, r)| residuals[i * count + class] = r);
        }
    }
    residuals
}

/// `of` for all pairs of a unit's rows, row by row.
pub(super) fn pairs(unit: &[usize], of: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    unit.iter().flat_map(|&i| unit.iter().map(move |&j| (i, j))).map(|(i, j)| of(i, j)).collect()
}

pub(super) fn largest(values: &[f64]) -> usize {
    values.iter().enumerate().fold(0, |best, (i, v)| if *v > values[best] { i } else { best })
}

fn verdict(targets: &[f64], residuals: &[f64], classes: &[u32], count: usize) -> Verdict {
    let answers: Vec<f64> = targets.iter().zip(residuals).map(|(y, r)| y - r).collect();
    let rows = answers.chunks(count).zip(classes);
    let correct = rows.map(|(row, &class)| largest(row) == class as usize).collect();
    let error = residuals.iter().map(|r| r * r).sum::<f64>() / classes.len().max(1) as f64;
    Verdict { correct, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waves of 12 rows in 5 columns, three classes, and one group of three rows.
    fn case() -> (Tensor, Labels) {
        let values: Vec<f32> = (0..60).map(|i| ((i * i % 53) as f32 * 0.7).sin() + (i / 5 % 3) as f32).collect();
        let mut units: Vec<Vec<usize>> = (3..12).map(|i| vec![i]).collect();
        units.push(vec![0, 1, 2]);
        let classes = (0..12).map(|i| i % 3).collect();
        (Tensor::from_vec(values, (12, 5), &Device::Cpu).unwrap(), Labels { classes, count: 3, units })
    }

    /// Each unit's answers from a fit to the others alone.
    #[test]
    fn answers_are_those_of_fits_without_the_unit() {
        let (x, labels) = case();
        let gram = Gram::new(&x).unwrap();
        let got = gram.ridge(&labels).unwrap();
        let g: Vec<f64> = gram.products.flatten_all().unwrap().to_vec1().unwrap();
        let kernel = |i: usize, j: usize| g[i * 12 + j] + 1.0;
        let least = PENALTIES.iter().map(|penalty| {
            let (mut correct, mut error) = (vec![false; 12], 0.0);
            for unit in &labels.units {
                let rest: Vec<usize> = (0..12).filter(|i| !unit.contains(i)).collect();
                let n = rest.len();
                let mut a: Vec<f64> = rest
                    .iter()
                    .flat_map(|&i| rest.iter().map(move |&j| (i, j)))
                    .map(|(i, j)| kernel(i, j) + if i == j { *penalty } else { 0.0 })
                    .collect();
                factor(&mut a, n);
                let fits: Vec<Vec<f64>> = (0..3)
                    .map(|class| {
                        let mut y: Vec<f64> =
                            rest.iter().map(|&i| f64::from(u8::from(labels.classes[i] == class))).collect();
                        solve(&a, &mut y);
                        y
                    })
                    .collect();
                for &i in unit {
                    let answer = |fit: &Vec<f64>| rest.iter().zip(fit).map(|(&j, w)| kernel(i, j) * w).sum::<f64>();
                    let answers: Vec<f64> = fits.iter().map(answer).collect();
                    correct[i] = largest(&answers) == labels.classes[i] as usize;
                    let target = |class: usize| f64::from(u8::from(labels.classes[i] as usize == class));
                    error += answers.iter().enumerate().map(|(k, a)| (a - target(k)).powi(2)).sum::<f64>() / 12.0;
                }
            }
            Verdict { correct, error }
        });
        let expected = least.min_by(|a, b| a.error.total_cmp(&b.error)).unwrap();
        assert_eq!(got.correct, expected.correct);
        assert!((got.error - expected.error).abs() < 1e-9, "{} {}", got.error, expected.error);
    }

    #[test]
    fn some_rows_are_judged_by_each_other_alone() {
        let (x, labels) = case();
        let gram = Gram::new(&x).unwrap();
        let all: Vec<usize> = (0..12).rev().collect();
        let (whole, turned) = (gram.ridge(&labels).unwrap(), gram.among(&all).unwrap());
        let turned = turned.ridge(&labels.among(&all)).unwrap();
        assert_eq!(turned.correct.iter().rev().copied().collect::<Vec<_>>(), whole.correct);
        // Of the group of rows 0 to 2, two are left, and stay together.
        let some = labels.among(&[5, 2, 7, 0]);
        assert_eq!((some.classes.clone(), some.count), (vec![2, 2, 1, 0], 3));
        let mut units = some.units.clone();
        units.sort();
        assert_eq!(units, [vec![0], vec![2], vec![3, 1]]);
        assert_eq!(gram.among(&[5, 2, 7, 0]).unwrap().ridge(&some).unwrap().correct.len(), 4);
    }

    #[test]
    fn neighbours_of_the_same_group_have_no_vote() {
        // Six rows of each class, each class near its own axis: alone, all five neighbours are of the same class.
        let rows: Vec<f32> = (0..6u8).flat_map(|i| [9.0 + f32::from(i) * 0.1, 0.0]).collect();
        let others: Vec<f32> = (0..6u8).flat_map(|i| [0.0, 9.0 + f32::from(i) * 0.1]).collect();
        let x = Tensor::from_vec([rows, others].concat(), (12, 2), &Device::Cpu).unwrap();
        let gram = Gram::new(&x).unwrap();
        let classes: Vec<u32> = (0..12).map(|i| i / 6).collect();
        let labels = |units: Vec<Vec<usize>>| Labels { classes: classes.clone(), count: 2, units };
        let alone = gram.neighbours(&labels((0..12).map(|i| vec![i]).collect())).unwrap();
        assert!(alone.correct.iter().all(|&correct| correct), "{alone:?}");
        // With the first class in one group, only the other class is left to vote on it.
        let grouped = (6..12).map(|i| vec![i]).chain([(0..6).collect()]).collect();
        let grouped = gram.neighbours(&labels(grouped)).unwrap();
        assert_eq!(grouped.correct, (0..12).map(|i| i >= 6).collect::<Vec<_>>());
        assert!((grouped.top1() + grouped.error - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_columns_of_two_are_those_of_both_beside_each_other() {
        let (x, labels) = case();
        let y = (x.sqr().unwrap() + 0.5).unwrap().narrow(1, 0, 3).unwrap();
        let both = Gram::new(&Tensor::cat(&[&x, &y], 1).unwrap()).unwrap();
        let beside = Gram::new(&x).unwrap().beside(&Gram::new(&y).unwrap()).unwrap();
        let difference = (both.products() - beside.products()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f64>().unwrap() < 1e-6);
        assert_eq!(both.ridge(&labels).unwrap().correct, beside.ridge(&labels).unwrap().correct);
    }

    #[test]
    fn constant_columns_and_equal_rows_are_no_trouble() {
        let x = Tensor::ones((4, 3), DType::F32, &Device::Cpu).unwrap();
        let labels = Labels { classes: vec![0, 1, 0, 1], count: 2, units: (0..4).map(|i| vec![i]).collect() };
        let verdict = Gram::new(&x).unwrap().ridge(&labels).unwrap();
        assert!(verdict.error.is_finite() && verdict.top1() <= 0.5, "{verdict:?}");
    }
}
