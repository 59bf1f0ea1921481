//! What must hold for whatever bytes others send: stated once, tried by the fuzz targets beside this folder and, with
//! random bytes, by tests/endurance/random.rs.
//!
//! A property takes any bytes and panics where it does not hold. It reads them as what they are, or, where
//! plain bytes would never get far (a signature in front, a chain of records), as [`Choices`] of what to
//! make and to alter.

pub mod client;
pub mod crypto;
pub mod disk;
pub mod wire;

/// See the module.
pub struct Property {
    /// The fuzz target's.
    pub name: &'static str,
    pub holds: fn(&[u8]),
    /// Inputs to begin with: from nothing, chance does not find a valid one.
    pub examples: fn() -> Vec<Vec<u8>>,
}

/// For properties that need none.
fn no_examples() -> Vec<Vec<u8>> {
    Vec::new()
}

/// Bytes read as decisions, from the front; zeros when there are no more.
pub struct Choices<'a>(pub &'a [u8]);

impl<'a> Choices<'a> {
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// Below `bound`, which is below 65,536.
    pub fn below(&mut self, bound: usize) -> usize {
        let high = if bound > 256 { usize::from(self.byte()) << 8 } else { 0 };
        (high | usize::from(self.byte())) % bound.max(1)
    }

    pub fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    pub fn pick<'b, T: ?Sized>(&mut self, from: &[&'b T]) -> &'b T {
        from[self.below(from.len())]
    }

    /// So many, or what is left.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// At most 63 bytes of text.
    pub fn text(&mut self) -> String {
        let count = self.below(64);
        String::from_utf8_lossy(self.bytes(count)).into_owned()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Alters bytes in one place: other, fewer or more of them.
    pub fn edit(&mut self, bytes: &mut Vec<u8>) {
        let kind = self.below(4);
        let at = self.below(65_535) % (bytes.len() + 1);
        let new = self.byte();
        match kind {
            0 if at < bytes.len() => bytes[at] ^= new,
            1 if at < bytes.len() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, new),
        }
    }
}
