//! Mirrors over real files: what each phase promises, and what breaks when a rule is broken.

mod bench;
mod busy;
mod cancel;
mod copying;
mod ending;
mod errors;
mod group;
mod hang;
mod homes;
mod inner;
mod locks;
mod looking;
mod near;
mod pivot;
mod random;
mod refusals;
mod replaces;
mod rules;
mod slow;
mod twofold;
mod zeroing;
