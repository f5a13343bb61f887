//! Chance that can be had again.

/// A xorshift generator: the same seed, the same numbers.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    pub fn among(&mut self, least: usize, most: usize) -> usize {
        least + self.below((most - least) as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.among(0, choice.len())]
    }
}
