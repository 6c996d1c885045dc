// CUDA kernel of bias_act: one pass over memory, 16 bytes at a time where addresses allow it.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda_kernels.h"

namespace coopinit {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // more work than that: threads go on with the next part

// COUNT neighbouring elements, moved as one.
template <typename T, int COUNT>
struct alignas(sizeof(T) * COUNT) Pack {
  T items[COUNT];
};

template <typename T, Order ORDER, int COUNT>
struct Elements {
  using A = Accumulator<T>;
  using Packed = Pack<T, COUNT>;
  const BiasAct& call;
  int64_t pack;  // which one

  static __device__ Packed load(const void* base, int64_t at) {
    return static_cast<const Packed*>(base)[at];
  }

  template <Activation ACT>
  __device__ void run() const {
    if (ORDER == Order::Value || isinf(call.clamp)) return with<ACT, Clamp::None>();
    if constexpr (is_piecewise_linear(ACT)) {
      if (call.from_output) return with<ACT, Clamp::ByOutput>();
    }
    with<ACT, Clamp::ByInput>();
  }

  template <Activation ACT, Clamp CLAMP>
  __device__ void with() const {
    const BiasActElement<A> e(call);
    const Packed x = load(call.x, pack);
    Packed dy, g, out;
    if (ORDER != Order::Value) dy = load(call.dy, pack);
    if (ORDER == Order::Curvature) g = load(call.g, pack);
    const T* b = static_cast<const T*>(call.b);
    int64_t channel = 0, place = 0;  // of the element, and its place among those of the channel
    if (b != nullptr) {
      const int64_t i = pack * COUNT;
      place = i % call.inner;
      channel = i / call.inner % call.channels;
    }
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      A u = static_cast<A>(x.items[i]);
      if (b != nullptr) {
        u += static_cast<A>(b[channel]);
        if (++place == call.inner) {
          place = 0;
          if (++channel == call.channels) channel = 0;
        }
      }
      if constexpr (ORDER == Order::Value) {
        out.items[i] = static_cast<T>(e.template forward<ACT>(u));
      } else {
        A d = static_cast<A>(dy.items[i]);
        if (ORDER == Order::Curvature) d *= static_cast<A>(g.items[i]);
        out.items[i] = static_cast<T>(e.template gradient<ACT, ORDER, CLAMP>(u, d));
      }
    }
    static_cast<Packed*>(call.out)[pack] = out;
  }
};

template <typename T, Order ORDER, int COUNT>
__global__ void __launch_bounds__(kThreads) bias_act_kernel(const BiasAct call, int64_t packs) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += step)
    with_activation(call.act, Elements<T, ORDER, COUNT>{call, i});
}

bool aligned(const BiasAct& call, int64_t count, int pack) {
  bool fits = count % pack == 0;
  for (const void* p : {call.x, call.dy, call.g, static_cast<const void*>(call.out)})
    fits = fits && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return fits;
}

template <typename T, Order ORDER>
cudaError_t launch(const BiasAct& call, cudaStream_t stream) {
  // Double precision is for tests of gradients: one at a time does, and halves its code.
  constexpr int kPack = sizeof(T) == 8 ? 1 : 16 / sizeof(T);
  const int64_t count = call.planes * call.inner;
  if (count == 0) return cudaSuccess;
  const bool packed = aligned(call, count, kPack);
  const int64_t packs = packed ? count / kPack : count;
  const unsigned blocks =
      static_cast<unsigned>(std::min(kMaxBlocks, (packs + kThreads - 1) / kThreads));
  if (packed) {
    bias_act_kernel<T, ORDER, kPack><<<blocks, kThreads, 0, stream>>>(call, packs);
  } else {
    bias_act_kernel<T, ORDER, 1><<<blocks, kThreads, 0, stream>>>(call, packs);
  }
  return cudaGetLastError();
}

template <typename T>
cudaError_t launch_of(const BiasAct& call, cudaStream_t stream) {
  switch (call.order) {
    case Order::Value: return launch<T, Order::Value>(call, stream);
    case Order::Slope: return launch<T, Order::Slope>(call, stream);
    case Order::Curvature: return launch<T, Order::Curvature>(call, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_bias_act(const BiasAct& call, cudaStream_t stream) {
  switch (call.kind) {
    case Kind::Half: return launch_of<__half>(call, stream);
    case Kind::BFloat16: return launch_of<__nv_bfloat16>(call, stream);
    case Kind::Float: return launch_of<float>(call, stream);
    case Kind::Double: return launch_of<double>(call, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace coopinit
