// upfirdn2d for factors and filter sizes known to the compiler, as threads and blocks run it. Host
// code may call the same functions, thread by thread: the tests do.
#pragma once

#include "fir.h"

namespace coopinit {

// Factors and taps of one axis.
template <int UP, int DOWN, int TAPS>
struct Shape {
  static constexpr int up = UP, down = DOWN, taps = TAPS;
  // Most taps that meet an output, and most samples under `outputs` neighbouring ones.
  static constexpr int met = (TAPS + UP - 1) / UP;
  static constexpr int samples(int outputs) {
    return ((outputs - 1) * DOWN + TAPS + UP - 1) / UP;
  }
  static bool fits(const Axis& a) { return a.up == UP && a.down == DOWN && a.taps == TAPS; }
};

// A thread computes a strip of kStrip outputs below each other, and reads each sample once.
constexpr int kStrip = 8;

// Sums of one strip. H and W: shapes; PHASE: tap that meets the first sample of the strip's first
// output, 0 <= PHASE < H::up; read(row, column): samples from that one on; weights [H::taps][W::met]
// of the taps that meet the strip's column.
template <typename H, typename W, int PHASE, typename A, typename Read>
COOPINIT_HD void strip_sums(const A* weights, const Read& read, A* sums) {
  constexpr int rows = H::samples(kStrip) + 1;
#pragma unroll
  for (int row = 0; row < rows; ++row) {
    A line[W::met];
#pragma unroll
    for (int i = 0; i < W::met; ++i) line[i] = read(row, i);
#pragma unroll
    for (int t = 0; t < kStrip; ++t) {
      // Output t starts t * down - PHASE positions behind the first sample.
      const int start = t * H::down - PHASE;
      const int first = start > 0 ? (start + H::up - 1) / H::up : 0;
      const int tap = row * H::up - start;
      if (row >= first && tap < H::taps) {
#pragma unroll
        for (int i = 0; i < W::met; ++i) sums[t] += weights[tap * W::met + i] * line[i];
      }
    }
  }
}

// The strip of outputs (row ... row + kStrip - 1, column), whose samples `read` gives from sample
// (first_sample(row), first_sample(column)) on. f: weights of the correlation [H::taps][W::taps].
template <typename H, typename W, typename A, typename Read>
COOPINIT_HD void strip(const Axis& h, const Axis& w, int64_t row, int64_t column, const A* f,
                       const Read& read, A* sums) {
  A weights[H::taps * W::met];
  const int first = static_cast<int>(w.first_tap(column));
#pragma unroll
  for (int y = 0; y < H::taps; ++y) {
#pragma unroll
    for (int i = 0; i < W::met; ++i) {
      const int x = first + i * W::up;
      weights[y * W::met + i] = x < W::taps ? f[y * W::taps + x] : A(0);
    }
  }
#pragma unroll
  for (int t = 0; t < kStrip; ++t) sums[t] = A(0);
  static_assert(H::up <= 2, "phases of a strip are written out");
  if (H::up == 1 || h.first_tap(row) == 0) {
    strip_sums<H, W, 0>(weights, read, sums);
  } else {
    strip_sums<H, W, H::up - 1>(weights, read, sums);
  }
}

// A block of threads and its tile of one contiguous plane: samples go through shared memory.
template <typename T, typename H, typename W>
struct FirTile {
  using A = Accumulator<T>;
  static constexpr int kWidth = 32, kStrips = 4;  // outputs in a row; strips below each other
  static constexpr int kHeight = kStrips * kStrip, kThreads = kWidth * kStrips;
  static constexpr int kSampleRows = H::samples(kHeight) + 1, kSampleColumns = W::samples(kWidth);

  struct Shared {
    A f[H::taps * W::taps];
    // The row after the last is read for strips of the other phase, with taps that do not exist.
    A samples[kSampleRows][kSampleColumns];
  };

  static int64_t tiles(const Fir& c) {
    return ceil_div(c.h.out, kHeight) * ceil_div(c.w.out, kWidth);
  }

  const Fir& call;
  int64_t plane, row, column;  // of the tile's first output

  COOPINIT_HD FirTile(const Fir& c, int64_t plane_, int64_t tile) : call(c), plane(plane_) {
    const int64_t columns = (c.w.out + kWidth - 1) / kWidth;
    row = tile / columns * kHeight;
    column = tile % columns * kWidth;
  }

  // First half: all threads fill `s`, and wait for each other.
  COOPINIT_HD void load(Shared& s, int thread) const {
    for (int i = thread; i < H::taps * W::taps; i += kThreads)
      s.f[i] = static_cast<A>(call.weight(i / W::taps, i % W::taps));
    const int64_t top = call.h.first_sample(row), left = call.w.first_sample(column);
    const T* x = static_cast<const T*>(call.x) + plane * call.h.in * call.w.in;
    for (int i = thread; i < kSampleRows * kSampleColumns; i += kThreads) {
      const int64_t y = top + i / kSampleColumns, z = left + i % kSampleColumns;
      const bool inside = y >= 0 && y < call.h.in && z >= 0 && z < call.w.in;
      s.samples[i / kSampleColumns][i % kSampleColumns] =
          inside ? static_cast<A>(x[y * call.w.in + z]) : A(0);
    }
  }

