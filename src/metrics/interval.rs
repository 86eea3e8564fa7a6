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
    /// The 97.5th percentile of the normal distribution.
    const Z: f64 = 1.959_963_984_540_054;
    if total == 0 {
        return (0.0, 1.0);
    }
    let (n, fraction) = (total as f64, correct as f64 / total as f64);
    let centre = fraction + Z * Z / (2.0 * n);
    let half = Z * (fraction * (1.0 - fraction) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}
