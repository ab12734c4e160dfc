//! Drained sections over graphs of all shapes, and the rules of names and parents.

mod bench;
mod drain;
mod names;
mod random;
