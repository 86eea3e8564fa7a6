//! Max-pool.

use crate::ops::buffer::Buffer;
use crate::ops::device::{geometry, strided};
use crate::ops::feature_map::{FeatureMap, Operation};
use crate::ops::geometry::{Geometry, Padding};
use crate::ops::gradient::Differentiable;
use crate::ops::graph::record;
use crate::ops::kernels::pool;
use crate::ops::memory_model::{SavedSymbolic, Symbolic};
use crate::ops::portable::pool::winners;
use crate::ops::value::{Recompute, Select, Value};
use candle_core::{Result, Tensor, bail};
use std::sync::Arc;

/// The maximum over windows of `kernel` x `kernel` pixels.
struct MaxPool {
    kernel: usize,
    stride: usize,
    padding: Padding,
}

impl FeatureMap {
    /// Max-pool over `kernel` x `kernel` pixels.
    pub fn max_pool(&self, kernel: usize, stride: usize, padding: Padding) -> Result<Self> {
        Self::apply(&MaxPool { kernel, stride, padding }, [self])
    }
}

impl MaxPool {
    /// With one channel per group.
    fn geometry(&self, dims: [usize; 4]) -> Result<Geometry> {
        let (kernel, c) = (self.kernel, dims[3]);
        // Positions in a window are counted in a byte.
        if kernel > 15 {
            bail!("a max-pool over more than 15 x 15 pixels is not supported, but this one is {kernel} x {kernel}");
        }
        Geometry::new(dims, (c, 1, kernel, kernel), self.stride, 1, c.max(1), self.padding)
    }
}

/// Whether the result can be recomputed from the positions that won: only if there is a pixel in every window.
fn is_recomputable(g: &Geometry) -> bool {
    g.pad.iter().all(|&p| p < g.kh.min(g.kw))
}

/// The result, from its recomputed input and the positions that won.
struct Pooled<T: Differentiable> {
    of: Arc<dyn Recompute<T>>,
    tap: Arc<Buffer<u8>>,
    g: Geometry,
}

impl<T: Differentiable> Recompute<T> for Pooled<T> {
    fn data(&self, select: Option<Select<T>>) -> Result<Buffer<T>> {
        let pooled = self.of.data(Some(&|x: &[T]| winners(x, &self.tap, &self.g)))?;
        Ok(match select {
            Some(select) => select(&pooled),
            None => pooled,
        })
    }

    fn is_selectable(&self) -> bool {
        false
    }

    fn depth(&self) -> usize {
        self.of.depth()
    }
}

impl Operation<1> for MaxPool {
    fn cpu<T: Differentiable>(&self, [x]: [&Value<T>; 1]) -> Result<Value<T>> {
        let g = self.geometry(x.dims)?;
        let mut y = Buffer::arbitrary(g.output_len());
        let mut tap = Buffer::arbitrary(y.len());
        pool::choose().forward(&x.data, &g, &mut y, &mut tap);
        let (input, tap) = (x.edge.clone(), Arc::new(tap));
        let of = x.recompute().filter(|of| of.is_selectable() && is_recomputable(&g));
        let recompute =
            of.map(|of| -> Arc<dyn Recompute<T>> { Arc::new(Pooled { of: of.clone(), tap: tap.clone(), g }) });
        let edge = record(&[x.edge.as_ref()], move |d| {
            if let Some(input) = input {
                input.with(g.input_len(), |dx, add| {
                    pool::choose().gradient(&d, &tap, &g, dx, add);
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        Ok(Value::new(y, [g.n, g.oh, g.ow, g.c], edge).recomputed_by(recompute))
    }

    /// The maximum over the window's positions, each a strided slice: differentiable, at k * k passes.
    fn device(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        let (kernel, c) = (self.kernel, x.dim(1)?);
        let g = geometry(x, (c, 1, kernel, kernel), (self.stride, 1, c.max(1)), self.padding)?;
        let [top, left, bottom, right] = g.pad;
        let x = if g.pad == [0; 4] {
            x.clone()
        } else {
            // Padding must not win: it gets the lowest finite f32, and the image itself stays as it is.
            let (_, _, h, w) = x.dims4()?;
            let (rows, columns) = (top + h + bottom, left + w + right);
            let mut border = vec![f32::MIN; rows * columns];
            for row in border.chunks_exact_mut(columns).skip(top).take(h) {
                row[left..left + w].fill(0.0);
            }
            let border = Tensor::from_vec(border, (1, 1, rows, columns), x.device())?.to_dtype(x.dtype())?;
            x.pad_with_zeros(2, top, bottom)?.pad_with_zeros(3, left, right)?.broadcast_add(&border)?
        };
        let mut best: Option<Tensor> = None;
        for a in 0..kernel {
            for b in 0..kernel {
                let tap = strided(&strided(&x, 2, a, g.oh, self.stride)?, 3, b, g.ow, self.stride)?;
                best = Some(match best {
                    None => tap,
                    // The first of equals wins, as in the CPU kernel; `maximum` would share the gradient.
                    Some(best) => tap.gt(&best)?.where_cond(&tap, &best)?,
                });
            }
        }
        match best {
            Some(best) => Ok(best),
            None => bail!("a pool over no pixels"),
        }
    }

    fn symbolic(&self, [x]: [&Symbolic; 1]) -> Result<Symbolic> {
        let g = self.geometry(x.dims)?;
        let (y, tap) = (x.tape.allocate(g.output_len()), Arc::new(x.tape.allocate_bytes(g.output_len())));
        let recompute =
            x.recompute.as_ref().filter(|of| of.selectable && is_recomputable(&g)).map(|of| SavedSymbolic {
                recomputed: Some(g.output_len()),
                held: of.held.iter().chain([&tap]).cloned().collect(),
                selectable: false,
                depth: of.depth,
                multiply_adds: of.multiply_adds,
            });
        Ok(Symbolic { recompute, ..x.record_simple_with([g.n, g.oh, g.ow, g.c], y, Some(tap)) })
    }
}
