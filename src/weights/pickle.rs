//! A small machine for the pickles of `torch.save`: it builds plain data and never runs anything.
//!
//! A pickle is a program for a stack machine, and Python's own lets it call any function. This one calls nothing: the
//! few functions of [`Callee`] make tensors and dictionaries, whose content it knows without calling them; any other
//! class or function, and whatever a call of it would return, is a [`Node::Opaque`], which has a name and no content.
//! So a training checkpoint with objects of any class beside its tensors can be read, and a state dict that needs such
//! an object is refused by the object's name. Values live in one table and refer to each other by position, so that an
//! object that is used a thousand times is stored once and nothing grows faster than the pickle is long.

mod calls;
mod cursor;
mod values;

use std::collections::HashMap;

pub(super) use values::{Id, Node, Storage, Values, View};

use cursor::Cursor;
use values::Callee;

/// Pickles of more bytes are refused. That of a large network with its optimizer has a megabyte, but NumPy arrays lie
/// inside.
pub(super) const MAX_BYTES: u64 = 256 << 20;

/// Longer texts are kept as [`Node::Other`]: in protocol 2, bytes are written as texts.
const MAX_TEXT: usize = 16 << 20;

/// Instructions carried out, and values made, at most. A tensor takes about forty instructions; checkpoints hold each
/// up to five times, with its average and the optimizer's state.
const MAX_STEPS: usize = 1_000_000;

/// Values on the stack at once.
const MAX_STACK: usize = 100_000;

/// Bytes of the key of a storage, at most.
const MAX_KEY: usize = 64;

/// What the number of a global in another program's registry stands for.
const EXTENSION: &str = "an object of an extension registry";

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
        if machine.nodes.len() > MAX_STEPS {
            return Err(format!("refused: the pickle makes more than {MAX_STEPS} values"));
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
                [2..=5] => {}
                [protocol] => return Err(format!("pickle protocol {protocol} is not read, only 2 to 5")),
            },
            0x95 => drop(self.code.array::<8>()?),
            b'.' => return self.pop().map(Some),

            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),

            b'2' => {
                let top = self.peek()?;
                self.stack.push(top);
            }

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
            0x8b => {
                let len = self.code.length(op)?;
                let bytes = self.code.take(len)?;
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
                let long = len > MAX_TEXT;
                self.push(if long { Node::Other("a long text") } else { Node::Text(text.to_owned()) });
            }
            b'B' | b'C' | 0x8e | 0x96 => {
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
            // EMPTY_SET, ADDITEMS, FROZENSET: no tensor is looked for in a set.
            0x8f => self.push(Node::Other("a set")),
            0x90 => {
                self.pop_to_mark()?;
                let set = self.peek()?;
                let set = matches!(self.nodes[set as usize], Node::Other("a set") | Node::Opaque { .. });
                expect(set, "items for what is not a set")?;
            }
            0x91 => {
                self.pop_to_mark()?;
                self.push(Node::Other("a set"));
            }

            b'c' => {
                let (module, name) = (self.code.line()?, self.code.line()?);
                let node = match Callee::find(module, name) {
                    Some(callee) => Node::Global(callee),
                    None => Node::Opaque { module: self.text(module), name: self.text(name) },
                };
                self.push(node);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Text(of), Node::Text(called)) = (&self.nodes[module as usize], &self.nodes[name as usize])
                else {
                    return Err("a global is named by something that is not text".into());
                };
                let opaque = Node::Opaque { module, name };
                let node = Callee::find(of, called).map_or(opaque, Node::Global);
                self.push(node);
            }
            // EXT1, EXT2, EXT4: a global by its number in a registry of the program that wrote the pickle.
            0x82 => self.extension::<1>()?,
            0x83 => self.extension::<2>()?,
            0x84 => self.extension::<4>()?,
            // REDUCE, and NEWOBJ, which calls a class.
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                let value = self.call(callee, arguments)?;
                self.stack.push(value);
            }
            // NEWOBJ_EX: a class with named arguments.
            0x92 => {
                let (_named, arguments, class) = (self.pop()?, self.pop()?, self.pop()?);
                let value = self.call(class, arguments)?;
                self.stack.push(value);
            }
            b'b' => {
                // Attributes. torch keeps the versions of modules in those of an OrderedDict.
                self.pop()?;
                let object = self.peek()?;
                let object = matches!(
                    self.nodes[object as usize],
                    Node::Dict(_) | Node::Opaque { .. } | Node::Tensor(_) | Node::Other(_)
                );
                expect(object, "attributes for what is not an object")?;
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
            _ => return Err(format!("refused: torch.save writes no pickle instruction 0x{op:02x}")),
        }
        Ok(None)
    }

    fn push(&mut self, node: Node) {
        // A position fits, for there are never many more than MAX_STEPS values.
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
    }

    /// A text that is a value although it is on no stack.
    fn text(&mut self, text: &str) -> Id {
        self.nodes.push(Node::Text(text.to_owned()));
        self.nodes.len() as Id - 1
    }

    fn extension<const N: usize>(&mut self) -> Result<(), Problem> {
        self.code.array::<N>()?;
        self.push(Node::Other(EXTENSION));
        Ok(())
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
            // A deque, or a class derived from a list.
            Node::Opaque { .. } => {}
            _ => return Err("items for what is not a list".into()),
        }
        Ok(())
    }

    /// Sets keys, each followed by its value, in the dictionary on top of the stack.
    fn set(&mut self, items: &[Id]) -> Result<(), Problem> {
        let dict = self.peek()?;
        match (&mut self.nodes[dict as usize], items.as_chunks()) {
            (Node::Dict(dict), (pairs, [])) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            (Node::Opaque { .. }, (_, [])) => {}
            (Node::Dict(_) | Node::Opaque { .. }, _) => return Err("a key without a value".into()),
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
