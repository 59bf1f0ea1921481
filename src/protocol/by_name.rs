//! An object whose members have users' names. A map of the standard library takes six times as long to fill with the
//! thousand wrapped keys of a broadcast, and would write names as they are displayed.

use crate::name::Username;
use miniserde::de::{Deserialize, Map, Visitor};
use miniserde::ser::{Fragment, Serialize};
use miniserde::{Error, Result, make_place};
use std::borrow::Cow;

make_place!(Place);

/// One value for each name, in the order of names. The last value of a repeated name counts.
pub struct ByName<T>(Vec<(Username, T)>);

impl<T> ByName<T> {
    /// The value of `name`, if there is one.
    pub fn get(&self, name: &Username) -> Option<&T> {
        let place = self.0.binary_search_by(|(other, _)| other.cmp(name)).ok()?;
        Some(&self.0[place].1)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &Username> {
        self.0.iter().map(|(name, _)| name)
    }

    /// The values, in the order of their names.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(_, value)| value)
    }
}

impl<T> FromIterator<(Username, T)> for ByName<T> {
    fn from_iter<I: IntoIterator<Item = (Username, T)>>(members: I) -> Self {
        let mut members: Vec<(Username, T)> = members.into_iter().collect();
        // Our own client writes the names in order, so there is nothing to sort.
        if !members.is_sorted_by(|(one, _), (next, _)| one < next) {
            // The last value of a repeated name then comes first, and `dedup_by` keeps it.
            members.reverse();
            members.sort_by(|(one, _), (other, _)| one.cmp(other));
            members.dedup_by(|(one, _), (other, _)| one == other);
        }
        ByName(members)
    }
}

impl<T: Deserialize> Deserialize for ByName<T> {
    fn begin(out: &mut Option<Self>) -> &mut dyn Visitor {
        Place::new(out)
    }
}

impl<T: Deserialize> Visitor for Place<ByName<T>> {
    fn map(&mut self) -> Result<Box<dyn Map + '_>> {
        // Most objects have one member; by default the first one allocates room for four.
        let members = Vec::with_capacity(1);
        Ok(Box::new(ByNameMap { members, name: None, value: None, out: &mut self.out }))
    }
}

struct ByNameMap<'a, T> {
    members: Vec<(Username, T)>,
    name: Option<Username>,
    /// The value of the last name, once it was read.
    value: Option<T>,
    out: &'a mut Option<ByName<T>>,
}

impl<T> ByNameMap<'_, T> {
    fn close(&mut self) {
        self.members.extend(self.name.take().zip(self.value.take()));
    }
}

impl<T: Deserialize> Map for ByNameMap<'_, T> {
    fn key(&mut self, name: &str) -> Result<&mut dyn Visitor> {
        self.close();
        self.name = Some(name.parse().map_err(|_| Error)?);
        Ok(T::begin(&mut self.value))
    }

    fn finish(&mut self) -> Result<()> {
        self.close();
        *self.out = Some(std::mem::take(&mut self.members).into_iter().collect());
        Ok(())
    }
}

impl<T: Serialize> Serialize for ByName<T> {
    fn begin(&self) -> Fragment<'_> {
        Fragment::Map(Box::new(Members(self.0.iter())))
    }
}

struct Members<'a, T>(std::slice::Iter<'a, (Username, T)>);

impl<T: Serialize> miniserde::ser::Map for Members<'_, T> {
    fn next(&mut self) -> Option<(Cow<'_, str>, &dyn Serialize)> {
        self.0.next().map(|(name, value)| (name.as_str().into(), value as &dyn Serialize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use miniserde::json;

    #[test]
    fn members_are_sorted_and_the_last_of_one_name_counts() {
        let read = |text: &str| json::from_str::<ByName<u64>>(text).ok();
        let sorted = read(r#"{"alice":1,"bob":2}"#).expect("members");
        for other in [r#"{"bob":2,"alice":1}"#, r#"{"bob":7,"alice":1,"bob":8,"bob":2}"#] {
            let other = read(other).expect("members");
            assert!(other.names().eq(sorted.names()), "each once");
            assert_eq!(json::to_string(&other), r#"{"alice":1,"bob":2}"#);
        }
        let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| name.parse().expect("a name"));
        assert_eq!((sorted.get(&alice), sorted.get(&bob), sorted.get(&carol)), (Some(&1), Some(&2), None));
        assert!(read("{}").is_some_and(|none| none.names().next().is_none()));
        for bad in [r#"{"a b":1}"#, r#"{"alice":"1"}"#, r#"{"alice":null}"#, r#"["alice"]"#, "null"] {
            assert!(read(bad).is_none(), "{bad}");
        }
    }
}
