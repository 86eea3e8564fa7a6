//! Networks of candle-transformers as backbones.

mod asked;
mod block;
mod convnext;
mod reparameterized;
mod row;
mod table;
mod transformers;

use crate::blueprint::{Blueprint, Kind};
use crate::error::{Error, Result, nearest, shown};
use crate::input_spec::InputSpec;
use crate::nn::Builder;
use block::Recorded;
use row::Row;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

/// A network of [candle-transformers](https://crates.io/crates/candle-transformers) as a backbone, such as
/// "zoo/convnext_tiny".
///
/// Each is a network of one block: candle-transformers gives features or logits and no map in between. Its tensors have
/// the model's own names, so files from the hub load as they are, and a saved predictor's file holds what the model's own
/// constructor reads. Features are those of candle-transformers, bit for bit. They run on Candle's operations, on the CPU
/// too, and their memory is unknown to [`Plan::forecast`](crate::Plan::forecast).
///
/// Frozen features ([`Strategy::SmallSimilar`](crate::Strategy::SmallSimilar)) work with every network. The table lists
/// what else they support; the rest is refused with [`Error::Unsupported`](crate::Error::Unsupported) before training
/// begins. Batch norms keep their statistics, which are not parameters; their weights and biases are trained unless
/// frozen by [`BatchNormMode::Frozen`](crate::BatchNormMode::Frozen).
///
/// ```
/// use candle_finetune::{Backbone, FineTuner, Strategy, TensorDataset, ZooModel};
/// use candle_finetune::candle_core::{Device, Tensor};
///
/// let model: ZooModel = "zoo/convnext_atto".parse()?;
/// let backbone = Backbone::random(model, 1, &Device::Cpu)?.for_input_size(64, 64)?; // or weights from the hub
/// let images = Tensor::randn(0f32, 1.0, (8, 3, 64, 64), &Device::Cpu)?;
/// let train = TensorDataset::new(images, vec![0, 1, 0, 1, 0, 1, 0, 1], vec!["ant".into(), "bee".into()])?;
/// let tuned = FineTuner::new(backbone).strategy(Strategy::SmallSimilar).fit(&train, &train.clone())?;
/// assert_eq!(tuned.predictor.backbone().name(), "zoo/convnext_atto");
/// # Ok::<(), candle_finetune::Error>(())
/// ```
///
/// The weights on the hub have licences of their own, which their repositories state.
///
#[doc = include_str!("zoo/TABLE.md")]
#[derive(Clone, Copy)]
pub struct ZooModel(&'static Row);

impl ZooModel {
    /// Every network of the zoo.
    ///
    /// ```
    /// use candle_finetune::ZooModel;
    /// for model in ZooModel::all() {
    ///     println!("{model}: {} features, weights at {}", model.feature_dim(), model.hub_id());
    /// }
    /// # assert!(ZooModel::all().len() > 30);
    /// ```
    pub fn all() -> &'static [Self] {
        static ALL: OnceLock<Vec<ZooModel>> = OnceLock::new();
        let rows = || [convnext::ROWS, reparameterized::ROWS].into_iter().chain(transformers::ROWS).flatten();
        ALL.get_or_init(|| rows().map(ZooModel).collect())
    }

    /// The tables of this page as Markdown: what the networks of each family can do, and the facts of each network.
    ///
    /// # Errors
    /// If candle-transformers cannot build one of the models.
    ///
    /// ```
    /// # use candle_finetune::ZooModel;
    /// assert!(ZooModel::table()?.contains("zoo/convnext_tiny"));
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    pub fn table() -> Result<String> {
        let rows: Vec<&'static Row> = Self::all().iter().map(|model| model.0).collect();
        table::of(&rows)
    }

    /// Its name: "zoo/convnext_tiny".
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// The hub's repository of its weights, which states their licence.
    pub fn hub_id(&self) -> &'static str {
        self.0.hub
    }

    /// The number of features per image.
    pub fn feature_dim(&self) -> usize {
        self.0.feature_dim
    }

    /// The classifier's name: its tensors are `{classifier}.weight` and `{classifier}.bias`.
    pub fn classifier(&self) -> &'static str {
        self.0.classifier
    }

    /// The preprocessing of the weights on the hub.
    pub fn input_spec(&self) -> InputSpec {
        (self.0.spec)()
    }

    /// Whether its parameters can be trained: the backward pass reaches all of them. If not, a plan that trains them is
    /// refused; use the backbone frozen.
    pub fn is_trainable(&self) -> bool {
        self.0.family.cut.is_none()
    }

    /// The network without weights. Its tensors have the model's own names, which are those of the files on the hub.
    ///
    /// ```no_run
    /// use candle_finetune::{Backbone, Source, ZooModel, candle_core::Device};
    ///
    /// let model: ZooModel = "zoo/convnext_tiny".parse()?;
    /// let backbone = Backbone::from_file(model, "convnext_tiny.safetensors", &Device::Cpu)?;
    /// # #[cfg(feature = "hub")]
    /// // From the hub:
    /// let backbone = Backbone::load(Source::hub(model.hub_id()).blueprint(&model.blueprint()?), &Device::Cpu)?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// If candle-transformers cannot build the model.
    pub fn blueprint(&self) -> Result<Blueprint> {
        let row = self.0;
        let recorded = Recorded::known(row)?;
        let limits = recorded.limits(row);
        let build = move |b: &mut Builder<'_>| recorded.add(row, b);
        let blueprint = Blueprint::new(
            row.name,
            self.input_spec(),
            row.feature_dim,
            row.classifier,
            Kind::BuiltIn(String::new()),
            Arc::new(build),
        )?;
        Ok(blueprint.limited(limits))
    }
}

impl TryFrom<ZooModel> for Blueprint {
    type Error = Error;

    fn try_from(model: ZooModel) -> Result<Self> {
        model.blueprint()
    }
}

impl FromStr for ZooModel {
    type Err = Error;

    /// # Errors
    /// [`Error::UnknownArch`] with the nearest names.
    fn from_str(name: &str) -> Result<Self> {
        let found = Self::all().iter().find(|model| model.name() == name).copied();
        found.ok_or_else(|| Error::UnknownArch {
            name: shown(name),
            nearest: nearest(name, Self::all().iter().map(ZooModel::name), 3),
            families: &[],
        })
    }
}

impl PartialEq for ZooModel {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for ZooModel {}

impl fmt::Debug for ZooModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ZooModel({})", self.name())
    }
}

impl fmt::Display for ZooModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
