//! Integration tests, the demo and its checker.
