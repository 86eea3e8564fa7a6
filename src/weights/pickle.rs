//! An interpreter for the pickles of `torch.save` that builds plain data and never runs anything.
//!
//! A pickle is a program for a stack machine, and Python's interpreter lets it call any function. This one calls
//! nothing. It knows the results of the few functions in [`Callee`], which make tensors and dictionaries. Any other
//! class or function, and the result of a call of it, is a [`Pickled::Opaque`], which has a name and no content. So a
//! checkpoint may hold objects of any class besides its tensors, and a state dict that needs such an object is refused
//! with the object's name. Values live in one table and refer to each other by position, so an object that is used a
//! thousand times is stored once, and nothing grows faster than the pickle is long.

mod calls;
mod cursor;
mod values;

use std::collections::HashMap;

pub(super) use values::{Id, Pickled, Storage, Values, View};

use cursor::Cursor;
use values::Callee;

/// Pickles of more bytes are refused. That of a large network with its optimizer has a megabyte, but a pickle may
/// contain NumPy arrays.
pub(super) const MAX_BYTES: u64 = 256 << 20;

/// Longer texts are kept as [`Pickled::Other`]: in protocol 2, bytes are written as texts.
const MAX_TEXT: usize = 16 << 20;

/// At most this many instructions are executed and values made. A tensor takes about forty instructions, and
/// checkpoints hold each up to five times, with its average and the optimizer's state.
const MAX_STEPS: usize = 1_000_000;

/// At most this many values lie on the stack.
const MAX_STACK: usize = 100_000;

/// The key of a storage has at most this many bytes.
const MAX_KEY: usize = 64;

/// The description of a global that is named by a number in another program's registry.
const EXTENSION: &str = "an object of an extension registry";

/// The fault of a pickle, for a message.
pub(super) type Problem = String;

/// Runs a pickle to its end.
pub(super) fn run(bytes: &[u8]) -> Result<Values, Problem> {
    let mut machine = Machine {
        code: Cursor::new(bytes),
        table: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    for _ in 0..MAX_STEPS {
        let start = machine.code.at();
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => return Ok(Values { table: machine.table, root }),
            Err(problem) => return Err(format!("{problem} (byte {start} of the pickle)")),
        }
        if machine.stack.len() > MAX_STACK {
            return Err(format!("refused: the pickle puts more than {MAX_STACK} values on its stack"));
        }
        if machine.table.len() > MAX_STEPS {
            return Err(format!("refused: the pickle makes more than {MAX_STEPS} values"));
        }
    }
    Err(format!("refused: the pickle has more than {MAX_STEPS} instructions"))
}

