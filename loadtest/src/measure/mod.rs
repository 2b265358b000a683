//! What the kernel says of processes and of the machine: time on a core, memory, where threads may run.

pub mod cores;
pub mod cpu;
pub mod load;
pub mod memory;
