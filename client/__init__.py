"""Weft client: what a training loop on a laptop needs, and the wire protocol."""
