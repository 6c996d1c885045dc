"""Native upfirdn2d and bias_act: C++ and CUDA sources in `src/`, built on first use."""
