//! Binary data and names inside JSON: standard base64 with padding (RFC 4648 section 4); and how objects are read, in one
//! pass and no deeper than messages are.
//!
//! Invariant: a decoded value already has its final type and length, so nothing behind the
//! decoder checks lengths again. JSON itself is miniserde's: no recursion, unknown fields ignored.

use crate::crypto::public::ShortFingerprint;
use crate::crypto::secret::Secret;
use crate::name::Username;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use miniserde::de::{Deserialize, Map, Visitor};
use miniserde::ser::{Fragment, Serialize};
use miniserde::{Error, Result, make_place};
use zeroize::Zeroizing;

make_place!(Place);

/// Bytes of any length, as base64; the line's limit bounds them. PROTOCOL#base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

/// Exactly `N` bytes, as base64; any other number is no value of this type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fixed<const N: usize>(pub [u8; N]);

impl Visitor for Place<Bytes> {
    fn string(&mut self, text: &str) -> Result<()> {
        let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
        BASE64_STANDARD.decode_vec(text, &mut bytes).map_err(|_| Error)?;
        self.out = Some(Bytes(bytes));
        Ok(())
    }
}

impl<const N: usize> Visitor for Place<Fixed<N>> {
    fn string(&mut self, text: &str) -> Result<()> {
        let mut bytes = [0; N];
        let length = BASE64_STANDARD.decode_slice(text, &mut bytes).map_err(|_| Error)?;
        self.out = Some(Fixed((length == N).then_some(bytes).ok_or(Error)?));
        Ok(())
    }
}

impl<const N: usize> Visitor for Place<Secret<N>> {
    fn string(&mut self, text: &str) -> Result<()> {
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(text).map_err(|_| Error)?);
        self.out = Some(Secret::from_slice(&bytes).ok_or(Error)?);
        Ok(())
    }
}

impl Visitor for Place<Username> {
    fn string(&mut self, text: &str) -> Result<()> {
        self.out = Some(text.parse().map_err(|_| Error)?);
        Ok(())
    }
}

impl Visitor for Place<ShortFingerprint> {
    fn string(&mut self, text: &str) -> Result<()> {
        self.out = Some(text.parse().map_err(|_| Error)?);
        Ok(())
    }
}

impl Deserialize for Bytes {
    fn begin(out: &mut Option<Self>) -> &mut dyn Visitor {
        Place::new(out)
    }
}

impl<const N: usize> Deserialize for Fixed<N> {
    fn begin(out: &mut Option<Self>) -> &mut dyn Visitor {
        Place::new(out)
    }
}

impl<const N: usize> Deserialize for Secret<N> {
    fn begin(out: &mut Option<Self>) -> &mut dyn Visitor {
        Place::new(out)
    }
}

impl Deserialize for Username {
    fn begin(out: &mut Option<Self>) -> &mut dyn Visitor {
        Place::new(out)
    }
}

impl Deserialize for ShortFingerprint {
    fn begin(out: &mut Option<Self>) -> &mut dyn Visitor {
        Place::new(out)
    }
}

/// Into memory that is not filled with zeros first, for which the system's allocator takes its slow way.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    BASE64_STANDARD.encode_string(bytes, &mut text);
    text
}

impl Serialize for Bytes {
    fn begin(&self) -> Fragment<'_> {
        Fragment::Str(base64(&self.0).into())
    }
}

impl<const N: usize> Serialize for Fixed<N> {
    fn begin(&self) -> Fragment<'_> {
        Fragment::Str(base64(&self.0).into())
    }
}

impl<const N: usize> Serialize for Secret<N> {
    fn begin(&self) -> Fragment<'_> {
        Fragment::Str(BASE64_STANDARD.encode(self.expose()).into())
    }
}

impl Serialize for Username {
    fn begin(&self) -> Fragment<'_> {
        Fragment::Str(self.as_str().into())
    }
}

impl Serialize for ShortFingerprint {
    fn begin(&self) -> Fragment<'_> {
        Fragment::Str(self.to_string().into())
    }
}

/// JSON may nest no deeper than this; real messages have three levels. It bounds the decoder's memory.
/// PROTOCOL#depth.
const MAX_DEPTH: usize = 8;

/// Whether brackets outside strings nest at most 8 deep.
pub fn is_shallow(text: &str) -> bool {
    // Most lines have no more brackets than that at all, which is found out many bytes at a time.
    let brackets = |some: &[u8]| some.iter().map(|byte| u8::from(matches!(byte, b'[' | b'{'))).sum::<u8>();
    if text.as_bytes().chunks(255).map(|some| usize::from(brackets(some))).sum::<usize>() <= MAX_DEPTH {
        return true;
    }
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return false;
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// The first member `type`; others of that name are ignored like unknown ones. Without one, decoding fails.
pub struct FirstType(pub String);

impl Deserialize for FirstType {
    fn begin(out: &mut Option<Self>) -> &mut dyn Visitor {
        Place::new(out)
    }
}

impl Visitor for Place<FirstType> {
    fn map(&mut self) -> Result<Box<dyn Map + '_>> {
        Ok(Box::new(FirstTypeMap { seen: false, kind: None, out: &mut self.out }))
    }
}

struct FirstTypeMap<'a> {
    seen: bool,
    kind: Option<String>,
    out: &'a mut Option<FirstType>,
}

impl Map for FirstTypeMap<'_> {
    fn key(&mut self, name: &str) -> Result<&mut dyn Visitor> {
        match name == "type" && !std::mem::replace(&mut self.seen, true) {
            true => Ok(Deserialize::begin(&mut self.kind)),
            false => Ok(<dyn Visitor>::ignore()),
        }
    }

    fn finish(&mut self) -> Result<()> {
        *self.out = Some(FirstType(self.kind.take().ok_or(Error)?));
        Ok(())
    }
}

