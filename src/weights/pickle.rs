//! A small machine for the pickles of `torch.save`: it builds plain data and never runs anything.
//!
//! A pickle is a program for a stack machine, and Python's own lets it call any function. This one knows the
//! instructions that saving tensors needs and the few globals of [`Callee`]; all else is refused by name. Values live
//! in one table and refer to each other by position, so that an object that is used a thousand times is stored once
//! and nothing grows faster than the pickle is long.

mod cursor;
mod values;

use std::collections::HashMap;
use std::rc::Rc;

pub(super) use values::{Id, Node, Storage, Values, View};

use cursor::Cursor;
use values::Callee;

/// Pickles of more bytes are refused; that of a large network with its optimizer has a megabyte.
pub(super) const MAX_BYTES: u64 = 32 << 20;

/// Instructions carried out, and so values made and positions remembered, at most.
const MAX_STEPS: usize = 500_000;

/// Values on the stack at once.
const MAX_STACK: usize = 100_000;

/// Bytes of the key of a storage, at most.
const MAX_KEY: usize = 64;

/// What is wrong with a pickle, in words.
pub(super) type Problem = String;

/// Runs a pickle to its end.
pub(super) fn run(bytes: &[u8]) -> Result<Values, Problem> {
    let mut machine = Machine {
        code: Cursor::new(bytes),
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    for _ in 0..MAX_STEPS {
        let start = machine.code.at();
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok(Values { nodes: machine.nodes, root }),
            Err(problem) => return Err(format!("{problem} (byte {start} of the pickle)")),
        }
        if machine.stack.len() > MAX_STACK {
            return Err(format!("refused: more than {MAX_STACK} values wait on the pickle's stack"));
        }
    }
    Err(format!("refused: the pickle has more than {MAX_STEPS} instructions"))
}

