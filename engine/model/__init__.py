"""The frozen base model: configuration, checkpoints, decoder."""
