"""Adapters: their state, weights versions, linears, losses, head and optimizer."""
