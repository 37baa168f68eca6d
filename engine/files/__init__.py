"""Saved states on disk, and PEFT's form of them; below model and broker, free of torch."""