  // Second half: each thread computes its strip.
  COOPINIT_HD void compute(const Shared& s, int thread) const {
    const int64_t o = row + thread / kWidth * kStrip, p = column + thread % kWidth;
    if (o >= call.h.out || p >= call.w.out) return;
    const int y = static_cast<int>(call.h.first_sample(o) - call.h.first_sample(row));
    const int x = static_cast<int>(call.w.first_sample(p) - call.w.first_sample(column));
    A sums[kStrip];
    // Samples past the tile are under taps that do not exist, whose weight is zero.
    strip<H, W>(call.h, call.w, o, p, s.f, [&](int i, int j) {
      const int r = y + i < kSampleRows ? y + i : kSampleRows - 1;
      const int c = x + j < kSampleColumns ? x + j : kSampleColumns - 1;
      return s.samples[r][c];
    }, sums);
    T* out = static_cast<T*>(call.y) + (plane * call.h.out + o) * call.w.out + p;
#pragma unroll
    for (int t = 0; t < kStrip; ++t)
      if (o + t < call.h.out) out[t * call.w.out] = static_cast<T>(sums[t]);
  }
};

// Channels last: neighbouring threads take neighbouring channels, and read memory directly.
template <typename T, typename H, typename W>
struct FirPixels {
  using A = Accumulator<T>;

  static int64_t threads(const Fir& c) {
    return c.n * ceil_div(c.h.out, kStrip) * c.w.out * c.channels;
  }

  // f: weights of the correlation, in shared memory.
  static COOPINIT_HD void compute(const Fir& c, const A* f, int64_t thread) {
    const int64_t channel = thread % c.channels, p = thread / c.channels % c.w.out;
    const int64_t strips = (c.h.out + kStrip - 1) / kStrip;
    const int64_t rest = thread / c.channels / c.w.out, o = rest % strips * kStrip;
    const int64_t n = rest / strips;
    const int64_t top = c.h.first_sample(o), left = c.w.first_sample(p);
    const T* x = static_cast<const T*>(c.x) + n * c.h.in * c.w.in * c.channels + channel;
    A sums[kStrip];
    strip<H, W>(c.h, c.w, o, p, f, [&](int i, int j) {
      const int64_t y = top + i, z = left + j;
      const bool inside = y >= 0 && y < c.h.in && z >= 0 && z < c.w.in;
      return inside ? static_cast<A>(x[(y * c.w.in + z) * c.channels]) : A(0);
    }, sums);
    T* out = static_cast<T*>(c.y) + ((n * c.h.out + o) * c.w.out + p) * c.channels + channel;
#pragma unroll
    for (int t = 0; t < kStrip; ++t)
      if (o + t < c.h.out) out[t * c.w.out * c.channels] = static_cast<T>(sums[t]);
  }
};

// Any factors and filter, either layout: output `thread` in memory order.
template <typename T>
COOPINIT_HD void fir_output(const Fir& c, int64_t thread) {
  using A = Accumulator<T>;
  const int64_t inner = c.channels_last ? c.channels : 1;
  const int64_t p = thread / inner % c.w.out, o = thread / inner / c.w.out % c.h.out;
  const int64_t plane = thread / inner / c.w.out / c.h.out;
  const T* x = static_cast<const T*>(c.x) + plane * c.h.in * c.w.in * inner + thread % inner;
  A sum = A(0);
  for (int64_t y = c.h.first_sample(o), ky = c.h.first_tap(o); ky < c.h.taps; ++y, ky += c.h.up) {
    if (y < 0 || y >= c.h.in) continue;
    for (int64_t z = c.w.first_sample(p), kx = c.w.first_tap(p); kx < c.w.taps;
         ++z, kx += c.w.up) {
      if (z < 0 || z >= c.w.in) continue;
      sum += static_cast<A>(c.weight(ky, kx)) * static_cast<A>(x[(y * c.w.in + z) * inner]);
    }
  }
  static_cast<T*>(c.y)[thread] = static_cast<T>(sum);
}

// Calls run.template operator()<H, W>() for the shapes that StyleGAN2 and ADA use: 4x4 at up 2,
// down 2 and 1, and passes of 12 taps along either axis. Returns false for any other.
template <typename Run>
bool with_shape(const Fir& c, Run&& run) {
  using One = Shape<1, 1, 1>;
  return run.template try_shape<Shape<2, 1, 4>, Shape<2, 1, 4>>(c) ||
         run.template try_shape<Shape<1, 2, 4>, Shape<1, 2, 4>>(c) ||
         run.template try_shape<Shape<1, 1, 4>, Shape<1, 1, 4>>(c) ||
         run.template try_shape<One, Shape<2, 1, 12>>(c) ||
         run.template try_shape<One, Shape<1, 2, 12>>(c) ||
         run.template try_shape<One, Shape<1, 1, 12>>(c) ||
         run.template try_shape<Shape<2, 1, 12>, One>(c) ||
         run.template try_shape<Shape<1, 2, 12>, One>(c) ||
         run.template try_shape<Shape<1, 1, 12>, One>(c);
}

}  // namespace coopinit
