"""`weft verify`: check a model on the user's own machine, against independent code."""
