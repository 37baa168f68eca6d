"""How far are the GPU kernels from what the device allows?

    python bench/kernels.py [--minutes 7] [--only linears|decode|optimizer]
    python bench/kernels.py --dry-run        everything once, tiny, without a device

On the shapes of Qwen3-8B, random weights, against rates that are measured first:

    linears     forward and backward of all linears of a layer with adapters: cuBLAS that adds to
                what the adapters wrote (beta), and the Triton GEMM with adapters inside (fused).
                Beside: the frozen linears (forward and input gradient) by cuBLAS and by the Triton
                GEMM, torch matmuls with one adapter of the mean rank, tenant after tenant,
                grouped_mm, PEFT, and the computed floor
    decode      forward of 1 to 256 rows by graph replay, without adapters, with one, with many
    optimizer   norms and AdamW of 1, 8 and 64 adapters, beside PyTorch's

Results are compared with float64 before they are timed: a wrong kernel ends the bench. Rows come in
the order of what they tell; those that the time does not suffice for are named in the result.

This file imports nothing unless it is run: `transformers` looks for a package of its name.
"""

if __name__ == "__main__":
    from kernels_main import main

    main()
