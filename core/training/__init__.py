"""One trial's training: ranks, engine, what is trained, what losses need, and the steps."""
