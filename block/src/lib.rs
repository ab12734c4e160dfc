//! Block graph, drained sections and block jobs of Sluice.

pub mod dirty;
