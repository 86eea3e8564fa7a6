//! Fits against ridge regressions that are computed otherwise: by Cholesky's factor of the normal equations, and a fit
//! without each unit.

use super::super::matrix::{factor, solve};
use super::*;

const CLASSES: usize = 3;

/// Waves of n rows in d columns of different means and sizes, three classes, and one group of three rows.
fn case(n: usize, d: usize) -> (Tensor, Targets) {
    let value = |i: usize, j: usize| {
        let wave = ((i * i * 31 + j * 17 + i * j * 7) % 101) as f32 * 0.37;
        (wave.sin() + (i % CLASSES) as f32 * if j.is_multiple_of(2) { 0.5 } else { -0.2 }) * (1 + j % 4) as f32
            + j as f32
    };
    let values: Vec<f32> = (0..n).flat_map(|i| (0..d).map(move |j| value(i, j))).collect();
    let x = Tensor::from_vec(values, (n, d), &Device::Cpu).unwrap();
    let mut units: Vec<Vec<usize>> = (3..n).map(|i| vec![i]).collect();
    units.push(vec![0, 1, 2]);
    let values = (0..n).flat_map(|i| (0..CLASSES).map(move |k| f64::from(u8::from(i % CLASSES == k)))).collect();
    (x, Targets { values, count: CLASSES, task: Task::Classes, units })
}

/// Scaled columns and a column of ones, in the units of the penalty.
fn scaled(x: &Tensor) -> Vec<Vec<f64>> {
    let rows: Vec<Vec<f64>> = x.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
    let (n, d) = (rows.len(), rows[0].len());
    let mean = |j: usize| rows.iter().map(|row| row[j]).sum::<f64>() / n as f64;
    let means: Vec<f64> = (0..d).map(mean).collect();
    let variances: Vec<f64> =
        (0..d).map(|j| rows.iter().map(|row| (row[j] - means[j]).powi(2)).sum::<f64>() / n as f64).collect();
    let least = variances.iter().sum::<f64>() / d as f64 * 1e-6;
    let one =
        |row: &Vec<f64>| (0..d).map(|j| (row[j] - means[j]) / (variances[j] + least).sqrt()).collect::<Vec<f64>>();
    let mut z: Vec<Vec<f64>> = rows.iter().map(one).collect();
    let diagonal = z.iter().flatten().map(|v| v * v).sum::<f64>() / n as f64;
    for row in &mut z {
        row.iter_mut().for_each(|v| *v /= diagonal.sqrt());
        row.push(1.0);
    }
    z
}

