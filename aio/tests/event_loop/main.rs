//! The event loop from outside: tasks, timers, descriptors, I/O, its life inside another loop, and
//! its end.
#![cfg(not(loom))]

#[cfg(test)]
mod contract;
#[cfg(test)]
mod destructors;
#[cfg(test)]
mod ending;
#[cfg(test)]
mod fairness;
#[cfg(test)]
mod fds;
#[cfg(test)]
mod in_flight;
#[cfg(test)]
mod io;
#[cfg(test)]
mod joining;
#[cfg(test)]
mod nested;
#[cfg(test)]
mod polling;
#[cfg(test)]
mod refused;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tasks;
#[cfg(test)]
mod timers;
#[cfg(test)]
mod wakers;
