//! Properties that must hold for any bytes from outside. The fuzz targets beside this folder check them, and
//! tests/endurance/random.rs does so with random bytes.
//!
//! A property takes any bytes, and panics if it does not hold. It parses the bytes; or it reads them as [`Choices`] of
//! what to build and to alter, where random bytes would fail an early check such as a signature.

pub mod client;
pub mod crypto;
pub mod disk;
pub mod wire;

/// The check itself; see the module.
pub struct Property {
    /// The name of the fuzz target.
    pub name: &'static str,
    pub holds: fn(&[u8]),
    /// Examples to begin with, because chance does not find a valid input.
    pub examples: fn() -> Vec<Vec<u8>>,
}

/// For properties that need no examples.
fn no_examples() -> Vec<Vec<u8>> {
    Vec::new()
}

/// Decisions, read from bytes; zeros after their end.
pub struct Choices<'a>(pub &'a [u8]);

impl<'a> Choices<'a> {
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// A number below `bound`, which is below 65,536.
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

    /// The next `count` bytes, or fewer at the end.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A text of at most 63 bytes.
    pub fn text(&mut self) -> String {
        let count = self.below(64);
        String::from_utf8_lossy(self.bytes(count)).into_owned()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Changes, removes or adds a byte, or removes all bytes from some position on.
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
