//! Confidence interval of an accuracy.

/// The 95 % confidence interval of the fraction `correct` / `total`, by Wilson's score (Wilson 1927, "Probable
/// inference, the law of succession, and statistical inference"): unlike the normal approximation it holds for small
/// samples and for fractions near 0 and 1. (0, 1) if `total` is 0.
///
/// ```
/// use candle_finetune::wilson_interval;
/// let (low, high) = wilson_interval(34, 36); // 34 of 36 are correct
/// assert!((low - 0.8186).abs() < 1e-4 && (high - 0.9846).abs() < 1e-4);
/// ```
pub fn wilson_interval(correct: usize, total: usize) -> (f64, f64) {
    interval(correct as f64 / total.max(1) as f64, total as f64)
}

/// The same for a fraction of a number of samples that need not be whole.
fn interval(fraction: f64, n: f64) -> (f64, f64) {
    /// The 97.5th percentile of the normal distribution.
    const Z: f64 = 1.959_963_984_540_054;
    if n <= 0.0 {
        return (0.0, 1.0);
    }
    let centre = fraction + Z * Z / (2.0 * n);
    let half = Z * (fraction * (1.0 - fraction) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

/// The 95 % confidence interval of the accuracy over samples that come in units (groups), each as (correct, samples):
/// Wilson's for as many independent samples as carry the same information.
///
/// Samples of one group are alike, so they count for less: their number is divided by the design effect, the variance
/// of the accuracy by groups over that of independent samples (Kish 1965, "Survey sampling"), of the ratio estimator.
/// Where it cannot be estimated, since all are right or all wrong, each unit counts once.
pub(crate) fn interval_of_units(units: &[(f64, f64)]) -> (f64, f64) {
    let n: f64 = units.iter().map(|(_, samples)| samples).sum();
    let (fraction, count) = (units.iter().map(|(correct, _)| correct).sum::<f64>() / n.max(1.0), units.len() as f64);
    if units.iter().all(|(_, samples)| *samples == 1.0) {
        return interval(fraction, n);
    }
    let spread: f64 = units.iter().map(|(correct, samples)| (correct - fraction * samples).powi(2)).sum();
    let effect = count / (count - 1.0).max(1.0) * spread / (n * fraction * (1.0 - fraction));
    let effective = if effect.is_finite() { n / effect.max(1.0) } else { count };
    interval(fraction, effective)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_group_count_for_less() {
        // Ungrouped: Wilson's own.
        let alone: Vec<(f64, f64)> = (0..36).map(|i| (f64::from(u8::from(i < 34)), 1.0)).collect();
        assert_eq!(interval_of_units(&alone), wilson_interval(34, 36));
        // Groups of four that are right or wrong together carry as much as one sample each, but for count / (count - 1).
        let together: Vec<(f64, f64)> = (0..20).map(|i| (if i < 15 { 4.0 } else { 0.0 }, 4.0)).collect();
        let (low, high) = interval_of_units(&together);
        let (a, b) = interval(0.75, 19.0);
        assert!((low - a).abs() < 1e-12 && (high - b).abs() < 1e-12, "{low} {high}");
        // Groups of which each has its share right are no worse than independent samples.
        let spread: Vec<(f64, f64)> = (0..20).map(|_| (3.0, 4.0)).collect();
        assert_eq!(interval_of_units(&spread), wilson_interval(60, 80));
        // All right: each group counts once.
        assert_eq!(interval_of_units(&[(4.0, 4.0); 10]), wilson_interval(10, 10));
        assert_eq!(interval_of_units(&[]), (0.0, 1.0));
    }
}
