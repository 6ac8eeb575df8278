//! A persistent bag of things with weights: what endpoints are drawn from. Copying it is cheap, changing
//! one thing costs the logarithm of how many there are, and the copy from before stays as it was.
//!
//! Things lie dense, from 0 to `len`, so that a draw of equal ones is one random number; the last one takes
//! the place of one that is taken out. Up to [`FLAT`] are in one array, as nearly all versions are small
//! and requests read it all the time; a change then copies it. Above that they are the leaves of a tree
//! whose nodes know the sums of the weights below them.

use std::sync::Arc;

/// Most things in one array.
const FLAT: u32 = 64;
/// A tree with so few becomes an array again; far enough from [`FLAT`] that it does not go to and fro.
const SPARSE: u32 = 32;
/// 16 things in a leaf, 32 children of an inner node: what a change copies, and how deep a draw goes.
const LEAF_BITS: u32 = 4;
const INNER_BITS: u32 = 5;

/// What has a weight, at least 1.
pub(crate) trait Weighed {
    fn weight(&self) -> u32;
}

/// See the head of the file.
#[derive(Clone, Debug)]
pub(crate) struct Bag<T> {
    root: Node<T>,
    /// Inner nodes above each leaf.
    height: u32,
    len: u32,
}

#[derive(Clone, Debug)]
enum Node<T> {
    Leaf(Row<T>),
    Inner(Row<Child<T>>),
}

#[derive(Clone, Debug)]
struct Child<T> {
    node: Arc<Node<T>>,
    /// That of the node, so that its neighbours' changes need not touch it.
    sum: Sum,
}

/// What lies side by side in a node.
#[derive(Clone, Debug)]
struct Row<I> {
    items: Vec<I>,
    sum: Sum,
    /// `ends[i]` is the sum of the weights up to and including item `i`; empty when all things below are
    /// alike.
    ends: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    total: u64,
    /// The weight of each thing if they are alike, else 0.
    each: u32,
}

impl<T> Default for Bag<T> {
    fn default() -> Self {
        Self { root: Node::empty(0), height: 0, len: 0 }
    }
}

impl<T> Bag<T> {
    /// How many there are.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// The thing at place `index`, which is below [`Self::len`].
    #[inline]
    pub(crate) fn at(&self, index: u32) -> &T {
        match &self.root {
            Node::Leaf(leaf) => &leaf.items[index as usize],
            Node::Inner(_) => self.root.at(self.height, index),
        }
    }

    /// All, by place.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.len).map(|index| self.at(index))
    }

    /// Draws a place by weight. There is at least one.
    pub(crate) fn draw(&self, rng: &mut fastrand::Rng) -> u32 {
        match self.root.sum() {
            Sum { each: 0, total } => self.locate(rng.u64(0..total)).0,
            _ => rng.u32(0..self.len),
        }
    }

    /// Two distinct places, the second drawn by weight among what the first leaves. There are at least
    /// two.
    #[inline]
    pub(crate) fn draw_two(&self, rng: &mut fastrand::Rng) -> (u32, u32) {
        match self.root.sum() {
            Sum { each: 0, total } => self.draw_two_of(total, rng),
            _ => {
                let first = rng.u32(0..self.len);
                let second = rng.u32(0..self.len - 1);
                (first, second + u32::from(second >= first))
            }
        }
    }

    fn draw_two_of(&self, total: u64, rng: &mut fastrand::Rng) -> (u32, u32) {
        let (first, from, width) = self.locate(rng.u64(0..total));
        // Cut the first one out of the line and draw again on what remains.
        let point = rng.u64(0..total - width);
        (first, self.locate(if point >= from { point + width } else { point }).0)
    }

    /// Whose stretch `point` is in when all lie in a line, each as long as its weight: its place, where
    /// its stretch begins, and how long it is. `point` is below the sum of all.
    fn locate(&self, point: u64) -> (u32, u64, u64) {
        let (mut node, mut height) = (&self.root, self.height);
        let (mut base, mut from) = (0, 0);
        loop {
            let within = point - from;
            if let each @ 1.. = u64::from(node.sum().each) {
                let skipped = within / each;
                return (base + skipped as u32, from + skipped * each, each);
            }
            match node {
                Node::Leaf(leaf) => {
                    let (at, start) = leaf.locate(within);
                    return (base + at as u32, from + start, leaf.ends[at] - start);
                }
                Node::Inner(inner) => {
                    let (at, start) = inner.locate(within);
                    node = &inner.items[at].node;
                    (base, from) = (base + ((at as u32) << shift(height)), from + start);
                    height -= 1;
                }
            }
        }
    }
}

