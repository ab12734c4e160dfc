//! Mirrors over real files: what each phase promises, and what breaks when a rule is broken.

mod bench;
mod cancel;
mod copying;
mod errors;
mod group;
mod hang;
mod locks;
mod pivot;
mod random;
mod refusals;
mod replaces;
mod rules;
mod twofold;
mod zeroing;
