// Activation functions a(u) with their first two derivatives, one element at a time.
#pragma once

#include "scalar.h"

namespace coopinit {

enum class Activation { Linear, Relu, Lrelu, Tanh, Sigmoid, Elu, Selu, Softplus, Swish };

// SELU (Klambauer et al. 2017): scale * (u for u > 0, else alpha * (exp(u) - 1)).
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;
constexpr double kSeluScale = 1.0507009873554804934193349852946;
// Above this, softplus is the identity, as in PyTorch.
constexpr double kSoftplusThreshold = 20;

template <typename A>
COOPINIT_HD A sigmoid(A u) {
  return A(1) / (A(1) + std::exp(-u));
}

// Comparisons are written so that NaN comes out as NaN, as PyTorch's functions do it.
template <Activation ACT, typename A>
COOPINIT_HD A value(A u, A alpha) {
  if constexpr (ACT == Activation::Relu) return u < A(0) ? A(0) : u;
  if constexpr (ACT == Activation::Lrelu) return u > A(0) ? u : u * alpha;
  if constexpr (ACT == Activation::Tanh) return std::tanh(u);
  if constexpr (ACT == Activation::Sigmoid) return sigmoid(u);
  if constexpr (ACT == Activation::Elu) return u > A(0) ? u : std::expm1(u);
  if constexpr (ACT == Activation::Selu)
    return A(kSeluScale) * (u > A(0) ? u : A(kSeluAlpha) * std::expm1(u));
  if constexpr (ACT == Activation::Softplus)
    return u > A(kSoftplusThreshold) ? u : std::log1p(std::exp(u));
  if constexpr (ACT == Activation::Swish) return u * sigmoid(u);
  return u;
}

// a'(u). The piecewise linear functions need but the sign of u.
template <Activation ACT, typename A>
COOPINIT_HD A slope(A u, A alpha) {
  if constexpr (ACT == Activation::Relu) return u > A(0) ? A(1) : A(0);
  if constexpr (ACT == Activation::Lrelu) return u > A(0) ? A(1) : alpha;
  if constexpr (ACT == Activation::Tanh) {
    const A t = std::tanh(u);
    return A(1) - t * t;
  }
  if constexpr (ACT == Activation::Sigmoid) {
    const A s = sigmoid(u);
    return s * (A(1) - s);
  }
  if constexpr (ACT == Activation::Elu) return u > A(0) ? A(1) : std::exp(u);
  if constexpr (ACT == Activation::Selu)
    return A(kSeluScale) * (u > A(0) ? A(1) : A(kSeluAlpha) * std::exp(u));
  if constexpr (ACT == Activation::Softplus)
    return u > A(kSoftplusThreshold) ? A(1) : sigmoid(u);
  if constexpr (ACT == Activation::Swish) {
    const A s = sigmoid(u);
    return s * (A(1) + u * (A(1) - s));
  }
  return A(1);
}

// a''(u).
template <Activation ACT, typename A>
COOPINIT_HD A curvature(A u) {
  if constexpr (ACT == Activation::Tanh) {
    const A t = std::tanh(u);
    return A(-2) * t * (A(1) - t * t);
  }
  if constexpr (ACT == Activation::Sigmoid) {
    const A s = sigmoid(u);
    return s * (A(1) - s) * (A(1) - A(2) * s);
  }
  if constexpr (ACT == Activation::Elu) return u > A(0) ? A(0) : std::exp(u);
  if constexpr (ACT == Activation::Selu)
    return u > A(0) ? A(0) : A(kSeluScale * kSeluAlpha) * std::exp(u);
  if constexpr (ACT == Activation::Softplus) {
    const A s = sigmoid(u);
    return u > A(kSoftplusThreshold) ? A(0) : s * (A(1) - s);
  }
  if constexpr (ACT == Activation::Swish) {
    const A s = sigmoid(u);
    return s * (A(1) - s) * (A(2) + u * (A(1) - A(2) * s));
  }
  return A(0);
}

}  // namespace coopinit