struct Machine<'a> {
    code: Cursor<'a>,
    table: Vec<Pickled>,
    stack: Vec<Id>,
    /// The heights of the stack where lists of arguments begin.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    /// Executes one instruction; the last one gives the outermost value.
    fn step(&mut self) -> Result<Option<Id>, Problem> {
        let [op] = self.code.array()?;
        match op {
            // PROTO, and FRAME, whose length is not needed.
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

            b'N' => self.push(Pickled::Other("None")),
            0x88 | 0x89 => self.push(Pickled::Other("a boolean")),
            b'J' => {
                let n = i32::from_le_bytes(self.code.array()?);
                self.push(Pickled::Int(n.into()));
            }
            b'K' => {
                let [n] = self.code.array()?;
                self.push(Pickled::Int(n.into()));
            }
            b'M' => {
                let n = u16::from_le_bytes(self.code.array()?);
                self.push(Pickled::Int(n.into()));
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
                self.push(Pickled::Other("a number"));
            }
            // Text, with four, one or eight bytes of length; then the byte strings of Python 2, and bytes.
            b'X' | 0x8c | 0x8d | b'U' | b'T' => {
                let len = self.code.length(op)?;
                let text = std::str::from_utf8(self.code.take(len)?).map_err(|_| "a text is not UTF-8")?;
                let long = len > MAX_TEXT;
                self.push(if long { Pickled::Other("a long text") } else { Pickled::Text(text.to_owned()) });
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let len = self.code.length(op)?;
                self.code.take(len)?;
                self.push(Pickled::Other("bytes"));
            }

            b')' => self.push(Pickled::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Pickled::Tuple(items));
            }
            0x85..=0x87 => {
                let from = self.height_below(usize::from(op - 0x84))?;
                let items = self.stack.split_off(from);
                self.push(Pickled::Tuple(items));
            }
            b']' => self.push(Pickled::List(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b'}' => self.push(Pickled::Dict(Vec::new())),
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
            0x8f => self.push(Pickled::Other("a set")),
            0x90 => {
                self.pop_to_mark()?;
                let set = self.peek()?;
                let set = matches!(self.table[set as usize], Pickled::Other("a set") | Pickled::Opaque { .. });
                expect(set, "items for what is not a set")?;
            }
            0x91 => {
                self.pop_to_mark()?;
                self.push(Pickled::Other("a set"));
            }

            b'c' => {
                let (module, name) = (self.code.line()?, self.code.line()?);
                let value = match Callee::find(module, name) {
                    Some(callee) => Pickled::Global(callee),
                    None => Pickled::Opaque { module: self.text(module), name: self.text(name) },
                };
                self.push(value);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Pickled::Text(of), Pickled::Text(called)) =
                    (&self.table[module as usize], &self.table[name as usize])
                else {
                    return Err("a global is named by something that is not text".into());
                };
                let opaque = Pickled::Opaque { module, name };
                let value = Callee::find(of, called).map_or(opaque, Pickled::Global);
                self.push(value);
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
                    self.table[object as usize],
                    Pickled::Dict(_) | Pickled::Opaque { .. } | Pickled::Tensor(_) | Pickled::Other(_)
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
                let value = *self
                    .memo
                    .get(&place)
                    .ok_or_else(|| format!("the pickle refers to place {place}, where it stored nothing"))?;
                self.stack.push(value);
            }
            _ => return Err(format!("refused: torch.save writes no pickle instruction 0x{op:02x}")),
        }
        Ok(None)
    }

    fn push(&mut self, value: Pickled) {
        // The position fits into an Id, since there are hardly more than MAX_STEPS values.
        self.stack.push(self.table.len() as Id);
        self.table.push(value);
    }

    /// Adds a text to the table, but not to the stack.
    fn text(&mut self, text: &str) -> Id {
        self.table.push(Pickled::Text(text.to_owned()));
        self.table.len() as Id - 1
    }

    fn extension<const N: usize>(&mut self) -> Result<(), Problem> {
        self.code.array::<N>()?;
        self.push(Pickled::Other(EXTENSION));
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
        let mark = self.marks.pop().ok_or("the pickle ends a list that it never began")?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Problem> {
        let list = self.peek()?;
        match &mut self.table[list as usize] {
            Pickled::List(list) => list.extend(items),
            // A deque, or a class derived from a list.
            Pickled::Opaque { .. } => {}
            _ => return Err("items for what is not a list".into()),
        }
        Ok(())
    }

    /// Sets keys, each followed by its value, in the dictionary on top of the stack.
    fn set(&mut self, items: &[Id]) -> Result<(), Problem> {
        let dict = self.peek()?;
        match (&mut self.table[dict as usize], items.as_chunks()) {
            (Pickled::Dict(dict), (pairs, [])) => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            (Pickled::Opaque { .. }, (_, [])) => {}
            (Pickled::Dict(_) | Pickled::Opaque { .. }, _) => return Err("a key without a value".into()),
            _ => return Err("keys for what is not a dictionary".into()),
        }
        Ok(())
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        match &self.table[id as usize] {
            Pickled::Tuple(items) | Pickled::List(items) => Some(items),
            _ => None,
        }
    }
}

fn expect(holds: bool, otherwise: &str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

/// A signed whole number of up to eight little-endian bytes. Wider ones are never part of a tensor.
fn long(bytes: &[u8]) -> Pickled {
    if bytes.len() > 8 {
        return Pickled::Other("a large number");
    }
    let negative = bytes.last().is_some_and(|&high| high >= 0x80);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Pickled::Int(i64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests;
