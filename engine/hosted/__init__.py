"""Models that run through transformers' own modelling code, with our linears and attention."""
