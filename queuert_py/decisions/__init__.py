"""Pure decisions: no await, no clock, no randomness, no I/O. What needs a time or a random number is given it."""