impl<T: Clone + Weighed> Bag<T> {
    /// Adds `item` at the end.
    pub(crate) fn push(&mut self, item: T) {
        if self.height == 0 && self.len == FLAT {
            self.branch();
        } else if self.height > 0 && self.len.checked_shr(shift(self.height + 1)).unwrap_or(0) > 0 {
            let root = std::mem::replace(&mut self.root, Node::empty(self.height + 1));
            if let Node::Inner(inner) = &mut self.root {
                inner.items.push(Child::new(root));
            }
            self.height += 1;
        }
        self.root.change(self.height, self.len, |items, _| items.push(item));
        self.len += 1;
    }

    /// Puts `item` in the place of another, which is returned. `index` is below [`Self::len`].
    pub(crate) fn set(&mut self, index: u32, item: T) -> T {
        self.root.change(self.height, index, |items, at| std::mem::replace(&mut items[at], item))
    }

    /// Takes one out; the last one takes its place. `None` when `index` is not below [`Self::len`].
    pub(crate) fn swap_remove(&mut self, index: u32) -> Option<T> {
        if index >= self.len {
            return None;
        }
        let last = self.root.change(self.height, self.len - 1, |items, _| items.pop())?;
        self.len -= 1;
        self.shrink();
        Some(if index == self.len { last } else { self.set(index, last) })
    }

    /// The one array becomes a tree.
    fn branch(&mut self) {
        if let Node::Leaf(leaf) = &self.root {
            let leaves = leaf.items.chunks(1 << LEAF_BITS);
            let children = leaves.map(|items| Child::new(Node::leaf(items.to_vec())));
            self.root = Node::Inner(Row::of(children.collect()));
            self.height = 1;
        }
    }

    fn shrink(&mut self) {
        if self.height > 0 && self.len <= SPARSE {
            *self = Self { root: Node::leaf(self.iter().cloned().collect()), height: 0, len: self.len };
            return;
        }
        while let Node::Inner(inner) = &self.root
            && let [only] = inner.items.as_slice()
        {
            self.root = Node::clone(&only.node);
            self.height -= 1;
        }
    }
}

impl<T> Node<T> {
    fn empty(height: u32) -> Self {
        if height == 0 { Self::Leaf(Row::of(vec![])) } else { Self::Inner(Row::of(vec![])) }
    }

    fn at(&self, mut height: u32, mut index: u32) -> &T {
        let mut node = self;
        loop {
            match node {
                Self::Leaf(leaf) => return &leaf.items[index as usize],
                Self::Inner(inner) => {
                    let (child, below) = split(index, height);
                    node = &inner.items[child].node;
                    (index, height) = (below, height - 1);
                }
            }
        }
    }

    #[inline]
    fn sum(&self) -> Sum {
        match self {
            Self::Leaf(row) => row.sum,
            Self::Inner(row) => row.sum,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Leaf(row) => row.items.is_empty(),
            Self::Inner(row) => row.items.is_empty(),
        }
    }
}

impl<T: Clone + Weighed> Node<T> {
    fn leaf(items: Vec<T>) -> Self {
        let mut leaf = Row::of(items);
        leaf.weigh(|item| alike(item.weight()));
        Self::Leaf(leaf)
    }

