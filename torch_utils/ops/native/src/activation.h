// Activation functions a(u) with their first two derivatives, one element at a time.
#pragma once

#include "elementary.h"

namespace coopinit {

enum class Activation { Linear, Relu, Lrelu, Tanh, Sigmoid, Elu, Selu, Softplus, Swish };

// Their slope follows from the sign of the input, which their output shares if alpha >= 0.
constexpr bool is_piecewise_linear(Activation act) {
  return act == Activation::Linear || act == Activation::Relu || act == Activation::Lrelu;
}

// SELU (Klambauer et al. 2017): scale * (u for u > 0, else alpha * (exp(u) - 1)).
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;
constexpr double kSeluScale = 1.0507009873554804934193349852946;

// Comparisons are written so that NaN comes out as NaN, as PyTorch's functions do it.
template <Activation ACT, typename A>
COOPINIT_HD A value(A u, A alpha) {
  if constexpr (ACT == Activation::Relu) return u < A(0) ? A(0) : u;
  if constexpr (ACT == Activation::Lrelu) return u > A(0) ? u : u * alpha;
  if constexpr (ACT == Activation::Tanh) return tanh_of(u);
  if constexpr (ACT == Activation::Sigmoid) return sigmoid_of(u);
  if constexpr (ACT == Activation::Elu) return u > A(0) ? u : expm1_of(u);
  if constexpr (ACT == Activation::Selu)
    return A(kSeluScale) * (u > A(0) ? u : A(kSeluAlpha) * expm1_of(u));
  if constexpr (ACT == Activation::Softplus) return softplus_of(u);
  if constexpr (ACT == Activation::Swish) return u * sigmoid_of(u);
  return u;
}

// a'(u). The piecewise linear functions need but the sign of u.
template <Activation ACT, typename A>
COOPINIT_HD A slope(A u, A alpha) {
  if constexpr (ACT == Activation::Relu) return u > A(0) ? A(1) : A(0);
  if constexpr (ACT == Activation::Lrelu) return u > A(0) ? A(1) : alpha;
  if constexpr (ACT == Activation::Tanh) {
    const A t = tanh_of(u);
    return A(1) - t * t;
  }
  if constexpr (ACT == Activation::Sigmoid) {
    const A s = sigmoid_of(u);
    return s * (A(1) - s);
  }
  if constexpr (ACT == Activation::Elu) return u > A(0) ? A(1) : exp_of(u);
  if constexpr (ACT == Activation::Selu)
    return A(kSeluScale) * (u > A(0) ? A(1) : A(kSeluAlpha) * exp_of(u));
  if constexpr (ACT == Activation::Softplus) return sigmoid_of(u);
  if constexpr (ACT == Activation::Swish) {
    const A s = sigmoid_of(u);
    return s * (A(1) + u * (A(1) - s));
  }
  return A(1);
}

// a''(u).
template <Activation ACT, typename A>
COOPINIT_HD A curvature(A u) {
  if constexpr (ACT == Activation::Tanh) {
    const A t = tanh_of(u);
    return A(-2) * t * (A(1) - t * t);
  }
  if constexpr (ACT == Activation::Sigmoid) {
    const A s = sigmoid_of(u);
    return s * (A(1) - s) * (A(1) - A(2) * s);
  }
  if constexpr (ACT == Activation::Elu) return u > A(0) ? A(0) : exp_of(u);
  if constexpr (ACT == Activation::Selu)
    return u > A(0) ? A(0) : A(kSeluScale * kSeluAlpha) * exp_of(u);
  if constexpr (ACT == Activation::Softplus) {
    const A s = sigmoid_of(u);
    return s * (A(1) - s);
  }
  if constexpr (ACT == Activation::Swish) {
    const A s = sigmoid_of(u);
    return s * (A(1) - s) * (A(2) + u * (A(1) - A(2) * s));
  }
  return A(0);
}

}  // namespace coopinit
