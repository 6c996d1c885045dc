// The CUDA back end of the operators whose schema cpu_binding.cpp defines.
// c10 alone: ATen's CUDA headers need more of the toolkit.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "binding.h"
#include "cuda_kernels.h"

namespace coopinit {
namespace {

Tensor run_bias_act(const BiasActCall& c) {
  C10_CUDA_CHECK(launch_bias_act(c.call, c10::cuda::getCurrentCUDAStream()));
  return c.out;
}

Tensor bias_act(const Tensor& x, const std::optional<Tensor>& b, int64_t dim, std::string act,
                double alpha, double gain, std::optional<double> clamp) {
  const c10::cuda::CUDAGuard guard(x.device());
  return run_bias_act(
      prepare_bias_act(Order::Value, x, b, {}, {}, {dim, act, alpha, gain, clamp, false}));
}

Tensor bias_act_grad(const Tensor& dy, const Tensor& saved, const std::optional<Tensor>& b,
                     int64_t dim, std::string act, double alpha, double gain,
                     std::optional<double> clamp, bool from_output) {
  const c10::cuda::CUDAGuard guard(saved.device());
  return run_bias_act(
      prepare_bias_act(Order::Slope, saved, b, dy, {}, {dim, act, alpha, gain, clamp, from_output}));
}

Tensor bias_act_grad2(const Tensor& g, const Tensor& dy, const Tensor& x,
                      const std::optional<Tensor>& b, int64_t dim, std::string act, double alpha,
                      double gain, std::optional<double> clamp) {
  const c10::cuda::CUDAGuard guard(x.device());
  return run_bias_act(
      prepare_bias_act(Order::Curvature, x, b, dy, g, {dim, act, alpha, gain, clamp, false}));
}

Tensor upfirdn2d(const Tensor& x, const Tensor& f, at::IntArrayRef up, at::IntArrayRef down,
                 at::IntArrayRef padding, bool flip, double gain) {
  const c10::cuda::CUDAGuard guard(x.device());
  const FirCall c = prepare_fir(x, f, up, down, padding, flip, gain);
  C10_CUDA_CHECK(launch_fir(c.call, c10::cuda::getCurrentCUDAStream()));
  return c.y;
}

}  // namespace
}  // namespace coopinit

TORCH_LIBRARY_IMPL(coopinit, CUDA, m) {
  m.impl("bias_act", TORCH_FN(coopinit::bias_act));
  m.impl("bias_act_grad", TORCH_FN(coopinit::bias_act_grad));
  m.impl("bias_act_grad2", TORCH_FN(coopinit::bias_act_grad2));
  m.impl("upfirdn2d", TORCH_FN(coopinit::upfirdn2d));
}
