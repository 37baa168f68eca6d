"""The broker: pure decisions about order, fairness, placement and memory, and a thin shell."""
