// CPU kernels for whatever the compiler targets by default.
#include "cpu_includes.h"

#define COOPINIT_ISA isa_default
#include "cpu_bias_act.inl"
#include "cpu_fir.inl"

namespace coopinit {
const CpuKernels& cpu_kernels_default() {
  static const CpuKernels kernels = {isa_default::bias_act, isa_default::fir};
  return kernels;
}
}  // namespace coopinit
