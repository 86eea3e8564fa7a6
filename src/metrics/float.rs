//! Floats in JSON that may be infinite or NaN.

/// A float that may be infinite or NaN: JSON has no number for these, so they are written as text ("NaN", "inf").
pub(crate) mod any_float {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Any {
        Number(f64),
        Text(String),
    }

    impl From<f64> for Any {
        fn from(value: f64) -> Self {
            if value.is_finite() { Self::Number(value) } else { Self::Text(value.to_string()) }
        }
    }

    impl Any {
        pub(super) fn value(self) -> Option<f64> {
            match self {
                Self::Number(value) => Some(value),
                Self::Text(text) => text.parse().ok(),
            }
        }
    }

    #[allow(clippy::trivially_copy_pass_by_ref)] // the signature that serde calls
    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        Any::from(*value).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Any::deserialize(deserializer)?.value().ok_or_else(|| serde::de::Error::custom("a text that is not a number"))
    }
}

/// The same for a float that may be absent.
pub(crate) mod any_float_option {
    use super::any_float::Any;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::ref_option)] // the signature that serde calls
    pub(crate) fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(Any::from).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        let wrong = || serde::de::Error::custom("a text that is not a number");
        Option::<Any>::deserialize(deserializer)?.map(|any| any.value().ok_or_else(wrong)).transpose()
    }
}
