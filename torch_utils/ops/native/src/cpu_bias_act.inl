// CPU kernel of bias_act; included once per instruction set, into namespace COOPINIT_ISA.
//
// Works in chunks that stay in the first-level cache: inputs are converted and biased, then comes
// one loop of arithmetic, then the result is converted. The loops are vector code, each of them.
namespace coopinit {
namespace COOPINIT_ISA {

constexpr int64_t kChunk = 512;

// Arithmetic on one chunk. u: x + b or the stored output; d: dy, or dy * g.
template <typename A>
struct BiasActChunk {
  const BiasAct& call;
  const A* u;
  const A* d;
  A* out;
  int64_t size;

  template <Activation ACT>
  void run() const {
    const BiasActElement<A> e(call);
    if (call.order == Order::Value) {
      for (int64_t i = 0; i < size; ++i) out[i] = e.template forward<ACT>(u[i]);
    } else if (call.order == Order::Slope) {
      gradient<ACT, Order::Slope>(e);
    } else if constexpr (!is_piecewise_linear(ACT)) {
      gradient<ACT, Order::Curvature>(e);
    } else {
      for (int64_t i = 0; i < size; ++i) out[i] = A(0);
    }
  }

  template <Activation ACT, Order ORDER>
  void gradient(const BiasActElement<A>& e) const {
    const Clamp clamp = clamp_of(call);
    if constexpr (is_piecewise_linear(ACT)) {
      if (clamp == Clamp::ByOutput) return gradient<ACT, ORDER, Clamp::ByOutput>(e);
    }
    if (clamp == Clamp::None) return gradient<ACT, ORDER, Clamp::None>(e);
    gradient<ACT, ORDER, Clamp::ByInput>(e);
  }

  template <Activation ACT, Order ORDER, Clamp CLAMP>
  void gradient(const BiasActElement<A> e) const {
    for (int64_t i = 0; i < size; ++i)
      out[i] = e.template gradient<ACT, ORDER, CLAMP>(u[i], d[i]);
  }
};

template <typename T>
class BiasActLines {
  using A = Accumulator<T>;

 public:
  explicit BiasActLines(const BiasAct& call) : call_(call) {}

  void planes(int64_t begin, int64_t end) {
    if (call_.inner == 1) {  // neighbours are channels: lines of them
      for (int64_t p = begin; p < end;) {
        const int64_t c = p % call_.channels, count = std::min(call_.channels - c, end - p);
        for (int64_t i = 0; i < count; i += kChunk)
          chunk(p + i, std::min(kChunk, count - i), c + i, true);
        p += count;
      }
      return;
    }
    for (int64_t p = begin; p < end; ++p)
      for (int64_t i = 0; i < call_.inner; i += kChunk)
        chunk(p * call_.inner + i, std::min(kChunk, call_.inner - i), p % call_.channels, false);
  }

 private:
  static const T* at(const void* base, int64_t offset) {
    return static_cast<const T*>(base) + offset;
  }

  // Elements [offset, offset + size); biases from `channel` on, or that of `channel` for all.
  void chunk(int64_t offset, int64_t size, int64_t channel, bool per_element) {
    const T* x = at(call_.x, offset);
    if (call_.b == nullptr) {
      for (int64_t i = 0; i < size; ++i) u_[i] = A(x[i]);
    } else if (per_element) {
      const T* b = at(call_.b, channel);
      for (int64_t i = 0; i < size; ++i) u_[i] = A(x[i]) + A(b[i]);
    } else {
      const A b = A(*at(call_.b, channel));
      for (int64_t i = 0; i < size; ++i) u_[i] = A(x[i]) + b;
    }
    if (call_.order != Order::Value) {
      const T* dy = at(call_.dy, offset);
      for (int64_t i = 0; i < size; ++i) d_[i] = A(dy[i]);
    }
    if (call_.order == Order::Curvature) {
      const T* g = at(call_.g, offset);
      for (int64_t i = 0; i < size; ++i) d_[i] *= A(g[i]);
    }
    T* out = static_cast<T*>(call_.out) + offset;
    if constexpr (std::is_same<T, A>::value) {
      with_activation(call_.act, BiasActChunk<A>{call_, u_, d_, out, size});
    } else {
      with_activation(call_.act, BiasActChunk<A>{call_, u_, d_, u_, size});
      for (int64_t i = 0; i < size; ++i) out[i] = static_cast<T>(u_[i]);
    }
  }

  const BiasAct& call_;
  A u_[kChunk], d_[kChunk];
};

void bias_act(const BiasAct& call, int64_t begin, int64_t end) {
  switch (call.kind) {
    case Kind::Half: return BiasActLines<c10::Half>(call).planes(begin, end);
    case Kind::BFloat16: return BiasActLines<c10::BFloat16>(call).planes(begin, end);
    case Kind::Float: return BiasActLines<float>(call).planes(begin, end);
    case Kind::Double: return BiasActLines<double>(call).planes(begin, end);
  }
}

}  // namespace COOPINIT_ISA
}  // namespace coopinit