/// The weights of each class, by the normal equations over `rows`.
fn ridge(z: &[Vec<f64>], targets: &Targets, rows: &[usize], penalty: f64) -> Vec<Vec<f64>> {
    let width = z[0].len();
    let product = |a: usize, b: usize| rows.iter().map(|&i| z[i][a] * z[i][b]).sum::<f64>();
    let mut m: Vec<f64> = (0..width * width)
        .map(|k| product(k / width, k % width) + if k / width == k % width { penalty } else { 0.0 })
        .collect();
    factor(&mut m, width);
    let of_class = |class: usize| {
        let mut right: Vec<f64> =
            (0..width).map(|a| rows.iter().map(|&i| z[i][a] * targets.values[i * CLASSES + class]).sum()).collect();
        solve(&m, &mut right);
        right
    };
    (0..CLASSES).map(of_class).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// More rows than columns are solved by columns, and fewer by rows; both are the same regression.
#[test]
fn a_fit_is_the_ridge_regression_with_the_best_penalty_for_units_left_out() {
    for (n, d) in [(14, 5), (9, 20), (40, 7)] {
        let (x, targets) = case(n, d);
        let fit = fit(&Columns::new(&x).unwrap(), &targets, None).unwrap();
        let z = scaled(&x);
        let all: Vec<usize> = (0..n).collect();
        // The answers for each unit, by a fit to the others.
        let left_out = |penalty: f64| {
            let mut answers = vec![0f64; n * CLASSES];
            for unit in &targets.units {
                let rest: Vec<usize> = all.iter().copied().filter(|i| !unit.contains(i)).collect();
                let weights = ridge(&z, &targets, &rest, penalty);
                unit.iter()
                    .for_each(|&i| (0..CLASSES).for_each(|k| answers[i * CLASSES + k] = dot(&weights[k], &z[i])));
            }
            answers
        };
        let error = |answers: &[f64]| answers.iter().zip(&targets.values).map(|(a, y)| (a - y).powi(2)).sum::<f64>();
        let best = PENALTIES.into_iter().min_by(|&a, &b| error(&left_out(a)).total_cmp(&error(&left_out(b)))).unwrap();
        assert_eq!(fit.known.penalty.to_bits(), best.to_bits(), "{n} x {d}");
        let answers = left_out(best);
        assert!((fit.known.top1 - top1(&answers, &targets)).abs() < 1e-12);
        // The scale is where the cross entropy is smallest.
        let loss = |scale: f64| smoothed_loss(&answers, &targets, scale);
        let (scale, (least, most)) = (fit.known.temperature, LOGARITHMS);
        let around = [(scale * 1.01).min(most.exp()), (scale / 1.01).max(least.exp())];
        assert!(around.iter().all(|&s| loss(scale) <= loss(s) + 1e-6), "{scale}");
        // As logits of the features as they are.
        let weights = ridge(&z, &targets, &all, best);
        let rows: Vec<Vec<f64>> = x.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
        for (row, z) in rows.iter().zip(&z) {
            for (class, weights) in weights.iter().enumerate() {
                let logit = dot(&fit.weight[class * d..][..d], row) + fit.bias[class];
                let expected = scale * dot(weights, z);
                assert!((logit - expected).abs() < 1e-7 * scale, "{n} x {d}: {logit} {expected}");
            }
        }
    }
}

#[test]
fn what_is_known_is_taken() {
    let (x, targets) = case(14, 5);
    let known = Known { penalty: 0.37, temperature: 5.0, top1: 0.25 };
    let fit = fit(&Columns::new(&x).unwrap(), &targets, Some(known)).unwrap();
    assert_eq!((fit.known.penalty, fit.known.temperature, fit.known.top1), (0.37, 5.0, 0.25));
}

#[test]
fn columns_without_variance_get_no_weight() {
    let (x, targets) = case(14, 4);
    let constant = (Tensor::ones((14, 2), DType::F32, &Device::Cpu).unwrap() * 1000.3).unwrap();
    for n in [4, 0] {
        let x = Tensor::cat(&[&x.narrow(1, 0, n.max(1)).unwrap(), &constant], 1).unwrap();
        let x = if n == 0 { constant.clone() } else { x };
        let d = x.dim(1).unwrap();
        let fit = fit(&Columns::new(&x).unwrap(), &targets, None).unwrap();
        for class in 0..CLASSES {
            let of_constant = &fit.weight[class * d + d - 2..][..2];
            assert!(of_constant.iter().all(|w| w.abs() < 1e-6), "{of_constant:?}");
        }
        assert!(fit.bias.iter().all(|b| b.is_finite()));
    }
}

/// Answers that are all right say no more than their number allows.
#[test]
fn no_scale_is_sure_of_what_few_samples_tell() {
    let scale = |n: usize| {
        let values: Vec<f64> =
            (0..n).flat_map(|i| [f64::from(u8::from(i % 2 == 0)), f64::from(u8::from(i % 2 == 1))]).collect();
        let answers: Vec<f64> = values.iter().map(|y| 0.5 + (y - 0.5) * 0.5).collect();
        temperature(&answers, &Targets { values, count: 2, task: Task::Classes, units: vec![] })
    };
    // The smoothed targets are (n + 1) / (n + 2), and an answer leads by a half.
    for n in [4, 20, 200] {
        let expected = 2.0 * (n as f64 + 1.0).ln();
        assert!((scale(n) - expected).abs() < 1e-3, "{n}: {} {expected}", scale(n));
    }
}

/// The fit is that of the classes; the scale and the accuracy are of sigmoids, and an answer of a half is the logit 0.
#[test]
fn lists_of_labels_have_the_scale_of_least_binary_cross_entropy() {
    let (x, mut targets) = case(40, 7);
    let of_classes = fit(&Columns::new(&x).unwrap(), &targets, None).unwrap();
    targets.task = Task::Labels;
    let fit = fit(&Columns::new(&x).unwrap(), &targets, None).unwrap();
    assert_eq!(fit.known.penalty.to_bits(), of_classes.known.penalty.to_bits());
    let ratio = fit.known.temperature / of_classes.known.temperature;
    let close = |a: f64, b: f64| (a - b).abs() < 1e-9 * (1.0 + a.abs());
    assert!(fit.weight.iter().zip(&of_classes.weight).all(|(a, b)| close(*a, b * ratio)));
    for (bias, of_class) in fit.bias.iter().zip(&of_classes.bias) {
        assert!(close(*bias, of_class * ratio - 0.5 * fit.known.temperature), "{bias} {of_class}");
    }
    // Answers that the targets follow: with the smoothed targets (n + 1) / (n + 2) and an answer of 3/4, the logit is
    // ln(n + 1).
    let values: Vec<f64> = (0..60).map(|i| f64::from(u8::from(i % 7 < 3))).collect();
    let answers: Vec<f64> = values.iter().map(|y| 0.5 + (y - 0.5) * 0.5).collect();
    let labels = Targets { values, count: 3, task: Task::Labels, units: vec![] };
    assert!((temperature(&answers, &labels) - 4.0 * 21f64.ln()).abs() < 1e-3);
    let right = |answers: &[f64]| top1(answers, &labels);
    let mut answers = answers;
    assert_eq!(right(&answers).to_bits(), 1f64.to_bits());
    // One wrong label makes its row wrong.
    answers[4] = 1.0 - answers[4];
    assert!((right(&answers) - 0.95).abs() < 1e-12);
}
