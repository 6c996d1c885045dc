// The schema of the operators, and their CPU back end.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "binding.h"
#include "cpu_kernels.h"

namespace coopinit {
namespace {

constexpr int64_t kElementsPerThread = 1 << 15;  // fewer are not worth a thread

const CpuKernels& kernels() {
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                           __builtin_cpu_supports("f16c");
  return avx2 ? cpu_kernels_avx2() : cpu_kernels_default();
#else
  return cpu_kernels_default();
#endif
}

// Splits `jobs` that write `elements` numbers between threads.
template <typename Run>
void in_parallel(int64_t jobs, int64_t elements, const Run& run) {
  if (jobs == 0 || elements == 0) return;
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread * jobs / elements);
  at::parallel_for(0, jobs, grain, run);
}

Tensor run_bias_act(const BiasActCall& c) {
  in_parallel(c.call.planes, c.out.numel(), [&](int64_t begin, int64_t end) {
    kernels().bias_act(c.call, begin, end);
  });
  return c.out;
}

Tensor bias_act(const Tensor& x, const std::optional<Tensor>& b, int64_t dim, std::string act,
                double alpha, double gain, std::optional<double> clamp) {
  return run_bias_act(
      prepare_bias_act(Order::Value, x, b, {}, {}, {dim, act, alpha, gain, clamp, false}));
}

Tensor bias_act_grad(const Tensor& dy, const Tensor& saved, const std::optional<Tensor>& b,
                     int64_t dim, std::string act, double alpha, double gain,
                     std::optional<double> clamp, bool from_output) {
  return run_bias_act(
      prepare_bias_act(Order::Slope, saved, b, dy, {}, {dim, act, alpha, gain, clamp, from_output}));
}

Tensor bias_act_grad2(const Tensor& g, const Tensor& dy, const Tensor& x,
                      const std::optional<Tensor>& b, int64_t dim, std::string act, double alpha,
                      double gain, std::optional<double> clamp) {
  return run_bias_act(
      prepare_bias_act(Order::Curvature, x, b, dy, g, {dim, act, alpha, gain, clamp, false}));
}

Tensor upfirdn2d(const Tensor& x, const Tensor& f, at::IntArrayRef up, at::IntArrayRef down,
                 at::IntArrayRef padding, bool flip, double gain) {
  const FirCall c = prepare_fir(x, f, up, down, padding, flip, gain);
  in_parallel(c.y.numel() == 0 ? 0 : fir_jobs(c.call), c.y.numel(),
              [&](int64_t begin, int64_t end) { kernels().fir(c.call, begin, end); });
  return c.y;
}

}  // namespace
}  // namespace coopinit

TORCH_LIBRARY(coopinit, m) {
  m.def(
      "bias_act(Tensor x, Tensor? b, int dim, str act, float alpha, float gain, float? clamp)"
      " -> Tensor");
  m.def(
      "bias_act_grad(Tensor dy, Tensor saved, Tensor? b, int dim, str act, float alpha,"
      " float gain, float? clamp, bool from_output) -> Tensor");
  m.def(
      "bias_act_grad2(Tensor g, Tensor dy, Tensor x, Tensor? b, int dim, str act, float alpha,"
      " float gain, float? clamp) -> Tensor");
  m.def(
      "upfirdn2d(Tensor x, Tensor f, int[] up, int[] down, SymInt[] padding, bool flip,"
      " float gain) -> Tensor");
}

TORCH_LIBRARY_IMPL(coopinit, CPU, m) {
  m.impl("bias_act", TORCH_FN(coopinit::bias_act));
  m.impl("bias_act_grad", TORCH_FN(coopinit::bias_act_grad));
  m.impl("bias_act_grad2", TORCH_FN(coopinit::bias_act_grad2));
  m.impl("upfirdn2d", TORCH_FN(coopinit::upfirdn2d));
}
