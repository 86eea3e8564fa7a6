//! Whether other views of a sample, mirrored or cropped, keep its class.

use super::matrix::{identity, inverse};
use super::ridge::{Gram, Labels, PENALTIES, largest, left_out, pairs};
use crate::error::Result;
use candle_core::{Device, Tensor};

/// How samples and their views are recognised by the other samples.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ViewVerdict {
    /// Whether each sample was right, as it is.
    pub plain: Vec<bool>,
    /// Whether the view of each sample was right.
    pub view: Vec<bool>,
    /// The mean squared error of the samples as they are.
    error: f64,
}

impl ViewVerdict {
    /// The accuracy on the samples as they are, in [0, 1].
    pub fn top1(&self) -> f64 {
        fraction(&self.plain)
    }

    /// The accuracy on the views, in [0, 1].
    pub fn view_top1(&self) -> f64 {
        fraction(&self.view)
    }
}

fn fraction(right: &[bool]) -> f64 {
    right.iter().filter(|&&right| right).count() as f64 / right.len().max(1) as f64
}

/// Ridge regression on the samples as they are judges each sample, and its view, without the sample's unit.
///
/// `features` holds the rows of the samples and then, in the same order, those of their views; `labels` is that of the
/// samples. With C the inverse of (G + penalty), A = C Y and the residuals r = C_uu⁻¹ A_u of a unit left out, the fit
/// without the unit has the coefficients A - C_u r; for the view v with the products K_v they give K_v A - (K_v C)_u r.
pub(crate) fn judge_views(features: &Tensor, labels: &Labels) -> Result<ViewVerdict> {
    let Labels { classes, count, units } = labels;
    let n = classes.len();
    let products = Gram::new(features)?.products().clone();
    let own = (products.narrow(0, 0, n)?.narrow(1, 0, n)?.contiguous()? + 1.0)?;
    let of_views = (products.narrow(0, n, n)?.narrow(1, 0, n)?.contiguous()? + 1.0)?;
    let mut targets = vec![0f64; n * count];
    classes.iter().enumerate().for_each(|(i, &class)| targets[i * count + class as usize] = 1.0);
    let y = Tensor::from_vec(targets.clone(), (n, *count), &Device::Cpu)?;
    let values = |tensor: Tensor| -> Result<Vec<f64>> { Ok(tensor.flatten_all()?.to_vec1()?) };
    let mut best: Option<ViewVerdict> = None;
    for penalty in PENALTIES {
        let c = inverse(&(&own + (identity(n)? * penalty)?)?)?;
        let a = c.matmul(&y)?;
        let (answers, mixed) = (values(of_views.matmul(&a)?)?, values(of_views.matmul(&c)?)?);
        let (c, a) = (values(c)?, values(a)?);
        let (mut plain, mut view, mut error) = (vec![false; n], vec![false; n], 0.0);
        let residuals = left_out(units, *count, &a, |unit| pairs(unit, |i, j| c[i * n + j]));
        for unit in units {
            for &i in unit {
                let as_it_is: Vec<f64> =
                    (0..*count).map(|k| targets[i * count + k] - residuals[i * count + k]).collect();
                let without = |k: usize| unit.iter().map(|&j| mixed[i * n + j] * residuals[j * count + k]).sum::<f64>();
                let as_view: Vec<f64> = (0..*count).map(|k| answers[i * count + k] - without(k)).collect();
                plain[i] = largest(&as_it_is) == classes[i] as usize;
                view[i] = largest(&as_view) == classes[i] as usize;
                error += (0..*count).map(|k| residuals[i * count + k].powi(2)).sum::<f64>() / n as f64;
            }
        }
        if best.as_ref().is_none_or(|best| error < best.error) {
            best = Some(ViewVerdict { plain, view, error });
        }
    }
    best.ok_or_else(|| crate::error::Error::invalid("probe", "no penalty was tried"))
}

#[cfg(test)]
mod tests {
    use super::super::matrix::{factor, solve};
    use super::*;

    /// Twelve rows of five columns in three classes, two of them in one group, and views that are shifted by `shift`.
    fn case(shift: f32) -> (Tensor, Labels) {
        let value = |i: usize| ((i * i % 53) as f32 * 0.7).sin() * 0.3 + if i % 5 == i / 5 % 3 { 1.0 } else { 0.0 };
        let rows: Vec<f32> = (0..60).map(value).collect();
        let views = (0..60).map(|i| value(i) + shift * if i % 5 == (i / 5 + 1) % 3 { 2.0 } else { 0.0 });
        let all: Vec<f32> = rows.iter().copied().chain(views).collect();
        let mut units: Vec<Vec<usize>> = (2..12).map(|i| vec![i]).collect();
        units.push(vec![0, 1]);
        let labels = Labels { classes: (0..12).map(|i| i % 3).collect(), count: 3, units };
        (Tensor::from_vec(all, (24, 5), &Device::Cpu).unwrap(), labels)
    }

    #[test]
    fn equal_views_are_judged_as_the_samples_and_others_by_a_fit_without_the_unit() {
        let (features, labels) = case(0.0);
        let same = judge_views(&features, &labels).unwrap();
        assert_eq!(same.plain, same.view);
        assert!(same.top1() > 0.8, "{same:?}");
        // Each unit's views by a fit to the rest, as an oracle.
        let (features, labels) = case(0.4);
        let got = judge_views(&features, &labels).unwrap();
        let products: Vec<f64> = Gram::new(&features).unwrap().products().flatten_all().unwrap().to_vec1().unwrap();
        let kernel = |i: usize, j: usize| products[i * 24 + j] + 1.0;
        let oracle = |penalty: f64| {
            let (mut plain, mut view, mut error) = (vec![false; 12], vec![false; 12], 0.0);
            for unit in &labels.units {
                let rest: Vec<usize> = (0..12).filter(|i| !unit.contains(i)).collect();
                let pairs = rest.iter().flat_map(|&i| rest.iter().map(move |&j| (i, j)));
                let mut a: Vec<f64> = pairs.map(|(i, j)| kernel(i, j) + if i == j { penalty } else { 0.0 }).collect();
                factor(&mut a, rest.len());
                let fit = |class: u32| {
                    let mut y: Vec<f64> =
                        rest.iter().map(|&i| f64::from(u8::from(labels.classes[i] == class))).collect();
                    solve(&a, &mut y);
                    y
                };
                let fits: Vec<Vec<f64>> = (0..3).map(fit).collect();
                let answer = |row: usize, fit: &Vec<f64>| rest.iter().zip(fit).map(|(&j, w)| kernel(row, j) * w).sum();
                for &i in unit {
                    let answers = |row: usize| fits.iter().map(|fit| answer(row, fit)).collect::<Vec<f64>>();
                    let class = labels.classes[i] as usize;
                    plain[i] = largest(&answers(i)) == class;
                    view[i] = largest(&answers(12 + i)) == class;
                    let wrong = |(k, a): (usize, &f64)| (a - f64::from(u8::from(k == class))).powi(2);
                    error += answers(i).iter().enumerate().map(wrong).sum::<f64>() / 12.0;
                }
            }
            ViewVerdict { plain, view, error }
        };
        let expected = PENALTIES.map(oracle).into_iter().min_by(|a, b| a.error.total_cmp(&b.error)).unwrap();
        assert_eq!((&got.plain, &got.view), (&expected.plain, &expected.view));
        assert!((got.error - expected.error).abs() < 1e-9);
        assert!(got.view_top1() < got.top1(), "shifted towards another class: {got:?}");
    }
}
