//! Values that are one string in JSON: words, and binary data as base64 (RFC 4648 section 4, with padding). Objects are
//! read in one pass.
//!
//! Invariant: a decoded value has its final type and length, so no other code checks lengths again. miniserde reads the
//! JSON: it does not recurse, and ignores unknown members.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use miniserde::de::{Deserialize, Map, Visitor};
use miniserde::{Error, Result, json, make_place};
use std::borrow::Cow;

make_place!(Place);

/// A value that is one string in JSON. `text!` lets messages contain it.
pub trait Text: Sized {
    /// `None` if the string is not such a value.
    fn read(text: &str) -> Option<Self>;

    /// The string.
    fn write(&self) -> Cow<'_, str>;
}

impl<T: Text> Visitor for Place<T> {
    fn string(&mut self, text: &str) -> Result<()> {
        self.out = Some(T::read(text).ok_or(Error)?);
        Ok(())
    }
}

/// The place where the decoder stores such a value, for `text!`.
pub(crate) fn place<T: Text>(out: &mut Option<T>) -> &mut dyn Visitor {
    Place::new(out)
}

/// Lets messages contain a type that is [`Text`].
macro_rules! text {
    ($type:ty $(, const $n:ident)?) => {
        impl $(<const $n: usize>)? miniserde::Deserialize for $type {
            fn begin(out: &mut Option<Self>) -> &mut dyn miniserde::de::Visitor {
                $crate::encoding::place(out)
            }
        }

        impl $(<const $n: usize>)? miniserde::Serialize for $type {
            fn begin(&self) -> miniserde::ser::Fragment<'_> {
                miniserde::ser::Fragment::Str($crate::encoding::Text::write(self))
            }
        }
    };
}
pub(crate) use text;

