//! The values that a pickle describes.

use std::rc::Rc;

use crate::error::tamed;
use crate::weights::elements;
use ::safetensors::Dtype;

/// The position of a value in the table.
pub(in crate::weights) type Id = u32;

/// A value that a pickle describes.
#[derive(Debug)]
pub(in crate::weights) enum Pickled {
    /// A value that no tensor is made of, described: None, a float, bytes, a set.
    Other(&'static str),
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function whose result is known without a call.
    Global(Callee),
    /// Any other class or function, or the result of a call of it: only its name is known, and it is never called.
    Opaque {
        module: Id,
        name: Id,
    },
    Storage(Rc<Storage>),
    Tensor(Box<View>),
}

/// An entry of the zip that holds elements.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::weights) struct Storage {
    pub key: String,
    pub dtype: Dtype,
    pub count: usize,
}

/// A tensor: some elements of a storage. Nothing about it has been checked.
#[derive(Debug)]
pub(in crate::weights) struct View {
    pub storage: Rc<Storage>,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub stride: Vec<usize>,
}

/// The functions that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::weights) enum Callee {
    /// A dictionary: `OrderedDict`, `defaultdict`, `dict`.
    Dict,
    RebuildTensor,
    RebuildParameter,
    /// A tensor with attributes, or of a class derived from torch's.
    RebuildFromType,
    Size,
    Storage(Dtype),
}

impl Callee {
    pub fn find(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict" | "defaultdict") | ("builtins" | "__builtin__", "dict") => Some(Self::Dict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Some(Self::RebuildParameter),
            ("torch._tensor", "_rebuild_from_type_v2") => Some(Self::RebuildFromType),
            ("torch", "Size") => Some(Self::Size),
            ("torch", storage) => elements::of_torch_storage(storage).map(Self::Storage),
            _ => None,
        }
    }
}

/// All values of a pickle, and which of them is the outermost.
#[derive(Debug)]
pub(in crate::weights) struct Values {
    pub table: Vec<Pickled>,
    pub root: Id,
}

impl Values {
    pub fn get(&self, id: Id) -> &Pickled {
        &self.table[id as usize]
    }

    /// A description for a message: "a whole number", "argparse.Namespace".
    pub fn describe(&self, id: Id) -> String {
        let text = match self.get(id) {
            Pickled::Other(what) => what,
            Pickled::Int(_) => "a whole number",
            Pickled::Text(_) => "a text",
            Pickled::Tuple(_) => "a tuple",
            Pickled::List(_) => "a list",
            Pickled::Dict(_) => "a dictionary",
            Pickled::Global(_) => "a class or function",
            Pickled::Storage(_) => "a storage",
            Pickled::Tensor(_) => "a tensor",
            &Pickled::Opaque { module, name } => {
                if matches!(self.get(name), Pickled::Text(name) if name == "_reconstruct") {
                    return "a NumPy array".into();
                }
                let part = |id| if let Pickled::Text(text) = self.get(id) { tamed(text, 60) } else { String::new() };
                return format!("{}.{}", part(module), part(name));
            }
        };
        text.into()
    }
}
