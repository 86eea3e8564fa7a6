//! What calls would return, as far as that is known without calling anything.

use std::rc::Rc;

use super::values::{Callee, Id, Node, Storage, View};
use super::{EXTENSION, MAX_KEY, Machine, Problem};
use crate::weights::MAX_RANK;

impl Machine<'_> {
    /// What a call would return, as far as that is known without calling anything.
    pub(super) fn call(&mut self, callee: Id, arguments: Id) -> Result<Id, Problem> {
        let Node::Tuple(arguments) = &self.nodes[arguments as usize] else {
            return Err("the arguments of a call are not a tuple".into());
        };
        let node = match &self.nodes[callee as usize] {
            &Node::Opaque { module, name } => Node::Opaque { module, name },
            Node::Other(EXTENSION) => Node::Other(EXTENSION),
            &Node::Global(callee) => match self.known(callee, arguments) {
                Known::Made(node) => node,
                Known::There(id) => return Ok(id),
            },
            _ => return Err("a call of what is not a function".into()),
        };
        self.nodes.push(node);
        Ok(self.nodes.len() as Id - 1)
    }

    /// What a known function would return. Arguments that do not fit give a value that is no tensor, for it may lie
    /// where none is looked for.
    fn known(&self, callee: Callee, arguments: &[Id]) -> Known {
        let other = |what| Known::Made(Node::Other(what));
        match (callee, arguments) {
            (Callee::Dict, [] | [_]) if arguments.iter().all(|&id| self.is_factory(id)) => {
                Known::Made(Node::Dict(Vec::new()))
            }
            (Callee::Dict, _) => other("a dictionary made of another"),
            (Callee::RebuildTensor, &[storage, offset, shape, stride, _, _, ref rest @ ..]) => {
                match &self.nodes[storage as usize] {
                    Node::Storage(storage) if rest.iter().all(|&id| self.is_nothing(id)) => {
                        match (self.size(offset), self.sizes(shape), self.sizes(stride)) {
                            (Some(offset), Some(shape), Some(stride)) => {
                                let storage = Rc::clone(storage);
                                Known::Made(Node::Tensor(Box::new(View { storage, offset, shape, stride })))
                            }
                            _ => other("a tensor whose shape and strides are not at most 16 lengths"),
                        }
                    }
                    Node::Storage(_) => other("a tensor with a conjugate or negative view"),
                    // Elements of a type that is not read.
                    &Node::Opaque { module, name } => Known::Made(Node::Opaque { module, name }),
                    _ => other("a tensor without a storage"),
                }
            }
            (Callee::RebuildParameter, &[data, ..]) => Known::There(data),
            (Callee::RebuildFromType, &[function, _, arguments, _]) => {
                match (&self.nodes[function as usize], &self.nodes[arguments as usize]) {
                    (&Node::Global(function), Node::Tuple(arguments)) if function != Callee::RebuildFromType => {
                        self.known(function, arguments)
                    }
                    (&Node::Opaque { module, name }, _) => Known::Made(Node::Opaque { module, name }),
                    _ => other("a tensor of a derived class"),
                }
            }
            (Callee::Size, &[sizes]) => Known::There(sizes),
            (Callee::RebuildTensor | Callee::RebuildParameter | Callee::RebuildFromType | Callee::Size, _) => {
                other("a tensor of too few arguments")
            }
            (Callee::Storage(_), _) => other("a storage"),
        }
    }

    /// What a `defaultdict` is made of: the class of its values, or nothing.
    fn is_factory(&self, id: Id) -> bool {
        matches!(self.nodes[id as usize], Node::Global(_) | Node::Opaque { .. } | Node::Other("None"))
    }

    /// An empty dictionary, or None.
    fn is_nothing(&self, id: Id) -> bool {
        match &self.nodes[id as usize] {
            Node::Dict(entries) => entries.is_empty(),
            node => matches!(node, Node::Other("None")),
        }
    }

    /// The storage that `("storage", class, key, device, count)` stands for.
    pub(super) fn storage(&self, id: Id) -> Result<Node, Problem> {
        let Some(&[tag, class, key, _device, count]) = self.items(id) else {
            return Ok(Node::Other("a reference out of the pickle"));
        };
        let (tag, key) = (&self.nodes[tag as usize], &self.nodes[key as usize]);
        let (Node::Text(tag), Node::Text(key)) = (tag, key) else {
            return Ok(Node::Other("a reference out of the pickle"));
        };
        Ok(match (tag.as_str(), &self.nodes[class as usize], self.size(count)) {
            ("storage", &Node::Global(Callee::Storage(kind)), Some(count)) => {
                // Each reference copies the key, which is a small number in real files.
                if key.len() > MAX_KEY {
                    return Err(format!("refused: the key of a storage has more than {MAX_KEY} bytes"));
                }
                Node::Storage(Rc::new(Storage { key: key.clone(), kind, count }))
            }
            ("storage", &Node::Opaque { module, name }, _) => Node::Opaque { module, name },
            _ => Node::Other("a reference out of the pickle"),
        })
    }

    /// A length, an offset or a stride.
    fn size(&self, id: Id) -> Option<usize> {
        if let Node::Int(n) = self.nodes[id as usize] { usize::try_from(n).ok() } else { None }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        let items = self.items(id).filter(|items| items.len() <= MAX_RANK)?;
        items.iter().map(|&id| self.size(id)).collect()
    }
}

/// The outcome of a call.
enum Known {
    Made(Node),
    /// A value that is there already.
    There(Id),
}
