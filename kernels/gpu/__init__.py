"""The Triton form of the kernels: for CUDA devices, and checked without one by Triton's interpreter."""
