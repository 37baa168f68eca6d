"""Sampling: pages, admission, KV cache, drawing tokens."""