    /// Lets `change` have the leaf of `index` and the place in it, in a node of `height`; copies what
    /// others share on the way. Only the end of the last leaf may become longer or shorter.
    fn change<R>(&mut self, height: u32, index: u32, change: impl FnOnce(&mut Vec<T>, usize) -> R) -> R {
        match self {
            Self::Leaf(leaf) => {
                let result = change(&mut leaf.items, index as usize);
                leaf.weigh(|item| alike(item.weight()));
                result
            }
            Self::Inner(inner) => {
                let (at, below) = split(index, height);
                if at == inner.items.len() {
                    inner.items.push(Child::new(Self::empty(height - 1)));
                }
                let child = &mut inner.items[at];
                let result = Arc::make_mut(&mut child.node).change(height - 1, below, change);
                child.sum = child.node.sum();
                if child.node.is_empty() {
                    inner.items.truncate(at);
                }
                inner.weigh(|child| child.sum);
                result
            }
        }
    }
}

impl<T> Child<T> {
    fn new(node: Node<T>) -> Self {
        Self { sum: node.sum(), node: Arc::new(node) }
    }
}

impl<I> Row<I> {
    fn of(items: Vec<I>) -> Self {
        Self { items, sum: Sum::default(), ends: Vec::new() }
    }

    /// Adds up again what each item weighs.
    fn weigh(&mut self, sum: impl Fn(&I) -> Sum) {
        let each = self.items.first().map_or(0, |first| sum(first).each);
        let mut end = 0;
        self.ends.clear();
        if each != 0 && self.items.iter().all(|item| sum(item).each == each) {
            end = self.items.iter().map(|item| sum(item).total).sum();
            self.sum = Sum { total: end, each };
            return;
        }
        self.ends.extend(self.items.iter().map(|item| {
            end += sum(item).total;
            end
        }));
        self.sum = Sum { total: end, each: 0 };
    }

    /// The item whose stretch `point` is in, and where that begins.
    fn locate(&self, point: u64) -> (usize, u64) {
        let at = self.ends.partition_point(|&end| end <= point);
        (at, if at == 0 { 0 } else { self.ends[at - 1] })
    }
}

fn alike(weight: u32) -> Sum {
    let weight = weight.max(1);
    Sum { total: weight.into(), each: weight }
}

/// How many bits of an index say which thing below a child of a node of `height`, which is not 0.
const fn shift(height: u32) -> u32 {
    LEAF_BITS + INNER_BITS * (height - 1)
}

