//! Round values for axes.

/// Values that are larger than this, or not finite, have no place on an axis.
const LARGEST: f64 = 1e100;

/// Whether a value can be drawn.
pub(super) fn drawable(value: f64) -> bool {
    value.abs() <= LARGEST
}

/// Evenly spaced round values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ticks {
    /// They rise; the first and the last one enclose the values that they are for.
    pub values: Vec<f64>,
    step: f64,
}

impl Ticks {
    /// For values from `low` to `high`, which can be drawn: at multiples of 1, 2 or 5 times a power of ten, with at most
    /// `most` steps from the first to the last of `low` and `high`.
    pub fn new(low: f64, high: f64, most: usize) -> Self {
        // One value alone is in the middle.
        let room = match high > low {
            true => 0.0,
            false if low == 0.0 => 0.5,
            false => 0.1 * low.abs(),
        };
        let (low, high) = (low - room, high + room);
        let least = (high - low) / most.max(1) as f64;
        let power = least.log10().floor() as i32;
        let (digit, power) = [(1, power), (2, power), (5, power), (1, power + 1)]
            .into_iter()
            .find(|&(digit, power)| multiple(digit, power) >= least * (1.0 - 1e-9))
            .unwrap_or((2, power + 1));
        let step = multiple(digit, power);
        // A value that is a multiple but for rounding is one.
        let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
        Self { values: (first..=last).map(|k| multiple(k * digit, power)).collect(), step }
    }

    /// The first and the last one.
    pub fn ends(&self) -> (f64, f64) {
        let first = self.values.first().copied().unwrap_or(0.0);
        (first, self.values.last().copied().unwrap_or(1.0))
    }

    /// A value with the digits that distinguish it from its neighbours.
    pub fn label(&self, value: f64) -> String {
        let largest = self.values.iter().fold(0f64, |most, v| most.max(v.abs()));
        if largest >= 1e6 || self.step < 5e-5 {
            return if value == 0.0 { "0".into() } else { format!("{value:.1e}") };
        }
        format!("{value:.*}", self.step.log10().floor().min(0.0).abs() as usize)
    }
}

/// A number times a power of ten, as the decimal fraction that is nearest.
fn multiple(number: i64, power: i32) -> f64 {
    let ten = 10f64.powi(power.abs());
    if power < 0 { number as f64 / ten } else { number as f64 * ten }
}

/// Round values on a logarithmic axis from `low` to `high`, both above 0, with their labels: powers of ten, and where
/// these are fewer than three, 2 and 5 times them too.
pub(super) fn decades(low: f64, high: f64) -> Vec<(f64, String)> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let within = |digits: &[i64]| -> Vec<(f64, String)> {
        let all = powers.clone().flat_map(|power| digits.iter().map(move |&digit| (digit, power)));
        let value = |(digit, power): (i64, i32)| (multiple(digit, power), format!("{digit}e{power}"));
        all.map(value).filter(|(v, _)| *v >= low * (1.0 - 1e-9) && *v <= high * (1.0 + 1e-9)).collect()
    };
    let powers = within(&[1]);
    if powers.len() < 3 { within(&[1, 2, 5]) } else { powers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        let labels = |low: f64, high: f64, most: usize| {
            let ticks = Ticks::new(low, high, most);
            ticks.values.iter().map(|&v| ticks.label(v)).collect::<Vec<_>>()
        };
        assert_eq!(labels(0.0, 2.3, 5), ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]);
        assert_eq!(labels(0.71, 0.94, 5), ["0.70", "0.75", "0.80", "0.85", "0.90", "0.95"]);
        assert_eq!(labels(0.0, 1.0, 5), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(0.0, 0.3, 3), ["0.0", "0.1", "0.2", "0.3"]);
        assert_eq!(labels(1.0, 40.0, 4), ["0", "10", "20", "30", "40"]);
        assert_eq!(labels(0.0, 3e-4, 3), ["0.0000", "0.0001", "0.0002", "0.0003"]);
        assert_eq!(labels(0.0, 2e-5, 2), ["0", "1.0e-5", "2.0e-5"]);
        assert_eq!(labels(-3.0, 4e9, 2), ["-2.0e9", "0", "2.0e9", "4.0e9"]);
        // One value is enclosed too.
        assert_eq!(labels(0.0, 0.0, 2), ["-0.5", "0.0", "0.5"]);
        for value in [0.3, -2.0, 1e-7, 7e12, LARGEST, -LARGEST] {
            let (first, last) = Ticks::new(value, value, 5).ends();
            assert!(first < value && value < last, "{value}: {first} {last}");
        }
        let whole = Ticks::new(-LARGEST, LARGEST, 4);
        assert!(whole.values.len() <= 6 && whole.values.iter().all(|v| v.is_finite()), "{whole:?}");
    }

    #[test]
    fn logarithmic_axes_have_powers_of_ten_or_more_values_where_these_are_few() {
        let labels = |low: f64, high: f64| decades(low, high).into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(labels(1e-3, 10.0), ["1e-3", "1e-2", "1e-1", "1e0", "1e1"]);
        assert_eq!(labels(1.5e-3, 6e-2), ["2e-3", "5e-3", "1e-2", "2e-2", "5e-2"]);
        assert_eq!(decades(1e-3, 10.0)[0].0, 1e-3);
    }

    #[test]
    fn what_is_not_finite_has_no_place() {
        assert!(drawable(0.0) && drawable(-1e30));
        assert!(![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e200].into_iter().any(drawable));
    }
}
