// From PyTorch's tensors to the calls that kernels understand; for both back ends.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <climits>
#include <limits>
#include <optional>
#include <string>

#include "bias_act.h"
#include "fir.h"

namespace coopinit {

using at::Tensor;

inline Kind kind_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kHalf: return Kind::Half;
    case at::kBFloat16: return Kind::BFloat16;
    case at::kFloat: return Kind::Float;
    case at::kDouble: return Kind::Double;
    default: TORCH_CHECK(false, "expected a floating-point tensor, not ", x.scalar_type());
  }
}

inline double rounded_to(Kind kind, double value) {
  switch (kind) {
    case Kind::Half: return static_cast<float>(c10::Half(static_cast<float>(value)));
    case Kind::BFloat16: return static_cast<float>(c10::BFloat16(static_cast<float>(value)));
    case Kind::Float: return static_cast<float>(value);
    case Kind::Double: break;
  }
  return value;
}

inline void check_size(int64_t count) {
  TORCH_CHECK(count <= INT_MAX, "a tensor of ", count,
              " elements is too large for the native operators (2^31 - 1): use smaller batches");
}

// Kernels take contiguous and channels-last tensors; anything else is copied.
inline at::MemoryFormat format_of(const Tensor& x) {
  const bool last = !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

inline Activation activation_of(const std::string& name) {
  static const char* const names[] = {"linear", "relu", "lrelu", "tanh", "sigmoid",
                                      "elu", "selu", "softplus", "swish"};
  for (int i = 0; i < 9; ++i)
    if (name == names[i]) return static_cast<Activation>(i);
  TORCH_CHECK(false, "unknown activation ", name);
}

struct BiasActArguments {
  int64_t dim;
  std::string act;
  double alpha, gain;
  std::optional<double> clamp;
  bool from_output;
};

// A call together with the tensors that it points into.
struct BiasActCall {
  BiasAct call;
  Tensor x, b, dy, g, out;
};

inline BiasActCall prepare_bias_act(Order order, const Tensor& x, const std::optional<Tensor>& b,
                                    const Tensor& dy, const Tensor& g, BiasActArguments a) {
  check_size(x.numel());
  const auto format = format_of(x);
  BiasActCall c;
  const auto take = [&](const Tensor& t) {
    if (!t.defined()) return Tensor();
    TORCH_CHECK(t.sizes() == x.sizes() && t.scalar_type() == x.scalar_type() &&
                    t.device() == x.device(),
                "bias_act: tensors of one call must agree in shape, dtype and device");
    return t.contiguous(format);
  };
  c.x = take(x);
  c.dy = take(dy);
  c.g = take(g);
  c.out = at::empty(x.sizes(), x.options(), format);
  c.call = {kind_of(x), activation_of(a.act), order};
  int64_t inner = 1;
  if (b.has_value()) {
    TORCH_CHECK(a.dim >= 0 && a.dim < x.dim() && b->dim() == 1 && b->size(0) == x.size(a.dim) &&
                    b->scalar_type() == x.scalar_type() && b->device() == x.device(),
                "bias_act: the bias does not fit");
    c.b = b->contiguous();
    if (format == at::MemoryFormat::ChannelsLast) {  // in memory: batch, height, width, channel
      const int64_t behind[] = {x.size(1) * x.size(2) * x.size(3), 1, x.size(3) * x.size(1),
                                x.size(1)};
      inner = behind[a.dim];
    } else {
      for (int64_t d = a.dim + 1; d < x.dim(); ++d) inner *= x.size(d);
    }
  }
  // Without a bias there is no structure: one line of any length.
  c.call.channels = c.b.defined() ? c.b.size(0) : std::max<int64_t>(1, x.numel());
  c.call.inner = inner;
  c.call.planes = x.numel() == 0 ? 0 : x.numel() / inner;
  const auto pointer = [](const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
  c.call.x = pointer(c.x);
  c.call.b = pointer(c.b);
  c.call.dy = pointer(c.dy);
  c.call.g = pointer(c.g);
  c.call.out = c.out.mutable_data_ptr();
  c.call.alpha = a.alpha;
  c.call.gain = a.gain;
  c.call.clamp = a.clamp.value_or(std::numeric_limits<double>::infinity());
  c.call.stored_clamp = rounded_to(c.call.kind, c.call.clamp);
  c.call.from_output = a.from_output;
  return c;
}

struct FirCall {
  Fir call;
  Tensor x, f, y;
};

inline FirCall prepare_fir(const Tensor& x, const Tensor& f, at::IntArrayRef up,
                           at::IntArrayRef down, at::IntArrayRef padding, bool flip, double gain) {
  TORCH_CHECK(x.dim() == 4 && f.dim() == 2 && f.scalar_type() == at::kFloat && f.numel() > 0 &&
                  x.device() == f.device(),
              "upfirdn2d: expected images [N, C, H, W] and a float32 filter [fh, fw] beside them");
  TORCH_CHECK(up.size() == 2 && down.size() == 2 && padding.size() == 4 && up[0] > 0 &&
                  up[1] > 0 && down[0] > 0 && down[1] > 0,
              "upfirdn2d: expected positive factors [x, y] and padding [x0, x1, y0, y1]");
  FirCall c;
  const auto axis = [&](int i, int64_t in, int64_t taps) {
    const int64_t padded = in * up[i] + padding[2 * i] + padding[2 * i + 1];
    TORCH_CHECK(padded >= taps, "upfirdn2d: the padded image is smaller than the filter");
    check_size(padded);
    return Axis{up[i], down[i], padding[2 * i], taps, in, (padded - taps) / down[i] + 1};
  };
  const Axis w = axis(0, x.size(3), f.size(1)), h = axis(1, x.size(2), f.size(0));
  check_size(x.numel());
  check_size(x.size(0) * x.size(1) * h.out * w.out);
  const auto format = format_of(x);
  c.x = x.contiguous(format);
  c.f = f.contiguous();
  c.y = at::empty({x.size(0), x.size(1), h.out, w.out}, x.options(), format);
  c.call = {kind_of(x), c.x.const_data_ptr(), c.f.const_data_ptr<float>(), c.y.mutable_data_ptr(),
            x.size(0), x.size(1), h, w, flip, static_cast<float>(gain),
            format == at::MemoryFormat::ChannelsLast};
  return c;
}

}  // namespace coopinit
