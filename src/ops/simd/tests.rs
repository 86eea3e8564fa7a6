//! Every vector operation against plain arithmetic, on all levels of this machine.

use super::{Job, Lanes, Level, Simd};

/// e^u over a slice, whole vectors first.
struct Exponentials<'a, T>(&'a [T], &'a mut [T]);
impl<T: Lanes> Job<T> for Exponentials<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let len = self.0.len();
        assert_eq!(len, self.1.len());
        for i in (0..len).step_by(S::LANES) {
            let n = S::LANES.min(len - i);
            // SAFETY: n elements from i on lie inside both slices.
            unsafe { s.store_part(self.1.as_mut_ptr().add(i), s.exp(s.load_part(self.0.as_ptr().add(i), n)), n) };
        }
    }
}

#[test]
fn exp_is_accurate_to_two_units() {
    for level in Level::available() {
        let u: Vec<f32> = (-8600..8800).map(|i| i as f32 * 0.01 + 0.000_37).collect();
        let mut y = vec![0.0; u.len()];
        f32::run(level, Exponentials(&u, &mut y));
        for (&u, &y) in u.iter().zip(&y) {
            let exact = f64::from(u).exp();
            assert!(
                (f64::from(y) - exact).abs() <= 2.0 * exact * f64::from(f32::EPSILON) / 2.0 * 1.5,
                "{level:?} {u} {y} {exact}"
            );
        }
        let u: Vec<f64> = (-7000..7000).map(|i| f64::from(i) * 0.1 + 0.000_37).collect();
        let mut y = vec![0.0; u.len()];
        f64::run(level, Exponentials(&u, &mut y));
        for (&u, &y) in u.iter().zip(&y) {
            // Without fused products the reduced argument is rounded once more.
            assert!((y / u.exp() - 1.0).abs() <= 1e-15, "{level:?} {u} {y}");
        }
    }
}

#[test]
fn exp_of_the_edges() {
    for level in Level::available() {
        let u = [f32::NEG_INFINITY, -1e30, -100.0, 0.0, 100.0, 1e30, f32::INFINITY, f32::NAN, 1.0];
        let mut y = [0.0; 9];
        f32::run(level, Exponentials(&u, &mut y));
        assert!(y[..3].iter().all(|&v| (0.0..1e-37).contains(&v)), "{y:?}");
        assert_eq!(y[3], 1.0);
        assert!(y[4..7].iter().all(|&v| v > 1e38), "{y:?}");
        assert!(y[7].is_nan() && (y[8] - std::f32::consts::E).abs() < 1e-6, "{y:?}");
    }
}

/// Partial loads and stores of every length, and the plain operations.
struct Parts;
impl<T: Lanes> Job<T> for Parts {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) {
        let element = |i: usize| T::from_f64(i as f64 + 1.0);
        for n in 0..=S::LANES {
            // Boxes of exactly n elements, so that a sanitizer or guard page would see a stray access.
            let from: Box<[T]> = (0..n).map(element).collect();
            let mut to: Box<[T]> = vec![T::zero(); n + 1].into();
            // SAFETY: both boxes hold n elements.
            unsafe { s.store_part(to.as_mut_ptr(), s.load_part(from.as_ptr(), n), n) };
            assert!((0..n).all(|i| to[i] == element(i)) && to[n] == T::zero());
        }
        let mut out = vec![T::zero(); S::LANES];
        let a: Vec<T> = (0..S::LANES).map(element).collect();
        let check = |v: S::V, out: &mut Vec<T>, f: &dyn Fn(f64) -> f64| {
            // SAFETY: `out` holds LANES elements.
            unsafe { s.store(out.as_mut_ptr(), v) };
            assert!(out.iter().zip(&a).all(|(y, a)| y.to_f64() == f(a.to_f64())));
        };
        // SAFETY: `a` holds LANES elements.
        let v = unsafe { s.load(a.as_ptr()) };
        let two = s.splat(T::from_f64(2.0));
        check(s.add(v, two), &mut out, &|a| a + 2.0);
        check(s.sub(v, two), &mut out, &|a| a - 2.0);
        check(s.mul(v, two), &mut out, &|a| a * 2.0);
        check(s.div(v, two), &mut out, &|a| a / 2.0);
        check(s.mul_add(v, two, v), &mut out, &|a| a * 3.0);
        check(s.max(v, two), &mut out, &|a| a.max(2.0));
        check(s.min(v, two), &mut out, &|a| a.min(2.0));
        check(s.keep(s.less(v, two), v), &mut out, &|a| if a < 2.0 { a } else { 0.0 });
        let nan = s.splat(T::from_f64(f64::NAN));
        check(s.max(nan, v), &mut out, &|a| a);
        check(s.min(nan, v), &mut out, &|a| a);
        check(s.keep(s.less(nan, v), v), &mut out, &|_| 0.0);
    }
}

#[test]
fn vectors_do_what_numbers_do() {
    for level in Level::available() {
        f32::run(level, Parts);
        f64::run(level, Parts);
    }
}

#[test]
fn the_environment_chooses_a_lower_level() {
    let best = *Level::available().last().unwrap();
    assert_eq!(Level::choose(None), best);
    assert_eq!(Level::choose(Some("")), best);
    assert_eq!(Level::choose(Some("portable")).name(), "portable");
    assert_eq!(Level::choose(Some("riscv")), best);
    for level in Level::available() {
        assert_eq!(Level::choose(Some(level.name())), level);
    }
}

/// Rows to columns.
struct Transposed;
impl<T: Lanes> Job<T> for Transposed {
    type Output = Vec<Vec<T>>;
    #[inline(always)]
    fn run<S: Simd<T = T>>(self, s: S) -> Vec<Vec<T>> {
        let mut rows = [s.zero(); 16];
        for (i, row) in rows.iter_mut().enumerate().take(S::LANES) {
            let elements: Vec<T> = (0..S::LANES).map(|j| T::from_f32((100 * i + j) as f32)).collect();
            // SAFETY: a vector's number of elements.
            *row = unsafe { s.load(elements.as_ptr()) };
        }
        s.transpose(&mut rows);
        let elements = |row: &S::V| {
            let mut elements = vec![T::ZERO; S::LANES];
            // SAFETY: as above.
            unsafe { s.store(elements.as_mut_ptr(), *row) };
            elements
        };
        rows[..S::LANES].iter().map(elements).collect()
    }
}

fn transposes<T: Lanes>(level: Level) {
    for (i, row) in T::run(level, Transposed).into_iter().enumerate() {
        for (j, element) in row.into_iter().enumerate() {
            assert_eq!(element.to_f64(), (100 * j + i) as f64, "{} {i} {j}", level.name());
        }
    }
}

#[test]
fn rows_become_columns() {
    for level in Level::available() {
        transposes::<f32>(level);
        transposes::<f64>(level);
    }
}
