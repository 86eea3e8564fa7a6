//! Gradients on their way to the optimizer.

use super::buffer::{Buffer, Pod};
use super::kernels::{conv, norm};
use super::number::with_slice;
use super::simd::Lanes;
use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Elements that one task handles.
const PIECE: usize = 1 << 14;

/// The gradients of all trainable parameters after one backward pass, by parameter name and in the order of names.
pub(crate) type Gradients = BTreeMap<String, Gradient>;

/// The gradient of one parameter, in buffers of our own or as a tensor.
pub(crate) enum Gradient {
    F32(Elements<f32>),
    F64(Elements<f64>),
    Tensor(Tensor),
}

/// An element type whose gradients reach the optimizer.
pub(crate) trait Differentiable: Lanes {
    /// A gradient of these elements.
    fn gradient(elements: Elements<Self>) -> Gradient;
    /// The gradient's elements, if they are of this type.
    fn of_gradient(gradient: &Gradient) -> Option<&Elements<Self>>;
}

macro_rules! differentiable {
    ($t:ty, $variant:ident) => {
        impl Differentiable for $t {
            fn gradient(elements: Elements<Self>) -> Gradient {
                Gradient::$variant(elements)
            }
            fn of_gradient(gradient: &Gradient) -> Option<&Elements<Self>> {
                if let Gradient::$variant(elements) = gradient { Some(elements) } else { None }
            }
        }
    };
}
differentiable!(f32, F32);
differentiable!(f64, F64);

/// The elements of a gradient, in the order of its parameter.
pub(crate) enum Elements<T: Pod> {
    Full(Buffer<T>),
    /// Outer-product form, for a large matrix and a small batch.
    Outer(Outer<T>),
}

/// The matrix whose row k, column c is the sum over the images n of `d[n][k] x[n][c]`.
pub(crate) struct Outer<T: Pod> {
    pub images: usize,
    pub d: Buffer<T>,
    pub x: Buffer<T>,
}

/// Whether the gradient of a matrix of `len` elements stays a sum of outer products. Otherwise it is
/// materialised, which costs little more with more images or fewer elements.
pub(super) fn stays_factored(images: usize, len: usize) -> bool {
    const MOST_IMAGES: usize = 16;
    const LEAST_ELEMENTS: usize = 1 << 18;
    images <= MOST_IMAGES && len >= LEAST_ELEMENTS
}

impl<T: Lanes> Outer<T> {
    /// The gradient of a matrix, from the gradient of its product and from the other factor.
    pub fn elements(images: usize, d: &[T], x: Buffer<T>) -> Elements<T> {
        let outer = Self { images, d: Buffer::copy_of(d), x };
        if stays_factored(images, outer.len()) { Elements::Outer(outer) } else { Elements::Full(outer.full()) }
    }

    fn rows(&self) -> usize {
        self.d.len() / self.images.max(1)
    }

    fn columns(&self) -> usize {
        self.x.len() / self.images.max(1)
    }

    fn len(&self) -> usize {
        self.rows() * self.columns()
    }

    fn full(&self) -> Buffer<T> {
        let mut out = Buffer::arbitrary(self.len());
        out.par_chunks_mut(PIECE)
            .enumerate()
            .for_each(|(i, out)| conv::outer(&self.d, &self.x, self.images, i * PIECE, out));
        out
    }

