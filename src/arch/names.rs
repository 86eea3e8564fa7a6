//! Parses architecture names and suggests close ones.

use super::Arch;
use crate::error::{Error, Result, distance, shown};
use std::str::FromStr;

impl FromStr for Arch {
    type Err = Error;

    /// # Errors
    /// [`Error::UnknownArch`] with the nearest known names, or with the families where no name is near.
    fn from_str(name: &str) -> Result<Self> {
        if let Some(arch) = Self::all().iter().find(|arch| arch.name() == name) {
            return Ok(*arch);
        }
        Err(Self::unknown(name))
    }
}

impl Arch {
    /// The error for a name that no architecture has.
    pub(crate) fn unknown(name: &str) -> Error {
        // The name may come from a file: only the start of a long text is compared, as a megabyte would take a minute.
        let name = shown(name);
        let plain = name.to_lowercase().replace('-', "_");
        let mut near: Vec<(usize, &str)> = Self::all()
            .iter()
            .map(|arch| (distance(arch.name(), &plain), arch.name()))
            .filter(|&(distance, known)| is_near(known, &plain, distance))
            .collect();
        near.sort_by_key(|&(distance, _)| distance);
        let nearest = near.into_iter().take(3).map(|(_, known)| known.to_owned()).collect();
        Error::UnknownArch { name, nearest, families: &FAMILIES }
    }
}

/// The families, each with one of its members.
const FAMILIES: [&str; 7] = [
    "ResNet (resnet50)",
    "Wide ResNet (wide_resnet50_2)",
    "ResNeXt (resnext50_32x4d)",
    "ResNet for 32 x 32 pixels (cifar_resnet20)",
    "VGG (vgg16_bn)",
    "EfficientNet (efficientnet_b0)",
    "EfficientNet-Lite (tf_efficientnet_lite0)",
];

/// Whether a name may be a misspelling of another: one begins with the other, or few letters differ.
fn is_near(known: &str, name: &str, distance: usize) -> bool {
    let begins = name.len() >= 3 && (known.starts_with(name) || name.starts_with(known));
    begins || distance * 3 <= known.len().max(name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_unknown_ones_get_neighbours() {
        for arch in Arch::all() {
            assert_eq!(arch.name().parse::<Arch>().unwrap(), *arch);
        }
        let nearest = |name: &str| match name.parse::<Arch>().unwrap_err() {
            Error::UnknownArch { nearest, .. } => nearest,
            other => panic!("{other}"),
        };
        for (name, meant) in [
            ("resnet81", "resnet18"),
            ("ResNet-50", "resnet50"),
            ("resnet50.a1_in1k", "resnet50"),
            ("resnet", "resnet18"),
            ("vgg", "vgg11"),
            ("efficientnet_lite0", "tf_efficientnet_lite0"),
            ("efficientnet", "efficientnet_b0"),
            ("efficientnet_b9", "efficientnet_b0"),
        ] {
            assert!(nearest(name).iter().any(|near| near == meant), "{name}: {:?}", nearest(name));
        }
        // If no name is close, the closest one is no help.
        for name in
            ["vit_base_patch16_224", "densenet121", "mobilenetv3_small_100", "convnext_tiny", "alexnet", "x", ""]
        {
            let error = name.parse::<Arch>().unwrap_err();
            let text = error.to_string();
            assert!(matches!(&error, Error::UnknownArch { nearest, .. } if nearest.is_empty()), "{text}");
            assert!(text.contains("VGG (vgg16_bn)") && text.contains("Arch::all"), "{text}");
        }
    }

    #[test]
    fn every_family_is_named_by_one_of_its_members() {
        for family in FAMILIES {
            let member = family.split(['(', ')']).nth(1).unwrap();
            member.parse::<Arch>().unwrap();
        }
    }
}
