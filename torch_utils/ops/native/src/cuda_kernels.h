// CUDA kernels as their binding sees them. Includes no torch header, so that nvcc is fast.
#pragma once

#include <cuda_runtime_api.h>

#include "bias_act.h"
#include "fir.h"

namespace coopinit {

// Both return what the launch reports.
cudaError_t launch_bias_act(const BiasAct& call, cudaStream_t stream);
cudaError_t launch_fir(const Fir& call, cudaStream_t stream);

}  // namespace coopinit
