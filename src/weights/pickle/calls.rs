//! The results of the few known calls in a pickle, computed without executing anything.

use std::rc::Rc;

use super::values::{Callee, Id, Pickled, Storage, View};
use super::{EXTENSION, MAX_KEY, Machine, Problem};
use crate::weights::MAX_RANK;

impl Machine<'_> {
    /// The result of a call, if it is one of the known ones; nothing is executed.
    pub(super) fn call(&mut self, callee: Id, arguments: Id) -> Result<Id, Problem> {
        let Pickled::Tuple(arguments) = &self.table[arguments as usize] else {
            return Err("the arguments of a call are not a tuple".into());
        };
        let value = match &self.table[callee as usize] {
            &Pickled::Opaque { module, name } => Pickled::Opaque { module, name },
            Pickled::Other(EXTENSION) => Pickled::Other(EXTENSION),
            &Pickled::Global(callee) => match self.known(callee, arguments) {
                Known::New(value) => value,
                Known::Existing(id) => return Ok(id),
            },
            _ => return Err("the called object is not a function".into()),
        };
        self.table.push(value);
        Ok(self.table.len() as Id - 1)
    }

    /// The result of a known function. Unexpected arguments give a value that is no tensor and no error, since the
    /// value may lie where no tensor is looked for.
    fn known(&self, callee: Callee, arguments: &[Id]) -> Known {
        let other = |what| Known::New(Pickled::Other(what));
        match (callee, arguments) {
            (Callee::Dict, [] | [_]) if arguments.iter().all(|&id| self.is_factory(id)) => {
                Known::New(Pickled::Dict(Vec::new()))
            }
            (Callee::Dict, _) => other("a dictionary made of another"),
            (Callee::RebuildTensor, &[storage, offset, shape, stride, _, _, ref rest @ ..]) => {
                match &self.table[storage as usize] {
                    Pickled::Storage(storage) if rest.iter().all(|&id| self.is_nothing(id)) => {
                        match (self.size(offset), self.sizes(shape), self.sizes(stride)) {
                            (Some(offset), Some(shape), Some(stride)) => {
                                let storage = Rc::clone(storage);
                                Known::New(Pickled::Tensor(Box::new(View { storage, offset, shape, stride })))
                            }
                            _ => other("a tensor whose shape and strides are not at most 16 lengths"),
                        }
                    }
                    Pickled::Storage(_) => other("a tensor with a conjugate or negative view"),
                    // An element type that is not read.
                    &Pickled::Opaque { module, name } => Known::New(Pickled::Opaque { module, name }),
                    _ => other("a tensor without a storage"),
                }
            }
            (Callee::RebuildParameter, &[data, ..]) => Known::Existing(data),
            (Callee::RebuildFromType, &[function, _, arguments, _]) => {
                match (&self.table[function as usize], &self.table[arguments as usize]) {
                    (&Pickled::Global(function), Pickled::Tuple(arguments)) if function != Callee::RebuildFromType => {
                        self.known(function, arguments)
                    }
                    (&Pickled::Opaque { module, name }, _) => Known::New(Pickled::Opaque { module, name }),
                    _ => other("a tensor of a derived class"),
                }
            }
            (Callee::Size, &[sizes]) => Known::Existing(sizes),
            (Callee::RebuildTensor | Callee::RebuildParameter | Callee::RebuildFromType | Callee::Size, _) => {
                other("a tensor of too few arguments")
            }
            (Callee::Storage(_), _) => other("a storage"),
        }
    }

    /// Whether it is an argument of a `defaultdict`: the class of its values, or None.
    fn is_factory(&self, id: Id) -> bool {
        matches!(self.table[id as usize], Pickled::Global(_) | Pickled::Opaque { .. } | Pickled::Other("None"))
    }

    /// Whether it is an empty dictionary or None.
    fn is_nothing(&self, id: Id) -> bool {
        match &self.table[id as usize] {
            Pickled::Dict(entries) => entries.is_empty(),
            value => matches!(value, Pickled::Other("None")),
        }
    }

    /// The storage that `("storage", class, key, device, count)` stands for.
    pub(super) fn storage(&self, id: Id) -> Result<Pickled, Problem> {
        let Some(&[tag, class, key, _device, count]) = self.items(id) else {
            return Ok(Pickled::Other("an unsupported persistent id"));
        };
        let (tag, key) = (&self.table[tag as usize], &self.table[key as usize]);
        let (Pickled::Text(tag), Pickled::Text(key)) = (tag, key) else {
            return Ok(Pickled::Other("an unsupported persistent id"));
        };
        Ok(match (tag.as_str(), &self.table[class as usize], self.size(count)) {
            ("storage", &Pickled::Global(Callee::Storage(dtype)), Some(count)) => {
                // Every reference copies the key, which is short in real files.
                if key.len() > MAX_KEY {
                    return Err(format!("refused: the key of a storage has more than {MAX_KEY} bytes"));
                }
                Pickled::Storage(Rc::new(Storage { key: key.clone(), dtype, count }))
            }
            ("storage", &Pickled::Opaque { module, name }, _) => Pickled::Opaque { module, name },
            _ => Pickled::Other("an unsupported persistent id"),
        })
    }

    /// A length, an offset or a stride.
    fn size(&self, id: Id) -> Option<usize> {
        if let Pickled::Int(n) = self.table[id as usize] { usize::try_from(n).ok() } else { None }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        let items = self.items(id).filter(|items| items.len() <= MAX_RANK)?;
        items.iter().map(|&id| self.size(id)).collect()
    }
}

/// The result of a call.
enum Known {
    New(Pickled),
    /// A value that is in the table already.
    Existing(Id),
}
