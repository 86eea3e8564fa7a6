//! Which columns of many are worth keeping.

use super::columns::Columns;
use super::fit::{Known, Targets, temperature, top1};
use super::lasso::{STEPS, STRENGTH, group_lasso};
use super::matrix::{identity, inverse};
use crate::error::Result;
use candle_core::{DType, Device, Tensor};

/// The fractions of the columns that are tried.
pub(super) const FRACTIONS: [f64; 5] = [0.01, 0.03, 0.1, 0.3, 1.0];

/// The ridge penalties that are tried with each.
const PENALTIES: [f64; 4] = [1e-2, 1e-1, 1.0, 10.0];

/// Columns that are multiplied at a time.
const BLOCK: usize = 4096;

/// The columns that are kept, and what is known of a ridge regression on them.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    /// In ascending order.
    pub columns: Vec<usize>,
    /// From rows that neither ranked the columns nor were fitted; `None` without folds.
    pub known: Option<Known>,
}

/// Ranks the columns by a group lasso and keeps the fraction of them with which a ridge regression predicts best.
///
/// `folds` has the number of each row's fold. The lasso has seen the targets of its rows, so errors on those rows
/// flatter: for each fold the columns are ranked and a regression is fitted by the rows of the other folds alone, and
/// the fraction and the penalty with the smallest squared error on the fold's own rows are taken. Without folds all
/// columns are kept.
pub(crate) fn select(x: &Columns, targets: &Targets, folds: Option<&[usize]>) -> Result<Selection> {
    let (n, d) = x.dims();
    let Some(folds) = folds else { return Ok(Selection { columns: (0..d).collect(), known: None }) };
    let count = targets.count;
    let tried = FRACTIONS.len() * PENALTIES.len();
    let mut answers = vec![vec![0f64; n * count]; tried];
    for fold in 0..folds.iter().max().map_or(0, |last| last + 1) {
        let (judged, fitted): (Vec<usize>, Vec<usize>) = (0..n).partition(|&row| folds[row] == fold);
        let mut k = 0;
        judge(x, targets, &fitted, &judged, |of_rows| {
            for (row, answer) in judged.iter().zip(of_rows.chunks(count)) {
                answers[k][row * count..][..count].copy_from_slice(answer);
            }
            k += 1;
        })?;
    }
    let error = |answers: &[f64]| targets.values.iter().zip(answers).map(|(y, a)| (y - a).powi(2)).sum::<f64>();
    let errors: Vec<f64> = answers.iter().map(|answers| error(answers)).collect();
    let best = (0..tried).fold(0, |best, k| if errors[k] < errors[best] { k } else { best });
    let (fraction, penalty) = (FRACTIONS[best / PENALTIES.len()], PENALTIES[best % PENALTIES.len()]);
    let all: Vec<usize> = (0..n).collect();
    let mut columns = match kept(fraction, d) {
        kept if kept < d => rank(&x.rows_f32(&all)?, targets, &all)?.into_iter().take(kept).collect(),
        _ => (0..d).collect::<Vec<usize>>(),
    };
    columns.sort_unstable();
    let answers = &answers[best];
    let known = Known { penalty, temperature: temperature(answers, targets), top1: top1(answers, targets) };
    Ok(Selection { columns, known: Some(known) })
}

fn kept(fraction: f64, columns: usize) -> usize {
    ((columns as f64 * fraction).ceil() as usize).clamp(1, columns)
}

/// The columns of scaled rows, the most useful first.
fn rank(x: &Tensor, targets: &Targets, rows: &[usize]) -> Result<Vec<usize>> {
    let y = picked(targets, rows)?.to_dtype(DType::F32)?;
    Ok(group_lasso(x, &y, STRENGTH, STEPS)?.order())
}

/// The targets of some rows, (rows, classes).
fn picked(targets: &Targets, rows: &[usize]) -> Result<Tensor> {
    let count = targets.count;
    let values: Vec<f64> = rows.iter().flat_map(|row| &targets.values[row * count..][..count]).copied().collect();
    Ok(Tensor::from_vec(values, (rows.len(), count), &Device::Cpu)?)
}