struct Machine<'a> {
    code: Cursor<'a>,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// Heights of the stack at which a list of arguments began.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    /// Carries out one instruction; the last one gives the outermost value.
    fn step(&mut self) -> Result<Option<Id>, Problem> {
        let [op] = self.code.array()?;
        match op {
            // PROTO, and FRAME, whose length says nothing that the bytes do not.
            0x80 => match self.code.array()? {
                [2..=4] => {}
                [protocol] => return Err(format!("pickle protocol {protocol} is not read, only 2 to 4")),
            },
            0x95 => drop(self.code.array::<8>()?),
            b'.' => return self.pop().map(Some),

            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),

            b'N' => self.push(Node::Other("None")),
            0x88 | 0x89 => self.push(Node::Other("a boolean")),
            b'J' => {
                let n = i32::from_le_bytes(self.code.array()?);
                self.push(Node::Int(n.into()));
            }
            b'K' => {
                let [n] = self.code.array()?;
                self.push(Node::Int(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.code.array()?);
                self.push(Node::Int(n.into()));
            }
            0x8a => {
                let [len] = self.code.array()?;
                let bytes = self.code.take(len.into())?;
                self.push(long(bytes));
            }
            b'G' => {
                self.code.array::<8>()?;
                self.push(Node::Other("a number"));
            }
            // Text, with four, one or eight bytes of length; then the byte strings of Python 2, and bytes.
            b'X' | 0x8c | 0x8d | b'U' | b'T' => {
                let len = self.code.length(op)?;
                let text = std::str::from_utf8(self.code.take(len)?).map_err(|_| "a text is not UTF-8")?;
                self.push(Node::Text(text.to_owned()));
            }
            b'B' | b'C' | 0x8e => {
                let len = self.code.length(op)?;
                self.code.take(len)?;
                self.push(Node::Other("bytes"));
            }

            b')' => self.push(Node::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items));
            }
            0x85..=0x87 => {
                let from = self.height_below(usize::from(op - 0x84))?;
                let items = self.stack.split_off(from);
                self.push(Node::Tuple(items));
            }
            b']' => self.push(Node::List(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(&items)?;
            }
            // EMPTY_SET, ADDITEMS, FROZENSET: sets may lie beside the tensors, and none of it is looked at.
            0x8f => self.push(Node::Other("a set")),
            0x90 => {
                self.pop_to_mark()?;
                let set = self.peek()?;
                expect(matches!(self.nodes[set as usize], Node::Other("a set")), "items for what is not a set")?;
            }
            0x91 => {
                self.pop_to_mark()?;
                self.push(Node::Other("a set"));
            }

            b'c' => {
                let (module, name) = (self.code.line()?, self.code.line()?);
                let callee = Callee::find(module, name)?;
                self.push(Node::Global(callee));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(module), Node::Text(name)) = (&self.nodes[module as usize], &self.nodes[name as usize])
                else {
                    return Err("a global is named by something that is not text".into());
                };
                let callee = Callee::find(module, name)?;
                self.push(Node::Global(callee));
            }
            b'R' => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let value = self.call(callee, arguments)?;
                self.stack.push(value);
            }
            b'b' => {
                // The attributes of an OrderedDict: torch keeps the versions of modules there.
                self.pop()?;
                let object = self.peek()?;
                expect(matches!(self.nodes[object as usize], Node::Dict(_)), "refused: attributes for an object")?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(storage);
            }

            b'q' | b'r' | 0x94 => {
                let place = match op {
                    b'q' => self.code.array::<1>()?[0].into(),
                    b'r' => u32::from_le_bytes(self.code.array()?),
                    _ => self.memo.len() as u32,
                };
                let top = self.peek()?;
                self.memo.insert(place, top);
            }
            b'h' | b'j' => {
                let place =
                    if op == b'h' { self.code.array::<1>()?[0].into() } else { u32::from_le_bytes(self.code.array()?) };
                let value = *self.memo.get(&place).ok_or_else(|| format!("nothing was stored at place {place}"))?;
                self.stack.push(value);
            }
            _ => return Err(format!("refused: the pickle instruction 0x{op:02x} is not needed for tensors")),
        }
        Ok(None)
    }

    fn push(&mut self, node: Node) {
        // At most one value for each of MAX_STEPS instructions, so that a position fits.
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
    }

    /// The height of the stack without its last `n` values, which must all lie above the last mark.
    fn height_below(&self, n: usize) -> Result<usize, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let height = self.stack.len().checked_sub(n).filter(|&height| height >= floor);
        height.ok_or_else(|| "the pickle takes more from its stack than there is".into())
    }

    fn peek(&self) -> Result<Id, Problem> {
        Ok(self.stack[self.height_below(1)?])
    }

    fn pop(&mut self) -> Result<Id, Problem> {
        let top = self.peek()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Problem> {
        let mark = self.marks.pop().ok_or("the pickle takes a list that was never begun")?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Problem> {
        let list = self.peek()?;
        match &mut self.nodes[list as usize] {
            Node::List(list) => list.extend(items),
            _ => return Err("items for what is not a list".into()),
        }
        Ok(())
    }

    /// Sets keys, each followed by its value, in the dictionary on top of the stack.
    fn set(&mut self, items: &[Id]) -> Result<(), Problem> {
        let dict = self.peek()?;
        match (&mut self.nodes[dict as usize], items.as_chunks()) {
            (Node::Dict(dict), (pairs, [])) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            (Node::Dict(_), _) => return Err("a key without a value".into()),
            _ => return Err("keys for what is not a dictionary".into()),
        }
        Ok(())
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        match &self.nodes[id as usize] {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// What a call of one of the known functions would return.
    fn call(&mut self, callee: Id, arguments: Id) -> Result<Id, Problem> {
        let &Node::Global(callee) = &self.nodes[callee as usize] else {
            return Err("refused: a call of what is not a known function".into());
        };
        let Node::Tuple(arguments) = &self.nodes[arguments as usize] else {
            return Err("the arguments of a call are not a tuple".into());
        };
        let node = match (callee, &arguments[..]) {
            (Callee::OrderedDict, []) => Node::Dict(Vec::new()),
            (Callee::RebuildTensor, &[storage, offset, shape, stride, ..]) => {
                let Node::Storage(storage) = &self.nodes[storage as usize] else {
                    return Err("a tensor is made of what is not a storage".into());
                };
                Node::Tensor(Box::new(View {
                    storage: Rc::clone(storage),
                    offset: self.size(offset)?,
                    shape: self.sizes(shape)?,
                    stride: self.sizes(stride)?,
                }))
            }
            (Callee::RebuildParameter, &[data, ..]) => {
                expect(matches!(self.nodes[data as usize], Node::Tensor(_)), "a parameter is not a tensor")?;
                return Ok(data);
            }
            (Callee::Size, &[sizes]) => {
                self.sizes(sizes)?;
                return Ok(sizes);
            }
            _ => return Err(format!("refused: a call of {callee:?} with {} arguments", arguments.len())),
        };
        self.nodes.push(node);
        Ok(self.nodes.len() as Id - 1)
    }

    /// The storage that `("storage", class, key, device, count)` stands for.
    fn storage(&self, id: Id) -> Result<Node, Problem> {
        if let Some(&[tag, class, key, _device, count]) = self.items(id)
            && let (Node::Text(tag), &Node::Global(Callee::Storage(kind)), Node::Text(key)) =
                (&self.nodes[tag as usize], &self.nodes[class as usize], &self.nodes[key as usize])
            && tag == "storage"
        {
            // Each reference copies the key, which is a small number in real files.
            if key.len() > MAX_KEY {
                return Err(format!("refused: the key of a storage has more than {MAX_KEY} bytes"));
            }
            return Ok(Node::Storage(Rc::new(Storage { key: key.clone(), kind, count: self.size(count)? })));
        }
        Err("a reference out of the pickle is not one to a storage".into())
    }

    fn size(&self, id: Id) -> Result<usize, Problem> {
        match &self.nodes[id as usize] {
            Node::Int(n) => usize::try_from(*n).map_err(|_| format!("{n} cannot be a length, an offset or a stride")),
            _ => Err("a length, an offset or a stride is not a whole number".into()),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, Problem> {
        let items = self.items(id).filter(|items| items.len() <= super::MAX_RANK);
        let items =
            items.ok_or_else(|| format!("a shape or stride is not a tuple of at most {} lengths", super::MAX_RANK))?;
        items.iter().map(|&id| self.size(id)).collect()
    }
}

fn expect(holds: bool, otherwise: &str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

/// A whole number of up to eight bytes, lowest first, the highest bit its sign. Wider ones are no part of a tensor.
fn long(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Other("a large number");
    }
    let negative = bytes.last().is_some_and(|&high| high >= 0x80);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests;
