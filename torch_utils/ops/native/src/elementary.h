// exp and its relatives in float without branches, so that compilers turn loops over them into
// vector code, and so that both back ends give the same numbers. In double they are the library's.
//
// The method is textbook range reduction: x = n ln 2 + r with |r| <= ln 2 / 2, then a Taylor
// polynomial in r. Relative errors are a few units in the last place.
#pragma once

#include <cstring>

#include "scalar.h"

namespace coopinit {

COOPINIT_HD float float_of_bits(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// 2^n in two factors, because 2^128 alone is no float while exp(88.7) is one.
struct PowerOfTwo {
  float first, second;
  COOPINIT_HD explicit PowerOfTwo(int32_t n)
      : first(float_of_bits((n / 2 + 127) << 23)), second(float_of_bits((n - n / 2 + 127) << 23)) {}
};

// exp(r) - 1 for |r| <= ln 2 / 2, and n, from x.
struct ReducedExp {
  float minus_one;
  int32_t n;
  // Beyond -104 and 89 the exponential is 0 or infinite.
  COOPINIT_HD explicit ReducedExp(float x, float low = -104.0f, float high = 89.0f) {
    x = x < low ? low : x;
    x = x > high ? high : x;
    const float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds
    const float rounded = (x * 1.44269504f + shift) - shift;
    n = static_cast<int32_t>(rounded);
    const float r = (x - rounded * 0.693359375f) - rounded * -2.12194440e-4f;  // ln 2 in two parts
    const float tail = r * (1.0f / 120) + r * r * (1.0f / 720) + r * r * r * (1.0f / 5040);
    minus_one = r + r * r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + tail)));
  }
};

COOPINIT_HD float exp_of(float x) {
  const ReducedExp e(x);
  const PowerOfTwo p(e.n);
  return (1.0f + e.minus_one) * p.first * p.second;
}

COOPINIT_HD float minus_one_of(const ReducedExp& e) {
  const PowerOfTwo p(e.n);
  return e.minus_one * p.first * p.second + (p.first * p.second - 1.0f);
}

COOPINIT_HD float expm1_of(float x) { return minus_one_of(ReducedExp(x)); }

// tanh(x) = (exp(2x) - 1) / (exp(2x) + 1), which is 1 in float from x = 9.1 on.
COOPINIT_HD float tanh_of(float x) {
  const float e = minus_one_of(ReducedExp(2.0f * x, -20.0f, 20.0f));
  return e / (e + 2.0f);
}

// log(1 + z) for 0 <= z <= 1 by the series of the inverse hyperbolic tangent at z / (2 + z).
COOPINIT_HD float log1p_of(float z) {
  const float s = z / (2.0f + z), t = s * s;
  const float tail = 1.0f / 9 + t * (1.0f / 11 + t * (1.0f / 13 + t * (1.0f / 15)));
  return 2.0f * s * (1.0f + t * (1.0f / 3 + t * (1.0f / 5 + t * (1.0f / 7 + t * tail))));
}

COOPINIT_HD double exp_of(double x) { return std::exp(x); }
COOPINIT_HD double expm1_of(double x) { return std::expm1(x); }
COOPINIT_HD double tanh_of(double x) { return std::tanh(x); }
COOPINIT_HD double log1p_of(double z) { return std::log1p(z); }

template <typename A>
COOPINIT_HD A sigmoid_of(A x) {
  return A(1) / (A(1) + exp_of(-x));
}

// log(1 + exp(x)), without overflow.
template <typename A>
COOPINIT_HD A softplus_of(A x) {
  return (x < A(0) ? A(0) : x) + log1p_of(exp_of(x < A(0) ? x : -x));
}

}  // namespace coopinit
