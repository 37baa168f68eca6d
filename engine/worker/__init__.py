"""The worker: a process that holds one base model and does what the broker hands it."""
