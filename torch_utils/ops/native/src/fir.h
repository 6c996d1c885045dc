// Geometry of upfirdn2d: which samples and which taps make an output. Both back ends ask here.
#pragma once

#include "scalar.h"

namespace coopinit {

// One axis: insert up - 1 zeros after each sample, pad, correlate with taps, keep every down-th.
// Sample i lies at position i * up + pad of the padded line; output o sees positions
// o * down ... o * down + taps - 1.
struct Axis {
  int64_t up, down, pad, taps, in, out;

  // The first sample at or after the start of the window of output o; may lie outside the image.
  COOPINIT_HD int64_t first_sample(int64_t o) const { return ceil_div(o * down - pad, up); }
  // The tap that meets it. The following samples meet every up-th tap.
  COOPINIT_HD int64_t first_tap(int64_t o) const {
    return first_sample(o) * up - (o * down - pad);
  }
};

// One call, without types. x and y are [n, channels, in, in] and [n, channels, out, out], both
// contiguous or both channels last.
struct Fir {
  Kind kind;
  const void* x;
  const float* f;  // [taps of h][taps of w]
  void* y;
  int64_t n, channels;
  Axis h, w;
  bool flip;  // f is correlated as it is, else it is reversed first
  float gain;
  bool channels_last;

  // Weight of a tap of the correlation.
  COOPINIT_HD float weight(int64_t ky, int64_t kx) const {
    const int64_t at = ky * w.taps + kx;
    return f[flip ? at : h.taps * w.taps - 1 - at] * gain;
  }
};

}  // namespace coopinit
