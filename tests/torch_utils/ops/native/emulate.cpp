// Runs the device code of upfirdn2d on the host: blocks and threads are loops.
#include <memory>
#include <vector>

#include "fir_tile.h"

using namespace coopinit;

namespace {

struct Emulate {
  template <typename H, typename W>
  bool try_shape(const Fir& c) const {
    if (!H::fits(c.h) || !W::fits(c.w)) return false;
    c.channels_last ? pixels<H, W>(c) : tiles<H, W>(c);
    return true;
  }

  template <typename H, typename W>
  static void tiles(const Fir& c) {
    using Tile = FirTile<float, H, W>;
    const auto shared = std::make_unique<typename Tile::Shared>();
    for (int64_t plane = 0; plane < c.n * c.channels; ++plane) {
      for (int64_t i = 0; i < Tile::tiles(c); ++i) {
        const Tile tile(c, plane, i);
        for (int t = 0; t < Tile::kThreads; ++t) tile.load(*shared, t);
        for (int t = 0; t < Tile::kThreads; ++t) tile.compute(*shared, t);
      }
    }
  }

  template <typename H, typename W>
  static void pixels(const Fir& c) {
    std::vector<float> f;
    for (int64_t i = 0; i < H::taps * W::taps; ++i) f.push_back(c.weight(i / W::taps, i % W::taps));
    for (int64_t t = 0; t < FirPixels<float, H, W>::threads(c); ++t)
      FirPixels<float, H, W>::compute(c, f.data(), t);
  }
};

}  // namespace

// sizes: n, channels, then up, down, pad, taps, in, out of height and of width.
extern "C" bool emulate(const float* x, const float* f, float* y, const int64_t* s, bool flip,
                        float gain, bool channels_last, bool general) {
  const Fir call = {Kind::Float, x, f, y, s[0], s[1], {s[2], s[3], s[4], s[5], s[6], s[7]},
                    {s[8], s[9], s[10], s[11], s[12], s[13]}, flip, gain, channels_last};
  if (!general) return with_shape(call, Emulate());
  for (int64_t t = 0; t < call.n * call.channels * call.h.out * call.w.out; ++t)
    fir_output<float>(call, t);
  return true;
}
