//! The option --strategy.

use candle_finetune::Strategy;

/// A strategy, or the advisor's.
#[derive(Clone, Copy)]
pub enum Choice {
    Auto,
    Named(Strategy),
}

impl std::str::FromStr for Choice {
    type Err = candle_finetune::Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name == "auto" { Ok(Self::Auto) } else { name.parse().map(Self::Named) }
    }
}
