// CPU kernels as the bindings see them: ranges of independent jobs, one table per instruction set.
#pragma once

#include <algorithm>

#include "bias_act.h"
#include "fir.h"

namespace coopinit {

struct CpuKernels {
  // Planes [begin, end) of call.planes.
  void (*bias_act)(const BiasAct& call, int64_t begin, int64_t end);
  // Jobs [begin, end) of fir_jobs(call).
  void (*fir)(const Fir& call, int64_t begin, int64_t end);
};

// A job filters that many output rows of one plane, or of one sample if channels are last.
inline int64_t rows_per_job(const Fir& call) {
  return std::min<int64_t>(call.h.out, call.channels_last ? 8 : 32);
}

inline int64_t fir_jobs(const Fir& call) {
  const int64_t planes = call.channels_last ? call.n : call.n * call.channels;
  return planes * ceil_div(call.h.out, rows_per_job(call));
}

const CpuKernels& cpu_kernels_default();
const CpuKernels& cpu_kernels_avx2();  // x86-64 only

}  // namespace coopinit
