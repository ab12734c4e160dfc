//! What a history is held against: names, and who stands above whom.

use std::collections::{BTreeMap, BTreeSet};

/// SplitMix64: the same numbers for a seed for ever.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    pub(super) fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }
}

/// Names only: whom each node stands on, and each disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) below: BTreeMap<String, Vec<String>>,
    pub(super) roots: BTreeMap<usize, String>,
}

impl Model {
    pub(super) fn reaches(&self, from: &str, to: &str) -> bool {
        from == to || self.below[from].iter().any(|next| self.reaches(next, to))
    }

    pub(super) fn disks_above(&self, node: Option<&str>) -> Vec<usize> {
        let above = |root: &String| node.is_none_or(|node| self.reaches(root, node));
        let disks = self.roots.iter().filter(|(_, root)| above(root));
        disks.map(|(disk, _)| *disk).collect()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.below.keys().cloned().collect()
    }

    pub(super) fn knows(&self, node: &str) -> bool {
        self.below.contains_key(node)
    }

    /// The names of nodes that begin so.
    pub(super) fn names_with(&self, prefix: &str) -> Vec<String> {
        let names = self.below.keys().filter(|name| name.starts_with(prefix));
        names.cloned().collect()
    }

    /// Gives a node another child; whether that is possible, which it is not if it closed a circle.
    pub(super) fn point(&mut self, above: &str, index: usize, to: &str) -> bool {
        if self.reaches(to, above) {
            return false;
        }
        to.clone_into(&mut self.below.get_mut(above).unwrap()[index]);
        true
    }

    /// `node` and all that is connected with it, upwards and downwards.
    pub(super) fn connected(&self, node: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::from([node.to_owned()]);
        let mut next = vec![node.to_owned()];
        while let Some(node) = next.pop() {
            let above = self.below.iter().filter(|(_, below)| below.contains(&node));
            let above = above.map(|(name, _)| name);
            for other in above.chain(&self.below[&node]) {
                if found.insert(other.clone()) {
                    next.push(other.clone());
                }
            }
        }
        found
    }

    /// Those of `nodes` that disks stand on, once for each disk.
    pub(super) fn roots_among(&self, nodes: &BTreeSet<String>) -> Vec<String> {
        let roots = self.roots.values().filter(|root| nodes.contains(*root));
        roots.cloned().collect()
    }

    /// A filter that was put in goes with its last parent, and then what is below it may go.
    pub(super) fn abandoned(&mut self, node: &str) {
        let used = self.below.values().flatten().chain(self.roots.values());
        if !node.starts_with("inserted") || used.into_iter().any(|used| used == node) {
            return;
        }
        for below in self.below.remove(node).unwrap_or_default() {
            self.abandoned(&below);
        }
    }

    /// Everything above `old` stands on `new` from now on.
    pub(super) fn replace(&mut self, old: &str, new: &str) {
        for (name, below) in &mut self.below {
            if name != new {
                for child in below.iter_mut().filter(|child| *child == old) {
                    new.clone_into(child);
                }
            }
        }
        for root in self.roots.values_mut().filter(|root| *root == old) {
            new.clone_into(root);
        }
    }
}
