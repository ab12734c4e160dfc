//! The disk writer that runs inside the demo guest.
