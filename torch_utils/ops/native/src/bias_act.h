// y = clamp(gain * a(x + b)) and its derivatives: what both back ends do with one element.
#pragma once

#include "activation.h"

namespace coopinit {

enum class Order { Value, Slope, Curvature };

// One call, without types. Tensors are dense, of one layout, and all of `planes * inner` elements;
// element i has the bias of channel (i / inner) % channels.
struct BiasAct {
  Kind kind;
  Activation act;
  Order order;
  const void* x;   // Value: the input. Else: what the forward pass kept, its input or its output
  const void* b;   // [channels] or null
  const void* dy;  // Slope, Curvature: gradient of the output
  const void* g;   // Curvature: gradient of the gradient of the input
  void* out;
  int64_t planes, channels, inner;
  double alpha, gain;
  double clamp;         // infinity for none
  double stored_clamp;  // clamp, rounded to the dtype of the tensors
  bool from_output;     // x is the output: piecewise linear functions, gain > 0, alpha >= 0
};

// How a gradient learns whether the clamp has cut its element off.
enum class Clamp { None, ByInput, ByOutput };

inline Clamp clamp_of(const BiasAct& call) {
  if (std::isinf(call.clamp)) return Clamp::None;
  return call.from_output ? Clamp::ByOutput : Clamp::ByInput;
}

template <typename A>
struct BiasActElement {
  A alpha, gain, clamp, stored_clamp;

  COOPINIT_HD explicit BiasActElement(const BiasAct& call)
      : alpha(static_cast<A>(call.alpha)),
        gain(static_cast<A>(call.gain)),
        clamp(static_cast<A>(call.clamp)),
        stored_clamp(static_cast<A>(call.stored_clamp)) {}

  // u: x + b.
  template <Activation ACT>
  COOPINIT_HD A forward(A u) const {
    const A v = gain * value<ACT>(u, alpha);
    return v < -clamp ? -clamp : (v > clamp ? clamp : v);
  }

  // u: x + b, or the stored output. Slope: dy * dy/du. Curvature: dy * d^2y/du^2, where dy already
  // holds the product with g.
  template <Activation ACT, Order ORDER, Clamp CLAMP>
  COOPINIT_HD A gradient(A u, A dy) const {
    const A d = ORDER == Order::Slope ? slope<ACT>(u, alpha) : curvature<ACT>(u);
    const A gradient = dy * (gain * d);
    if constexpr (CLAMP == Clamp::ByInput)
      return std::fabs(gain * value<ACT>(u, alpha)) <= clamp ? gradient : A(0);
    if constexpr (CLAMP == Clamp::ByOutput) return std::fabs(u) < stored_clamp ? gradient : A(0);
    return gradient;
  }
};

// Calls f.run<ACT>() for the activation that is known at run time.
template <typename F>
COOPINIT_HD void with_activation(Activation act, F&& f) {
  switch (act) {
    case Activation::Linear: return f.template run<Activation::Linear>();
    case Activation::Relu: return f.template run<Activation::Relu>();
    case Activation::Lrelu: return f.template run<Activation::Lrelu>();
    case Activation::Tanh: return f.template run<Activation::Tanh>();
    case Activation::Sigmoid: return f.template run<Activation::Sigmoid>();
    case Activation::Elu: return f.template run<Activation::Elu>();
    case Activation::Selu: return f.template run<Activation::Selu>();
    case Activation::Softplus: return f.template run<Activation::Softplus>();
    case Activation::Swish: return f.template run<Activation::Swish>();
  }
}

}  // namespace coopinit