    /// The sum of the squares without the matrix: over pairs of images, (d_n . d_m) (x_n . x_m). Where those cancel
    /// to little, or a product might overflow this type, by the matrix after all.
    fn square_sum(&self) -> f64 {
        let dot = |v: &[T], len: usize, n: usize, m: usize| -> f64 {
            let pairs = v[n * len..][..len].iter().zip(&v[m * len..][..len]);
            pairs.map(|(a, b)| a.to_f64() * b.to_f64()).sum()
        };
        let pairs: Vec<(usize, usize)> = (0..self.images).flat_map(|n| (0..=n).map(move |m| (n, m))).collect();
        let of = |&(n, m): &(usize, usize)| {
            let product = dot(&self.d, self.rows(), n, m) * dot(&self.x, self.columns(), n, m);
            if n == m { product } else { 2.0 * product }
        };
        let parts: Vec<f64> = pairs.par_iter().map(of).collect();
        let (sum, size): (f64, f64) = (parts.iter().sum(), parts.iter().map(|p| p.abs()).sum());
        let largest = |v: &[T]| v.iter().fold(0.0, |m: f64, v| m.max(v.to_f64().abs()));
        if sum > 1e-9 * size && largest(&self.d) * largest(&self.x) < 1e30 {
            return sum;
        }
        square_sum(&self.full())
    }
}

impl<T: Lanes> Elements<T> {
    pub fn len(&self) -> usize {
        match self {
            Self::Full(b) => b.len(),
            Self::Outer(o) => o.len(),
        }
    }

    /// Lets `f` read `len` of the elements from `from` on.
    pub fn piece<R>(&self, from: usize, len: usize, f: impl FnOnce(&[T]) -> R) -> R {
        match self {
            Self::Full(b) => f(&b[from..from + len]),
            Self::Outer(o) => {
                let mut piece = Buffer::arbitrary(len);
                conv::outer(&o.d, &o.x, o.images, from, &mut piece);
                f(&piece)
            }
        }
    }

    /// All elements, materialised.
    pub fn full(self) -> Buffer<T> {
        match self {
            Self::Full(b) => b,
            Self::Outer(o) => o.full(),
        }
    }

    /// self += other
    pub fn add(self, other: Self) -> Self {
        let mut sum = self.full();
        norm::choose().add_into(&mut sum, &other.full());
        Self::Full(sum)
    }

    /// Every element by `f`, which gets its index.
    fn map(self, f: impl Fn(usize, T) -> T + Sync) -> Self {
        let mut all = self.full();
        all.par_chunks_mut(PIECE).enumerate().for_each(|(i, piece)| {
            piece.iter_mut().enumerate().for_each(|(k, v)| *v = f(i * PIECE + k, *v));
        });
        Self::Full(all)
    }

    fn square_sum(&self) -> f64 {
        match self {
            Self::Full(b) => square_sum(b),
            Self::Outer(o) => o.square_sum(),
        }
    }
}

impl Gradient {
    /// As a tensor of this shape.
    pub fn into_tensor(self, shape: &Shape) -> Result<Tensor> {
        match self {
            Self::F32(n) => Tensor::from_slice(&n.full(), shape, &Device::Cpu),
            Self::F64(n) => Tensor::from_slice(&n.full(), shape, &Device::Cpu),
            Self::Tensor(t) => Ok(t),
        }
    }

    /// The sum of the squares, in f64.
    pub fn square_sum(&self) -> Result<f64> {
        Ok(match self {
            Self::F32(n) => n.square_sum(),
            Self::F64(n) => n.square_sum(),
            Self::Tensor(t) => t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?,
        })
    }

    /// The elements of a tensor: in buffers of our own, if it is on the CPU.
    pub fn of_tensor(t: &Tensor) -> Result<Self> {
        Ok(match (t.device().is_cpu(), t.dtype()) {
            (true, DType::F32) => Self::F32(Elements::Full(with_slice(t, |v| Ok(Buffer::copy_of(v)))?)),
            (true, DType::F64) => Self::F64(Elements::Full(with_slice(t, |v| Ok(Buffer::copy_of(v)))?)),
            _ => Self::Tensor(t.detach()),
        })
    }

    /// A copy on the CPU, of this shape.
    pub fn to_tensor(&self, shape: &Shape) -> Result<Tensor> {
        let len = shape.elem_count();
        match self {
            Self::F32(n) => n.piece(0, len, |v| Tensor::from_slice(v, shape, &Device::Cpu)),
            Self::F64(n) => n.piece(0, len, |v| Tensor::from_slice(v, shape, &Device::Cpu)),
            Self::Tensor(t) => t.to_device(&Device::Cpu)?.copy(),
        }
    }

