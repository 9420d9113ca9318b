//! A slab whose references have a generation: a stale one finds nothing.

/// Refers to an entry by its index and the index's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Ref {
    index: u32,
    generation: u32,
}

impl Ref {
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_bits(bits: u64) -> Ref {
        Ref { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> Ref {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[index as usize];
        place.1 = Some(value);
        Ref { index, generation: place.0 }
    }

    pub(super) fn remove(&mut self, at: Ref) -> Option<T> {
        self.vacate(at)?.take()
    }

    /// Like [`Slab::remove`], but drops the value in place, so that a large one isn't moved.
    pub(super) fn discard(&mut self, at: Ref) {
        if let Some(value) = self.vacate(at) {
            *value = None;
        }
    }

    /// Invalidates the reference. The caller empties the place.
    fn vacate(&mut self, at: Ref) -> Option<&mut Option<T>> {
        let is_there = |p: &&mut (u32, Option<T>)| p.0 == at.generation && p.1.is_some();
        let place = self.places.get_mut(at.index as usize).filter(is_there)?;
        place.0 = place.0.wrapping_add(1);
        self.free.push(at.index);
        Some(&mut place.1)
    }

    pub(super) fn get(&self, at: Ref) -> Option<&T> {
        self.places.get(at.index as usize).filter(|p| p.0 == at.generation)?.1.as_ref()
    }

    pub(super) fn get_mut(&mut self, at: Ref) -> Option<&mut T> {
        self.places.get_mut(at.index as usize).filter(|p| p.0 == at.generation)?.1.as_mut()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    pub(super) fn refs(&self) -> impl Iterator<Item = Ref> {
        (0_u32..)
            .zip(&self.places)
            .filter(|(_, p)| p.1.is_some())
            .map(|(index, p)| Ref { index, generation: p.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_ref_finds_nothing() {
        let mut slab = Slab::default();
        let a = slab.insert("a");
        assert_eq!(slab.remove(a), Some("a"));
        let b = slab.insert("b");
        assert_eq!((slab.get(a), slab.get(b)), (None, Some(&"b")));
        assert_eq!(slab.remove(a), None);
        assert_eq!(Ref::from_bits(b.to_bits()), b);
        slab.discard(a);
        assert_eq!(slab.get(b), Some(&"b"));
        slab.discard(b);
        slab.discard(b);
        assert!(slab.is_empty());
        let c = slab.insert("c");
        assert_eq!((slab.get(b), slab.get(c)), (None, Some(&"c")));
        assert!(!slab.is_empty());
    }
}