/// An enum whose values are words on the wire, or the sentences of an error. With `else Later(Word)`, any other word is
/// a value too, and messages can contain the enum.
macro_rules! words {
    ($(#[$doc:meta])* $vis:vis enum $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        $vis enum $name { $($(#[$about])* $variant,)* }

        impl $name {
            /// As it is written.
            $vis fn as_str(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }

        $crate::encoding::words!(@display $name);
    };
    ($(#[$doc:meta])* $vis:vis enum $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)* }
     else $(#[$other_about:meta])* $other:ident($rest:ty)) => {
        $(#[$doc])*
        $vis enum $name { $($(#[$about])* $variant,)* $(#[$other_about])* $other($rest) }

        impl $name {
            /// As it is written.
            $vis fn as_str(&self) -> &str {
                match self { $($name::$variant => $word,)* $name::$other(word) => word.as_str() }
            }
        }

        $crate::encoding::words!(@display $name);
        $crate::encoding::text!($name);

        impl $crate::encoding::Text for $name {
            fn read(text: &str) -> Option<$name> {
                match text { $($word => Some($name::$variant),)* _ => <$rest>::new(text).map($name::$other) }
            }

            fn write(&self) -> std::borrow::Cow<'_, str> {
                self.as_str().into()
            }
        }
    };
    (@display $name:ident) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

/// Bytes as base64. Only the line's limit bounds them. PROTOCOL#base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

/// Exactly `N` bytes as base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fixed<const N: usize>(pub [u8; N]);

text!(Bytes);
text!(Fixed<N>, const N);

impl Text for Bytes {
    fn read(text: &str) -> Option<Bytes> {
        BASE64_STANDARD.decode(text).ok().map(Bytes)
    }

    fn write(&self) -> Cow<'_, str> {
        base64(&self.0).into()
    }
}

impl<const N: usize> Text for Fixed<N> {
    fn read(text: &str) -> Option<Fixed<N>> {
        let mut bytes = [0; N];
        let length = BASE64_STANDARD.decode_slice(text, &mut bytes).ok()?;
        (length == N).then_some(Fixed(bytes))
    }

    fn write(&self) -> Cow<'_, str> {
        base64(&self.0).into()
    }
}

/// Base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The deepest nesting of JSON: bounds the decoder's memory. Real messages have at most four levels. PROTOCOL#depth.
const MAX_DEPTH: usize = 8;

/// Decodes JSON from others, if it is within the limits of depth and commas. PROTOCOL#json.
pub fn from_json<T: Deserialize>(text: &str) -> Option<T> {
    if is_bounded(text) { json::from_str(text).ok() } else { None }
}

/// Whether JSON from others is within the limits of depth and commas.
pub fn is_bounded(text: &str) -> bool {
    is_shallow(text) && has_few_commas(text)
}

/// Whether brackets outside strings nest at most 8 deep.
fn is_shallow(text: &str) -> bool {
    // Most lines have no more brackets than that. The compiler counts them many bytes at a time.
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

/// The most commas of a JSON text, in strings too: bounds the decoder's memory, at some 40 bytes for each. Real
/// messages have at most half as many. PROTOCOL#commas.
const MAX_COMMAS: usize = 16_384;

/// Whether a text has at most 16,384 commas.
fn has_few_commas(text: &str) -> bool {
    let commas = |some: &[u8]| some.iter().map(|byte| u8::from(*byte == b',')).sum::<u8>();
    text.as_bytes().chunks(255).map(|some| usize::from(commas(some))).sum::<usize>() <= MAX_COMMAS
}

/// The first member `type`; later ones are ignored. Without one, decoding fails.
pub struct FirstType(pub String);

impl Deserialize for FirstType {
    fn begin(out: &mut Option<Self>) -> &mut dyn Visitor {
        Place::new(out)
    }
}

impl Visitor for Place<FirstType> {
    fn map(&mut self) -> Result<Box<dyn Map + '_>> {
        Ok(Box::new(FirstTypeMap { kind: None, out: &mut self.out }))
    }
}

struct FirstTypeMap<'a> {
    kind: Option<String>,
    out: &'a mut Option<FirstType>,
}

impl Map for FirstTypeMap<'_> {
    fn key(&mut self, name: &str) -> Result<&mut dyn Visitor> {
        match name == "type" && self.kind.is_none() {
            true => Ok(Deserialize::begin(&mut self.kind)),
            false => Ok(<dyn Visitor>::ignore()),
        }
    }

    fn finish(&mut self) -> Result<()> {
        *self.out = Some(FirstType(self.kind.take().ok_or(Error)?));
        Ok(())
    }
}

/// Two structs with their members in one object, read in one pass.
pub struct Both<A, B>(Option<A>, Option<B>);

impl<A, B> Both<A, B> {
    /// The two structs; `None` if a member was missing.
    pub fn parts(self) -> Option<(A, B)> {
        self.0.zip(self.1)
    }
}

/// The first struct of [`Both`] has these members; the second has all others.
pub trait Joined {
    /// The members' names on the wire.
    const MEMBERS: &[&str];
}

impl<A: Deserialize + Joined, B: Deserialize> Deserialize for Both<A, B> {
    fn begin(out: &mut Option<Self>) -> &mut dyn Visitor {
        Place::new(out)
    }
}

impl<A: Deserialize + Joined, B: Deserialize> Visitor for Place<Both<A, B>> {
    fn map(&mut self) -> Result<Box<dyn Map + '_>> {
        let Both(first, second) = self.out.insert(Both(None, None));
        let (first, second) = (A::begin(first).map()?, B::begin(second).map()?);
        Ok(Box::new(BothMaps { names: A::MEMBERS, first, second }))
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
    fn wrong_length_or_alphabet_of_base64_is_refused() {
        assert!(json::from_str::<Fixed<3>>("\"AAAA\"").is_ok());
        for bad in ["\"AAA\"", "\"AAAAAAAA\"", "\"AA-_\"", "\"AA A\"", "\"AAA=\\n\"", "3", "null", "[0,0,0]"]
        {
            assert!(json::from_str::<Fixed<3>>(bad).is_err(), "{bad}");
        }
        assert!(json::from_str::<Bytes>("\"AB==\"").is_err(), "trailing bits must be zero");
    }

    /// PROTOCOL#commas.
    #[test]
    fn line_has_a_bounded_number_of_commas() {
        let listed = |commas: usize| format!("[{}1]", "1,".repeat(commas));
        assert!(has_few_commas(&listed(MAX_COMMAS)) && !has_few_commas(&listed(MAX_COMMAS + 1)));
    }

    /// PROTOCOL#depth.
    #[test]
    fn only_nested_brackets_outside_strings_count_as_depth() {
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
