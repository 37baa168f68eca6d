"""Functions on tensors: oracle, CPU form, Triton form. Import the leaf modules."""