/// Hands the answers for the rows `judged`, by what the rows `fitted` tell, to `answer`: for each fraction and penalty.
fn judge(
    x: &Columns,
    targets: &Targets,
    fitted: &[usize],
    judged: &[usize],
    mut answer: impl FnMut(&[f64]),
) -> Result<()> {
    let (n, d) = (fitted.len(), x.dims().1);
    let (x, others) = (x.rows_f32(fitted)?, x.rows_f32(judged)?);
    let order: Vec<u32> = rank(&x, targets, fitted)?.into_iter().map(|column| column as u32).collect();
    let y = picked(targets, fitted)?;
    let mut own = Tensor::zeros((n, n), DType::F64, &Device::Cpu)?;
    let mut cross = Tensor::zeros((judged.len(), n), DType::F64, &Device::Cpu)?;
    let mut done = 0;
    for fraction in FRACTIONS {
        // Each fraction's columns are the first of the next one's.
        while done < kept(fraction, d) {
            let until = kept(fraction, d).min(done + BLOCK);
            let columns = Tensor::from_slice(&order[done..until], until - done, &Device::Cpu)?;
            let (a, b) = (x.index_select(&columns, 1)?, others.index_select(&columns, 1)?);
            own = (own + a.matmul(&a.t()?)?.to_dtype(DType::F64)?)?;
            cross = (cross + b.matmul(&a.t()?)?.to_dtype(DType::F64)?)?;
            done = until;
        }
        let diagonal: f64 = (0..n).map(|i| own.get(i)?.get(i)?.to_scalar::<f64>()).sum::<candle_core::Result<f64>>()?;
        let diagonal = if diagonal > 0.0 { diagonal / n as f64 } else { 1.0 };
        for penalty in PENALTIES {
            let c = inverse(&(((&own / diagonal)? + 1.0)? + (identity(n)? * penalty)?)?)?;
            let answers = ((&cross / diagonal)? + 1.0)?.matmul(&c.matmul(&y)?)?;
            answer(&answers.flatten_all()?.to_vec1::<f64>()?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Task;
    use crate::rng::Seed;
    use rand::RngExt;

    /// Noise in which two columns of `d` tell the class.
    fn case(n: usize, d: usize) -> (Columns, Targets) {
        let mut random = Seed(1).stream("noise", &[]);
        let noise: Vec<f32> = (0..n * d).map(|_| random.random::<f32>() * 2.0 - 1.0).collect();
        let noise = |i: usize, j: usize| noise[i * d + j];
        let value = |i: usize, j: usize| match j {
            5 => (i % 2) as f32 + 0.2 * noise(i, j),
            77 => 0.5 - (i % 2) as f32 + 0.3 * noise(i, j),
            _ => noise(i, j),
        };
        let values: Vec<f32> = (0..n * d).map(|k| value(k / d, k % d)).collect();
        let x = Columns::new(&Tensor::from_vec(values, (n, d), &Device::Cpu).unwrap()).unwrap();
        let values = (0..n).flat_map(|i| [i % 2 == 0, i % 2 == 1]).map(|y| f64::from(u8::from(y))).collect();
        (x, Targets { values, count: 2, task: Task::Classes, units: (0..n).map(|i| vec![i]).collect() })
    }

    #[test]
    fn the_columns_that_tell_the_class_are_kept() {
        let (x, targets) = case(60, 200);
        let folds: Vec<usize> = (0..60).map(|i| i / 2 % 3).collect();
        let selection = select(&x, &targets, Some(&folds)).unwrap();
        assert!(selection.columns.is_sorted());
        assert_eq!(selection.columns, [5, 77], "one per cent of 200");
        let known = selection.known.unwrap();
        assert!(known.top1 > 0.98 && known.temperature > 1.0, "{known:?}");
        // Without folds nothing tells which are useful.
        let all = select(&x, &targets, None).unwrap();
        assert!(all.columns.len() == 200 && all.known.is_none());
    }

    /// The lasso has seen the labels, so on its own rows noise looks useful; on others it does not.
    #[test]
    fn noise_is_judged_by_rows_that_did_not_rank_it() {
        let (x, mut targets) = case(60, 200);
        let mut random = Seed(2).stream("classes", &[]);
        for target in targets.values.chunks_mut(2) {
            let class = f64::from(u8::from(random.random::<bool>()));
            target.copy_from_slice(&[1.0 - class, class]);
        }
        let folds: Vec<usize> = (0..60).map(|i| i % 3).collect();
        let known = select(&x, &targets, Some(&folds)).unwrap().known.unwrap();
        assert!(known.top1 < 0.7, "{known:?}");
    }
}
