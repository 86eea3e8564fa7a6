//! Average pools: over windows of one size, and over windows that divide the image.

use crate::ops::buffer::Buffer;
use crate::ops::feature_map::{FeatureMap, Operation};
use crate::ops::geometry::{Geometry, Padding};
use crate::ops::gradient::Differentiable;
use crate::ops::graph::record;
use crate::ops::memory_model::Symbolic;
use crate::ops::portable::pool::{self, Windows, adaptive_windows};
use crate::ops::value::Value;
use candle_core::{Device, Result, Tensor, bail};

/// Which windows are averaged.
enum AveragePool {
    /// Windows of `kernel` x `kernel` pixels without padding (PyTorch's AvgPool2d).
    Sized { kernel: usize, stride: usize },
    /// Windows that divide the image into `rows` x `columns` (PyTorch's AdaptiveAvgPool2d).
    Adaptive { rows: usize, columns: usize },
}

impl FeatureMap {
    /// Average pool over `kernel` x `kernel` pixels, no padding.
    pub fn average_pool(&self, kernel: usize, stride: usize) -> Result<Self> {
        Self::apply(&AveragePool::Sized { kernel, stride }, [self])
    }

    /// Averages down (or repeats up) to `rows` x `columns` pixels.
    pub fn adaptive_average(&self, rows: usize, columns: usize) -> Result<Self> {
        Self::apply(&AveragePool::Adaptive { rows, columns }, [self])
    }
}

impl AveragePool {
    /// The windows of rows and of columns.
    fn windows(&self, [n, h, w, c]: [usize; 4]) -> Result<[Windows; 2]> {
        match *self {
            Self::Sized { kernel, stride } => {
                let kernels = (c, 1, kernel, kernel);
                let g = Geometry::new([n, h, w, c], kernels, stride, 1, c.max(1), Padding::Even(0))?;
                let windows = |count: usize| (0..count).map(|i| (i * stride, i * stride + kernel)).collect();
                Ok([windows(g.oh), windows(g.ow)])
            }
            Self::Adaptive { rows, columns } => {
                if rows == 0 || columns == 0 || h == 0 || w == 0 {
                    bail!("an average pool from {h} x {w} to {rows} x {columns} pixels is empty");
                }
                Ok([adaptive_windows(h, rows), adaptive_windows(w, columns)])
            }
        }
    }
}

impl Operation<1> for AveragePool {
    fn cpu<T: Differentiable>(&self, [x]: [&Value<T>; 1]) -> Result<Value<T>> {
        let [rows, columns] = self.windows(x.dims)?;
        let dims = [x.dims[0], rows.len(), columns.len(), x.dims[3]];
        let mut y = Buffer::arbitrary(dims.iter().product());
        pool::average(&x.data, x.dims, &rows, &columns, &mut y);
        let (input, from) = (x.edge.clone(), x.dims);
        let edge = record(&[x.edge.as_ref()], move |d| {
            let mut dx = Buffer::arbitrary(from.iter().product());
            pool::average_gradient(&d, from, &rows, &columns, &mut dx);
            if let Some(input) = input {
                input.give(dx);
            }
            Ok(())
        })?;
        Ok(Value::new(y, dims, edge))
    }

    /// An average over windows is a matrix product from either side.
    fn device(&self, [x]: [&Tensor; 1]) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let [rows, columns] = self.windows([n, h, w, c])?;
        let weights = |size: usize, windows: &Windows| -> Result<Tensor> {
            let mut m = vec![0f64; size * windows.len()];
            for (j, &(from, to)) in windows.iter().enumerate() {
                for i in from..to {
                    m[i * windows.len() + j] = 1.0 / (to - from) as f64;
                }
            }
            // Rounded here, since not every device supports f64.
            Tensor::from_vec(m, (size, windows.len()), &Device::Cpu)?.to_dtype(x.dtype())?.to_device(x.device())
        };
        let across = x.reshape((n * c * h, w))?.matmul(&weights(w, &columns)?)?;
        let transposed = across.reshape((n * c, h, columns.len()))?.transpose(1, 2)?.contiguous()?;
        let down = transposed.reshape((n * c * columns.len(), h))?.matmul(&weights(h, &rows)?)?;
        down.reshape((n, c, columns.len(), rows.len()))?.transpose(2, 3)?.contiguous()
    }

    fn symbolic(&self, [x]: [&Symbolic; 1]) -> Result<Symbolic> {
        let [rows, columns] = self.windows(x.dims)?;
        Ok(x.record_simple([x.dims[0], rows.len(), columns.len(), x.dims[3]], None))
    }
}
