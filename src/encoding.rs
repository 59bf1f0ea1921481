//! Binary data and names inside JSON: standard base64 with padding (RFC 4648 section 4).
//!
//! Invariant: a decoded value already has its final type and length, so nothing behind the
//! decoder checks lengths again. JSON itself is miniserde's: no recursion, unknown fields ignored.

use crate::crypto::secret::Secret;
use crate::name::Username;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use miniserde::de::{Deserialize, Visitor};
use miniserde::ser::{Fragment, Serialize};
use miniserde::{Error, Result, make_place};
use zeroize::Zeroizing;

make_place!(Place);

/// Bytes of any length.
#[derive(Clone, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

/// Exactly `N` bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fixed<const N: usize>(pub [u8; N]);

impl Visitor for Place<Bytes> {
    fn string(&mut self, text: &str) -> Result<()> {
        self.out = Some(Bytes(BASE64_STANDARD.decode(text).map_err(|_| Error)?));
        Ok(())
    }
}

impl<const N: usize> Visitor for Place<Fixed<N>> {
    fn string(&mut self, text: &str) -> Result<()> {
        let bytes = BASE64_STANDARD.decode(text).map_err(|_| Error)?;
        self.out = Some(Fixed(bytes.try_into().map_err(|_| Error)?));
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

impl Serialize for Bytes {
    fn begin(&self) -> Fragment<'_> {
        Fragment::Str(BASE64_STANDARD.encode(&self.0).into())
    }
}

impl<const N: usize> Serialize for Fixed<N> {
    fn begin(&self) -> Fragment<'_> {
        Fragment::Str(BASE64_STANDARD.encode(self.0).into())
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

#[cfg(test)]
mod tests {
    use super::*;
    use miniserde::json;

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
}