    /// Multiplied by a number.
    pub fn scaled(self, by: f64) -> Result<Self> {
        Ok(match self {
            Self::F32(n) => Self::F32(n.map(|_, v| v * by as f32)),
            Self::F64(n) => Self::F64(n.map(|_, v| v * by)),
            Self::Tensor(t) => Self::Tensor(t.affine(by, 0.0)?),
        })
    }

    /// With elements of at most this absolute value; NaN stays NaN.
    pub fn clamped(self, most: f64) -> Result<Self> {
        Ok(match self {
            Self::F32(n) => Self::F32(n.map(|_, v| v.clamp(-most as f32, most as f32))),
            Self::F64(n) => Self::F64(n.map(|_, v| v.clamp(-most, most))),
            Self::Tensor(t) => Self::Tensor(t.clamp(-most, most)?),
        })
    }

    /// With strength (weight - start) added.
    pub fn pulled(self, weight: &Tensor, start: &Tensor, strength: f64) -> Result<Self> {
        let pull = |w: f64, s: f64| strength * (w - s);
        Ok(match self {
            Self::F32(n) => with_slice::<f32, _>(weight, |w| {
                with_slice::<f32, _>(start, |s| Ok(Self::F32(n.map(|i, v| v + pull(w[i].into(), s[i].into()) as f32))))
            })?,
            Self::F64(n) => with_slice::<f64, _>(weight, |w| {
                with_slice::<f64, _>(start, |s| Ok(Self::F64(n.map(|i, v| v + pull(w[i], s[i])))))
            })?,
            Self::Tensor(t) => Self::Tensor((t + (weight.detach() - start)?.affine(strength, 0.0)?)?),
        })
    }

    /// The sum of two gradients of one parameter.
    pub fn add(self, other: Self) -> Result<Self> {
        Ok(match (self, other) {
            (Self::F32(a), Self::F32(b)) => Self::F32(a.add(b)),
            (Self::F64(a), Self::F64(b)) => Self::F64(a.add(b)),
            (Self::Tensor(a), Self::Tensor(b)) => Self::Tensor((a + b)?),
            (Self::Tensor(t), own) | (own, Self::Tensor(t)) => Self::Tensor((own.into_tensor(t.shape())? + t)?),
            _ => bail!("the gradients of one variable have two types"),
        })
    }
}

