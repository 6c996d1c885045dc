// CPU kernels for x86-64 processors with AVX2 and FMA. One binary thus serves every machine: the
// binding asks the processor at run time.
#include "cpu_includes.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define COOPINIT_ISA isa_avx2
#include "cpu_bias_act.inl"
#include "cpu_fir.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace coopinit {
const CpuKernels& cpu_kernels_avx2() {
  static const CpuKernels kernels = {isa_avx2::bias_act, isa_avx2::fir};
  return kernels;
}
}  // namespace coopinit
#endif
