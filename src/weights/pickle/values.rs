//! The values that a pickle describes.

use std::rc::Rc;

use crate::error::tamed;
use crate::weights::elements::Kind;

/// The position of a value in the table.
pub(in crate::weights) type Id = u32;

/// A value that a pickle describes.
#[derive(Debug)]
pub(in crate::weights) enum Node {
    /// Something that no tensor is made of: nothing, a float, bytes, a set.
    Other(&'static str),
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A function whose result is known without calling it.
    Global(Callee),
    /// Any other class or function, or what calling it would make: known by name only, never called.
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
    pub kind: Kind,
    pub count: usize,
}

/// A tensor: some elements of a storage. Nothing about it has been proved.
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
    Storage(Kind),
}

impl Callee {
    pub fn find(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("collections", "OrderedDict" | "defaultdict") | ("builtins" | "__builtin__", "dict") => Some(Self::Dict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Some(Self::RebuildParameter),
            ("torch._tensor", "_rebuild_from_type_v2") => Some(Self::RebuildFromType),
            ("torch", "Size") => Some(Self::Size),
            ("torch", storage) => Kind::from_torch_storage(storage).map(Self::Storage),
            _ => None,
        }
    }
}

/// All values of a pickle, and which of them is the outermost.
#[derive(Debug)]
pub(in crate::weights) struct Values {
    pub nodes: Vec<Node>,
    pub root: Id,
}

impl Values {
    pub fn get(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// What a value is, for a message: "a whole number", "argparse.Namespace".
    pub fn describe(&self, id: Id) -> String {
        let text = match self.get(id) {
            Node::Other(what) => what,
            Node::Int(_) => "a whole number",
            Node::Text(_) => "a text",
            Node::Tuple(_) => "a tuple",
            Node::List(_) => "a list",
            Node::Dict(_) => "a dictionary",
            Node::Global(_) => "a class or function",
            Node::Storage(_) => "a storage",
            Node::Tensor(_) => "a tensor",
            &Node::Opaque { module, name } => {
                if matches!(self.get(name), Node::Text(name) if name == "_reconstruct") {
                    return "a NumPy array".into();
                }
                let part = |id| if let Node::Text(text) = self.get(id) { tamed(text, 60) } else { String::new() };
                return format!("{}.{}", part(module), part(name));
            }
        };
        text.into()
    }
}