/// Two structs whose fields stand in one object, read in one pass.
pub struct Both<A, B>(Option<A>, Option<B>);

impl<A, B> Both<A, B> {
    /// The two; `None` if a field was missing.
    pub fn parts(self) -> Option<(A, B)> {
        self.0.zip(self.1)
    }
}

/// An object whose members have people's names: one value for each, in the order of names. Of two members of one name the
/// last counts.
pub struct ByName<T>(Vec<(Username, T)>);

impl<T> ByName<T> {
    /// The value of `name`; `None` if there is no member of that name.
    pub fn get(&self, name: &Username) -> Option<&T> {
        let place = self.0.binary_search_by(|(other, _)| other.cmp(name)).ok()?;
        Some(&self.0[place].1)
    }

    /// The names, in their order.
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
        // Who writes names in their order, as our own client does, has a thousand of them sorted for nothing.
        if !members.is_sorted_by(|(one, _), (next, _)| one < next) {
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
        // Most have one member, and of larger ones four are made room for at once.
        let members = Vec::with_capacity(1);
        Ok(Box::new(ByNameMap { members, name: None, value: None, out: &mut self.out }))
    }
}

struct ByNameMap<'a, T> {
    members: Vec<(Username, T)>,
    name: Option<Username>,
    /// The member of that name, as soon as it has been read.
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
    fn next(&mut self) -> Option<(std::borrow::Cow<'_, str>, &dyn Serialize)> {
        self.0.next().map(|(name, value)| (name.as_str().into(), value as &dyn Serialize))
    }
}

/// What belongs to the first of [`Both`]; everything else is the second's.
pub trait Fields {
    /// Their names on the wire.
    const NAMES: &[&str];
}

impl<A: Deserialize + Fields, B: Deserialize> Deserialize for Both<A, B> {
    fn begin(out: &mut Option<Self>) -> &mut dyn Visitor {
        Place::new(out)
    }
}

impl<A: Deserialize + Fields, B: Deserialize> Visitor for Place<Both<A, B>> {
    fn map(&mut self) -> Result<Box<dyn Map + '_>> {
        let Both(first, second) = self.out.insert(Both(None, None));
        let (first, second) = (A::begin(first).map()?, B::begin(second).map()?);
        Ok(Box::new(BothMaps { names: A::NAMES, first, second }))
    }
}

struct BothMaps<'a> {
    names: &'static [&'static str],
    first: Box<dyn Map + 'a>,
    second: Box<dyn Map + 'a>,
}

impl Map for BothMaps<'_> {
    fn key(&mut self, name: &str) -> Result<&mut dyn Visitor> {
        if self.names.contains(&name) { self.first.key(name) } else { self.second.key(name) }
    }

    fn finish(&mut self) -> Result<()> {
        self.first.finish()?;
        self.second.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use miniserde::json;

    /// PROTOCOL#base64.
    #[test]
    fn a_wrong_length_or_alphabet_is_refused() {
        assert!(json::from_str::<Fixed<3>>("\"AAAA\"").is_ok());
        for bad in ["\"AAA\"", "\"AAAAAAAA\"", "\"AA-_\"", "\"AA A\"", "\"AAA=\\n\"", "3", "null", "[0,0,0]"]
        {
            assert!(json::from_str::<Fixed<3>>(bad).is_err(), "{bad}");
        }
        assert!(json::from_str::<Bytes>("\"AB==\"").is_err(), "trailing bits must be zero");
        assert!(json::from_str::<Username>("\"a b\"").is_err());
    }

    /// PROTOCOL#depth.
    #[test]
    fn members_are_in_the_order_of_names_and_of_two_of_one_name_the_last_counts() {
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

    #[test]
    fn a_short_fingerprint_is_sixteen_lower_case_digits_and_nothing_else() {
        let read = |text: &str| json::from_str::<ShortFingerprint>(&format!("{text:?}")).ok();
        let good = read("0123456789abcdef").expect("sixteen");
        assert_eq!(json::to_string(&good), "\"0123456789abcdef\"");
        for bad in [
            "",
            "0123456789abcde",
            "0123456789abcdef0",
            "0123456789ABCDEF",
            "+123456789abcdef",
            "0123456789abcdeg",
        ] {
            assert!(read(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn only_brackets_outside_strings_and_inside_each_other_count_as_depth() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(is_shallow(&nested(MAX_DEPTH)) && !is_shallow(&nested(MAX_DEPTH + 1)));
        let objects = |depth: usize| r#"{"a":"#.repeat(depth);
        assert!(is_shallow(&objects(MAX_DEPTH)) && !is_shallow(&objects(MAX_DEPTH + 1)));
        assert!(is_shallow(&format!("[{}[]]", "[{}],".repeat(20))), "many beside each other");
        let deep = "[".repeat(MAX_DEPTH + 1);
        assert!(is_shallow(&format!(r#"{{"a":"{deep}"}}"#)), "in a string");
        assert!(is_shallow(&format!(r#"{{"a":"\"{deep}","b":"\\\"{deep}"}}"#)), "behind a quote in a string");
        assert!(
            !is_shallow(&format!(r#"{{"a":"\\","b":{deep}"#)),
            "behind a string that ends with a backslash"
        );
        assert!(!is_shallow(&format!(r#"{{"a":"]]]","b":{deep}"#)), "behind a string with brackets");
        assert!(!is_shallow(&format!("]]{deep}")), "brackets that close nothing make no room");
        assert!(!is_shallow(&format!(r#"\{deep}{deep}"#)), "a backslash outside a string is nothing");
    }
}
