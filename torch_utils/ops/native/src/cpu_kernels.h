// CPU kernels as the bindings see them: ranges of independent jobs, one table per instruction set.
#pragma once

#include "bias_act.h"
#include "fir.h"

namespace coopinit {

constexpr int64_t kRowsPerJob = 32;  // output rows of one plane that a job filters

struct CpuKernels {
  // Planes [begin, end) of call.planes.
  void (*bias_act)(const BiasAct& call, int64_t begin, int64_t end);
  // Jobs [begin, end) of fir_jobs(call).
  void (*fir)(const Fir& call, int64_t begin, int64_t end);
};

inline int64_t fir_jobs(const Fir& call) {
  if (call.channels_last) return call.n * call.h.out;  // rows of pixels
  return call.n * call.channels * ceil_div(call.h.out, kRowsPerJob);
}

const CpuKernels& cpu_kernels_default();
const CpuKernels& cpu_kernels_avx2();  // x86-64 only

}  // namespace coopinit
