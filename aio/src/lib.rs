//! Event loops, the external gate and I/O engines of Sluice.
