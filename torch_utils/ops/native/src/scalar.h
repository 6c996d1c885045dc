// What the CUDA and the C++ back end share at the lowest level. Includes no torch header.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define COOPINIT_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define COOPINIT_HD inline __attribute__((always_inline))
#else
#define COOPINIT_HD inline
#endif

namespace coopinit {

enum class Kind { Half, BFloat16, Float, Double };

// Half precisions are only a way to store numbers: arithmetic on them is in float.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

COOPINIT_HD int64_t ceil_div(int64_t a, int64_t b) {  // b > 0
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}

}  // namespace coopinit