/// In pieces whose order depends on the length alone; in each, sixteen parallel sums.
fn square_sum<T: Lanes>(values: &[T]) -> f64 {
    let of = |piece: &[T]| {
        let mut sums = [0.0; 16];
        let (whole, rest) = piece.as_chunks::<16>();
        for chunk in whole {
            for (sum, v) in sums.iter_mut().zip(chunk) {
                let v = v.to_f64();
                *sum += v * v;
            }
        }
        sums.iter().sum::<f64>() + rest.iter().map(|v| v.to_f64() * v.to_f64()).sum::<f64>()
    };
    let pieces: Vec<f64> = values.par_chunks(PIECE).map(of).collect();
    pieces.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outer(images: usize, rows: usize, columns: usize) -> Outer<f64> {
        let elements = |len: usize, seed: f64| {
            let values: Vec<f64> = (0..len).map(|i| (i as f64 * 0.7 + seed).sin()).collect();
            Buffer::copy_of(&values)
        };
        Outer { images, d: elements(images * rows, 1.0), x: elements(images * columns, 2.0) }
    }

    #[test]
    fn an_outer_gradient_is_the_matrix_it_stands_for() {
        for (images, rows, columns) in [(1, 1, 1), (3, 5, 7), (4, 130, 257), (2, 3, 20_000), (0, 4, 4)] {
            let o = outer(images, rows, columns);
            let entry = |k: usize, c: usize| (0..images).map(|n| o.d[n * rows + k] * o.x[n * columns + c]).sum::<f64>();
            let full = o.full();
            assert_eq!(full.len(), if images == 0 { 0 } else { rows * columns });
            for (i, v) in full.iter().enumerate() {
                assert!((v - entry(i / columns, i % columns)).abs() < 1e-14, "{images} {rows} {columns} {i}");
            }
            let squares: f64 = full.iter().map(|v| v * v).sum();
            assert!((o.square_sum() - squares).abs() <= 1e-12 * squares);
            assert!((square_sum(&full) - squares).abs() <= 1e-12 * squares);
            let elements = Elements::Outer(o);
            let (from, len) = (full.len() / 3, full.len() / 2);
            assert!(elements.piece(from, len, |piece| piece == &full[from..from + len]));
            assert!(elements.full()[..] == full[..]);
        }
    }

    #[test]
    fn gradients_are_scaled_cut_and_pulled_in_every_form() {
        let values = [0.5f64, -2.0, 3.0];
        let tensor = |v: &[f64]| Tensor::new(v, &Device::Cpu).unwrap();
        let (weight, start) = (tensor(&[1.0, 2.0, 3.0]), tensor(&[0.0, 2.0, 5.0]));
        for kind in 0..4 {
            let single = kind == 3;
            let cast = |t: &Tensor| if single { t.to_dtype(DType::F32).unwrap() } else { t.clone() };
            let gradient = || match kind {
                0 => Gradient::F64(Elements::Full(Buffer::copy_of(&values))),
                1 => {
                    let (d, x) = (Buffer::copy_of(&values), Buffer::copy_of(&[1.0]));
                    Gradient::F64(Elements::Outer(Outer { images: 1, d, x }))
                }
                2 => Gradient::Tensor(tensor(&values)),
                _ => Gradient::of_tensor(&cast(&tensor(&values))).unwrap(),
            };
            let of = |gradient: Gradient| {
                let t = gradient.to_tensor(&Shape::from(3)).unwrap().to_dtype(DType::F64).unwrap();
                assert_eq!(
                    gradient
                        .into_tensor(&Shape::from(3))
                        .unwrap()
                        .to_dtype(DType::F64)
                        .unwrap()
                        .to_vec1::<f64>()
                        .unwrap(),
                    t.to_vec1::<f64>().unwrap()
                );
                t.to_vec1::<f64>().unwrap()
            };
            assert_eq!(of(gradient().scaled(-2.0).unwrap()), [-1.0, 4.0, -6.0], "{kind}");
            assert_eq!(of(gradient().clamped(1.0).unwrap()), [0.5, -1.0, 1.0], "{kind}");
            assert_eq!(of(gradient().pulled(&cast(&weight), &cast(&start), 0.5).unwrap()), [1.0, -2.0, 2.0], "{kind}");
        }
        let bad = Gradient::F32(Elements::Full(Buffer::copy_of(&[f32::NAN])));
        assert!(bad.clamped(1.0).unwrap().square_sum().unwrap().is_nan());
    }

    #[test]
    fn nan_and_infinity_show_in_the_sum() {
        let mut o = outer(2, 3, 4);
        o.d[1] = f64::NAN;
        assert!(o.square_sum().is_nan());
        let mut o = outer(2, 3, 4);
        o.d.fill(0.0);
        assert_eq!(o.square_sum(), 0.0);
        // Two images whose parts cancel except for the last digits.
        let mut o = outer(2, 3, 4);
        for i in 0..3 {
            o.d[3 + i] = -o.d[i];
        }
        for i in 0..4 {
            o.x[4 + i] = o.x[i] * (1.0 + 1e-12);
        }
        let squares: f64 = o.full().iter().map(|v| v * v).sum();
        assert!(squares > 0.0 && o.square_sum() == square_sum(&o.full()));
        let huge = Outer { images: 1, d: Buffer::copy_of(&[1e30f32]), x: Buffer::copy_of(&[1e30f32]) };
        assert!(huge.square_sum().is_infinite());
    }
}
