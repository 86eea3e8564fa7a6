//! The values that a pickle describes.

use std::rc::Rc;

use super::Problem;
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
    Global(Callee),
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

/// The globals that are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::weights) enum Callee {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Storage(Kind),
}

impl Callee {
    pub fn find(module: &str, name: &str) -> Result<Self, Problem> {
        if let ("torch", Some(kind)) = (module, Kind::from_torch_storage(name)) {
            return Ok(Self::Storage(kind));
        }
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Self::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Ok(Self::RebuildParameter),
            ("torch", "Size") => Ok(Self::Size),
            _ => {
                let name: String = format!("{module}.{name}").chars().take(100).collect();
                Err(format!(
                    "refused: {}; a file of weights needs only tensors, their storages and OrderedDict. If you trust \
                     the file, save its plain state dict again with safetensors.torch.save_file",
                    name.escape_debug()
                ))
            }
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
}
