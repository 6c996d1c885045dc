// CPU kernel of bias_act; included once per instruction set, into namespace COOPINIT_ISA.
namespace coopinit {
namespace COOPINIT_ISA {

template <typename T>
struct BiasActPlanes {
  using A = Accumulator<T>;
  const BiasAct& call;
  int64_t begin, end;

  template <Activation ACT>
  void run() const {
    switch (call.order) {
      case Order::Value: return planes<ACT, Order::Value>();
      case Order::Slope: return planes<ACT, Order::Slope>();
      case Order::Curvature: return planes<ACT, Order::Curvature>();
    }
  }

  template <Activation ACT, Order ORDER>
  void planes() const {
    const BiasActElement<T> element(call);
    const T* b = static_cast<const T*>(call.b);
    if (call.inner == 1) {  // neighbours are channels: whole lines of them
      for (int64_t p = begin; p < end;) {
        const int64_t c = p % call.channels, count = std::min(call.channels - c, end - p);
        line<ACT, ORDER>(element, p, count, [=](int64_t i) { return b ? A(b[c + i]) : A(0); });
        p += count;
      }
      return;
    }
    for (int64_t p = begin; p < end; ++p) {
      const A bias = b ? A(b[p % call.channels]) : A(0);
      line<ACT, ORDER>(element, p * call.inner, call.inner, [=](int64_t) { return bias; });
    }
  }

  template <Activation ACT, Order ORDER, typename Bias>
  void line(const BiasActElement<T>& element, int64_t at, int64_t count, Bias bias) const {
    const BiasActElement<T> e = element;  // a copy that stores through `out` cannot change
    const T* x = static_cast<const T*>(call.x) + at;
    T* out = static_cast<T*>(call.out) + at;
    if constexpr (ORDER == Order::Value) {
      for (int64_t i = 0; i < count; ++i)
        out[i] = static_cast<T>(e.template forward<ACT>(A(x[i]) + bias(i)));
    } else {
      const T* dy = static_cast<const T*>(call.dy) + at;
      const T* g = ORDER == Order::Curvature ? static_cast<const T*>(call.g) + at : nullptr;
      for (int64_t i = 0; i < count; ++i) {
        const A u = A(x[i]) + bias(i);
        const A d = ORDER == Order::Curvature ? A(dy[i]) * A(g[i]) : A(dy[i]);
        out[i] = static_cast<T>(e.template gradient<ACT, ORDER>(u, d));
      }
    }
  }
};

template <typename T>
void bias_act_of(const BiasAct& call, int64_t begin, int64_t end) {
  with_activation(call.act, BiasActPlanes<T>{call, begin, end});
}

void bias_act(const BiasAct& call, int64_t begin, int64_t end) {
  switch (call.kind) {
    case Kind::Half: return bias_act_of<c10::Half>(call, begin, end);
    case Kind::BFloat16: return bias_act_of<c10::BFloat16>(call, begin, end);
    case Kind::Float: return bias_act_of<float>(call, begin, end);
    case Kind::Double: return bias_act_of<double>(call, begin, end);
  }
}

}  // namespace COOPINIT_ISA
}  // namespace coopinit
