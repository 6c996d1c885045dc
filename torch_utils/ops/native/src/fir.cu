// CUDA kernels of upfirdn2d: shared-memory tiles for contiguous images, neighbouring channels for
// channels last, one output a thread for filters that nobody specialised.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "cuda_kernels.h"
#include "fir_tile.h"

namespace coopinit {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // more work than that: blocks go on with the next part

unsigned blocks_for(int64_t work) {
  return static_cast<unsigned>(std::min<int64_t>(kMaxBlocks, work));
}

template <typename T, typename H, typename W>
__global__ void __launch_bounds__(FirTile<T, H, W>::kThreads)
    tile_kernel(const Fir call, int64_t tiles, int64_t work) {
  __shared__ typename FirTile<T, H, W>::Shared shared;
  for (int64_t i = blockIdx.x; i < work; i += gridDim.x) {
    const FirTile<T, H, W> tile(call, i / tiles, i % tiles);
    tile.load(shared, threadIdx.x);
    __syncthreads();
    tile.compute(shared, threadIdx.x);
    __syncthreads();  // before the next tile overwrites the samples
  }
}

template <typename T, typename H, typename W>
__global__ void __launch_bounds__(kThreads) pixel_kernel(const Fir call, int64_t work) {
  __shared__ Accumulator<T> f[H::taps * W::taps];
  for (int i = threadIdx.x; i < H::taps * W::taps; i += kThreads)
    f[i] = static_cast<Accumulator<T>>(call.weight(i / W::taps, i % W::taps));
  __syncthreads();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < work; i += step)
    FirPixels<T, H, W>::compute(call, f, i);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) general_kernel(const Fir call, int64_t work) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < work; i += step)
    fir_output<T>(call, i);
}

template <typename T>
struct Launch {
  cudaStream_t stream;

  template <typename H, typename W>
  bool try_shape(const Fir& call) const {
    if (!H::fits(call.h) || !W::fits(call.w)) return false;
    if (call.channels_last) {
      const int64_t work = FirPixels<T, H, W>::threads(call);
      pixel_kernel<T, H, W>
          <<<blocks_for(ceil_div(work, kThreads)), kThreads, 0, stream>>>(call, work);
    } else {
      using Tile = FirTile<T, H, W>;
      const int64_t tiles = Tile::tiles(call), work = tiles * call.n * call.channels;
      tile_kernel<T, H, W><<<blocks_for(work), Tile::kThreads, 0, stream>>>(call, tiles, work);
    }
    return true;
  }
};

template <typename T>
cudaError_t launch(const Fir& call, cudaStream_t stream) {
  const int64_t outputs = call.n * call.channels * call.h.out * call.w.out;
  if (outputs == 0) return cudaSuccess;
  // Double precision is for tests of gradients: the general path does.
  bool done = false;
  if constexpr (sizeof(T) <= 4) done = with_shape(call, Launch<T>{stream});
  if (!done)
    general_kernel<T>
        <<<blocks_for(ceil_div(outputs, kThreads)), kThreads, 0, stream>>>(call, outputs);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_fir(const Fir& call, cudaStream_t stream) {
  switch (call.kind) {
    case Kind::Half: return launch<__half>(call, stream);
    case Kind::BFloat16: return launch<__nv_bfloat16>(call, stream);
    case Kind::Float: return launch<float>(call, stream);
    case Kind::Double: return launch<double>(call, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace coopinit
