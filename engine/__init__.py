"""Weft engine: broker, worker, model and adapters."""
