//! Names that get ids as they come.

use crate::data::folder::tree::nfc;
use crate::error::shown;
use std::collections::BTreeMap;

/// Names in composed Unicode (NFC), each with an id in the order in which they came.
#[derive(Default)]
pub(super) struct Names {
    ids: BTreeMap<String, u32>,
    names: Vec<String>,
}

impl Names {
    /// The id of a name, a new one if need be.
    pub fn id(&mut self, name: &str) -> u32 {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let (name, next) = (nfc(name), self.names.len() as u32);
        let id = *self.ids.entry(name.clone()).or_insert(next);
        if id == next {
            self.names.push(name);
        }
        id
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The names in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// The names in sorted order, and for each id its place in it. If all are numbers, they are sorted as numbers, so
    /// that 2 comes before 10.
    ///
    /// # Errors
    /// What is wrong, if two are the same number ("1" and "01").
    pub fn sorted(&self) -> Result<(Vec<String>, Vec<u32>), String> {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.sort_by(|&a, &b| self.names[a].cmp(&self.names[b]));
        let numbers: Option<Vec<Number>> = self.iter().map(Number::of).collect();
        if let Some(numbers) = numbers {
            order.sort_by(|&a, &b| numbers[a].cmp(numbers[b]));
            let equal = |pair: &&[usize]| numbers[pair[0]].cmp(numbers[pair[1]]).is_eq();
            if let Some(pair) = order.windows(2).find(equal) {
                let [one, other] = [pair[0], pair[1]].map(|name| shown(&self.names[name]));
                return Err(format!("the labels {one} and {other} are the same number; write it in one way"));
            }
        }
        let mut places = vec![0; self.len()];
        order.iter().zip(0..).for_each(|(&id, place)| places[id] = place);
        Ok((order.into_iter().map(|id| self.names[id].clone()).collect(), places))
    }
}

/// A number as text has it: digits with a sign and a point.
#[derive(Clone, Copy)]
struct Number {
    /// Exact, if it is whole.
    whole: Option<i128>,
    value: f64,
}

impl Number {
    fn of(text: &str) -> Option<Self> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.".contains(&byte));
        let value = is_plain.then(|| text.parse().ok()).flatten()?;
        Some(Self { whole: text.parse().ok(), value })
    }

    fn cmp(self, other: Self) -> std::cmp::Ordering {
        match (self.whole, other.whole) {
            (Some(a), Some(b)) => a.cmp(&b),
            // 0 and -0 are equal.
            _ => self.value.partial_cmp(&other.value).unwrap_or(std::cmp::Ordering::Equal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(names: &[&str]) -> Result<String, String> {
        let mut all = Names::default();
        let ids: Vec<u32> = names.iter().map(|name| all.id(name)).collect();
        let (sorted, places) = all.sorted()?;
        for (name, id) in names.iter().zip(ids) {
            assert_eq!(sorted[places[id as usize] as usize], nfc(name));
        }
        Ok(sorted.join(" "))
    }

    #[test]
    fn numbers_are_sorted_as_numbers() {
        assert_eq!(sorted(&["10", "9", "0", "-1", "9"]).unwrap(), "-1 0 9 10");
        assert_eq!(sorted(&["2.5", "10.0", "1"]).unwrap(), "1 2.5 10.0");
        assert_eq!(sorted(&["9007199254740993", "9007199254740992"]).unwrap(), "9007199254740992 9007199254740993");
        // One that is none makes them all text.
        assert_eq!(sorted(&["10", "9", "x"]).unwrap(), "10 9 x");
        assert_eq!(sorted(&["inf", "10", "9"]).unwrap(), "10 9 inf");
        for pair in [["1", "01"], ["1", "1.0"], ["+3", "3"]] {
            let text = sorted(&pair).unwrap_err();
            assert!(pair.iter().all(|name| text.contains(name)) && text.contains("same number"), "{text}");
        }
    }

    #[test]
    fn a_name_in_two_forms_of_unicode_is_one() {
        assert_eq!(sorted(&["caf\u{e9}", "cafe\u{301}", "bar"]).unwrap(), "bar caf\u{e9}");
    }
}
