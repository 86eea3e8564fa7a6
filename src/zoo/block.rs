//! A model as one block of a network.

use super::asked::{Request, build};
use super::row::{Features, Row};
use crate::blueprint::Limits;
use crate::error::{Error, Result};
use crate::nn::{Builder, Custom};
use crate::params::{Facts, Slot};
use candle_core::{DType, Tensor};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The name of the one block and of its stage.
pub(super) const BLOCK: &str = "network";

/// The tensors that a model requests, with their facts.
pub(super) struct Recorded {
    tensors: Vec<(String, Vec<usize>, Facts)>,
}

impl Recorded {
    /// Found out once, since some models compute with all their weights when they are built.
    pub fn known(row: &'static Row) -> Result<Arc<Self>> {
        static KNOWN: Mutex<BTreeMap<&str, Arc<Recorded>>> = Mutex::new(BTreeMap::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recorded) = known.get(row.name) {
            return Ok(recorded.clone());
        }
        let recorded = Arc::new(Self::of(row)?);
        known.insert(row.name, recorded.clone());
        Ok(recorded)
    }

    fn of(row: &Row) -> Result<Self> {
        let request = Request::of(row)?;
        let facts = request.facts(row)?;
        let tensors = request.tensors.into_iter().zip(facts).map(|(asked, facts)| (asked.name, asked.shape, facts));
        Ok(Self { tensors: tensors.collect() })
    }

    /// The number of trainable elements.
    pub fn parameters(&self) -> usize {
        let learn = self.tensors.iter().filter(|(_, _, facts)| !facts.is_statistic());
        learn.map(|(_, shape, _)| shape.iter().product::<usize>()).sum()
    }

    pub fn has_batch_norms(&self) -> bool {
        self.tensors.iter().any(|(_, _, facts)| facts.is_statistic())
    }

    /// The network's limits.
    pub fn limits(&self, row: &Row) -> Limits {
        let statistics = "candle-transformers builds its batch norms with fixed statistics; use \
                          `BatchNormMode::FrozenStats` or `Frozen`";
        Limits {
            learning: row.family.cut,
            sizes: row.family.sizes,
            batch_statistics: self.has_batch_norms().then_some(statistics),
            parts: Some(
                "it is one block, since candle-transformers gives no map inside it; use `FreezePolicy::Nothing`, \
                 `Backbone`, or `Named` with its tensors",
            ),
        }
    }

    /// Adds the block.
    pub fn add(self: &Arc<Self>, row: &'static Row, b: &mut Builder<'_>) -> Result<()> {
        b.block(BLOCK, BLOCK, |b| {
            b.opaque = true;
            let (mut tensors, mut learns) = (BTreeMap::new(), false);
            for (name, shape, facts) in &self.tensors {
                let slot = b.slot(name.clone(), shape.clone(), *facts)?;
                learns |= !matches!(slot, Slot::Frozen(_));
                if slot.tensor().dtype() != DType::F32 {
                    let why = "candle-transformers' models have constants and layer norms for f32 alone; load it in `DType::F32`";
                    return Err(Error::unsupported(row.name, "compute in f64", why));
                }
                tensors.insert(name.clone(), slot.tensor().clone());
            }
            let model = Model { row, tensors, learns, built: OnceLock::new() };
            Ok(Custom { forward: Box::new(move |images| model.forward(images)) })
        })
    }
}

struct Model {
    row: &'static Row,
    tensors: BTreeMap<String, Tensor>,
    learns: bool,
    built: OnceLock<Features>,
}

impl Model {
    fn forward(&self, images: &Tensor) -> candle_core::Result<Tensor> {
        if self.learns {
            // Some models compute weights of weights when they are built. Built once, they would go on with the first
            // ones while their parts are trained.
            return build(self.row, &self.tensors)?(images);
        }
        match self.built.get() {
            Some(features) => features(images),
            None => {
                let features = build(self.row, &self.tensors)?;
                self.built.get_or_init(|| features)(images)
            }
        }
    }
}