/// The child of a node of `height` that `index` is in, and its index there.
fn split(index: u32, height: u32) -> (usize, u32) {
    let shift = shift(height);
    ((index >> shift) as usize, index & ((1 << shift) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thing, and its weight.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Thing(u32, u32);

    impl Weighed for Thing {
        fn weight(&self) -> u32 {
            self.1
        }
    }

    fn of(things: impl IntoIterator<Item = Thing>) -> Bag<Thing> {
        let mut bag = Bag::default();
        things.into_iter().for_each(|thing| bag.push(thing));
        bag
    }

    fn assert_same(bag: &Bag<Thing>, model: &[Thing], context: &str) {
        assert_eq!(bag.iter().collect::<Vec<_>>(), model.iter().collect::<Vec<_>>(), "{context}");
        assert_eq!(bag.len() as usize, model.len(), "{context}");
        let total: u64 = model.iter().map(|thing| u64::from(thing.1)).sum();
        assert_eq!(bag.root.sum().total, total, "{context}");
        let alike = model.windows(2).all(|pair| pair[0].1 == pair[1].1);
        assert_eq!(bag.root.sum().each, model.first().filter(|_| alike).map_or(0, |t| t.1), "{context}");
    }

    /// Every point of the line belongs to whom it belongs when weights are added up one by one.
    fn assert_line(bag: &Bag<Thing>, model: &[Thing], context: &str) {
        let mut from = 0;
        for (at, thing) in (0..).zip(model) {
            let width = u64::from(thing.1);
            for point in [from, from + width / 2, from + width - 1] {
                assert_eq!(bag.locate(point), (at, from, width), "{context}, point {point}");
            }
            from += width;
        }
    }

    #[test]
    fn a_bag_is_a_list_whatever_is_done_to_it_and_copies_stay_as_they_were() {
        for seed in 0..30 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut bag, mut model) = (Bag::default(), Vec::new());
            let weights = if rng.bool() { 1..2 } else { 1..9 };
            // Grows and shrinks over the bounds of arrays, leaves and inner nodes.
            for step in 0..3_000 {
                let growing = (step / 700) % 2 == 0;
                let thing = Thing(step, rng.u32(weights.clone()));
                let before = (step % 97 == 0).then(|| (bag.clone(), model.clone()));
                match rng.u8(0..10) {
                    0..2 if !model.is_empty() => {
                        let at = rng.usize(0..model.len());
                        let replaced = std::mem::replace(&mut model[at], thing.clone());
                        assert_eq!(bag.set(at as u32, thing), replaced, "seed {seed}, step {step}");
                    }
                    n if (n < 8) == growing => {
                        bag.push(thing.clone());
                        model.push(thing);
                    }
                    _ if model.is_empty() => assert_eq!(bag.swap_remove(0), None),
                    _ => {
                        let at = rng.usize(0..model.len());
                        let removed = model.swap_remove(at);
                        assert_eq!(bag.swap_remove(at as u32), Some(removed), "seed {seed}, step {step}");
                    }
                }
                if let Some((bag, model)) = before {
                    assert_same(&bag, &model, &format!("seed {seed}, before step {step}"));
                }
                if step % 53 == 0 {
                    let context = format!("seed {seed}, step {step}");
                    assert_same(&bag, &model, &context);
                    assert_line(&bag, &model, &context);
                }
            }
        }
    }

    #[test]
    fn a_bag_that_was_large_is_one_array_again_when_it_is_small() {
        let mut bag = of((0..20_000).map(|i| Thing(i, 1)));
        assert_eq!(bag.height, 3);
        while bag.len() > SPARSE {
            bag.swap_remove(0);
        }
        assert_eq!(bag.height, 0);
    }

    /// How many nodes of `after` are not shared with `before`, and how many there are.
    fn copied(before: &Node<Thing>, after: &Node<Thing>) -> (usize, usize) {
        let (Node::Inner(before), Node::Inner(after)) = (before, after) else { return (1, 1) };
        let mut counts = (1, 1);
        for (i, child) in after.items.iter().enumerate() {
            let old = before.items.get(i);
            let shared = old.is_some_and(|old| Arc::ptr_eq(&old.node, &child.node));
            let old = old.map_or(&child.node, |old| &old.node);
            let below = copied(old, &child.node);
            counts.0 += if shared { 0 } else { below.0 };
            counts.1 += below.1;
        }
        counts
    }

    #[test]
    fn a_change_copies_a_path_however_many_there_are() {
        for (count, nodes) in [(100, 5), (1_000, 60), (10_000, 600), (100_000, 6_000)] {
            let before = of((0..count).map(|i| Thing(i, 1 + i % 3)));
            let depth = before.height as usize + 1;
            for change in 0..4 {
                let mut after = before.clone();
                // One path, and the way to the last one, which takes the place.
                match change {
                    0 => _ = after.set(count / 2, Thing(0, 9)),
                    1 => _ = after.swap_remove(count / 3),
                    2 => _ = after.swap_remove(count - 1),
                    _ => after.push(Thing(count, 5)),
                }
                let most = if change == 1 { 2 * depth - 1 } else { depth };
                let (new, all) = copied(&before.root, &after.root);
                assert!(new <= most && all > nodes, "{count}: {new} of {all} nodes copied by {change}");
            }
        }
    }
}
