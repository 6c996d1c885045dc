// CPU kernel of upfirdn2d; included once per instruction set, into namespace COOPINIT_ISA.
//
// A block of output rows at a time. Along an axis, outputs that are `up` apart form a phase: they
// meet the same taps, and their samples are `down` apart. So samples are first copied, with the
// zeros around them, such that those that are `down` apart become neighbours. Then all outputs of
// a phase are one weighted sum of shifted memory, whatever the factors are: a long loop.
//
// A filter is taken as a sum of outer products, columns first: the filters of StyleGAN2 and ADA are
// one, any other filter is one for each of its rows. Channels-last images are images of groups of
// numbers, pixels.
namespace coopinit {
namespace COOPINIT_ISA {

// Memory that grows. No std::vector: its functions are shared between all object files, and the
// linker might keep the copy that was compiled for the wrong instruction set.
template <typename V>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<V*>(std::calloc(std::max<int64_t>(1, size), sizeof(V)))) {
    if (!data_) throw std::bad_alloc();
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  V& operator[](int64_t i) { return data_[i]; }
  V* data() { return data_; }

 private:
  V* data_;
};

// out[i] = (ADD ? out[i] : 0) + sum over t < COUNT of weights[t] * sources[t][i].
template <int COUNT, bool ADD, typename S, typename A>
void sum_some(const A* weights, const S* const* sources, A* __restrict out, int64_t size) {
  A w[COUNT];
  const S* s[COUNT];
  for (int t = 0; t < COUNT; ++t) w[t] = weights[t], s[t] = sources[t];
  for (int64_t i = 0; i < size; ++i) {
    A sum = ADD ? out[i] : A(0);
    for (int t = 0; t < COUNT; ++t) sum += w[t] * A(s[t][i]);
    out[i] = sum;
  }
}

// The same for any count from 1 on: one loop for the filters of the networks, which have 4 taps, or
// 12 with 6 of them in each phase; else several.
template <bool ADD, typename S, typename A>
void weighted_sum(const A* w, const S* const* s, int64_t count, A* out, int64_t size) {
  switch (count) {
    case 1: return sum_some<1, ADD>(w, s, out, size);
    case 2: return sum_some<2, ADD>(w, s, out, size);
    case 3: return sum_some<3, ADD>(w, s, out, size);
    case 4: return sum_some<4, ADD>(w, s, out, size);
    case 6: return sum_some<6, ADD>(w, s, out, size);
    case 12: return sum_some<12, ADD>(w, s, out, size);
    default:
      sum_some<4, ADD>(w, s, out, size);
      return weighted_sum<true>(w + 4, s + 4, count - 4, out, size);
  }
}

// Whether the weights are an outer product, column(ky) * row(kx), to the precision of A: with the
// largest weight as pivot, weight(ky, kx) * pivot = weight(ky, pivot) * weight(pivot, kx).
template <typename A>
struct OuterProduct {
  const Fir& call;
  int64_t y = 0, x = 0;  // of the pivot
  bool exists = true;

  explicit OuterProduct(const Fir& call) : call(call) {
    for (int64_t ky = 0; ky < call.h.taps; ++ky)
      for (int64_t kx = 0; kx < call.w.taps; ++kx)
        if (std::fabs(call.weight(ky, kx)) > std::fabs(call.weight(y, x))) y = ky, x = kx;
    const double pivot = call.weight(y, x);
    const double tolerance = std::is_same<A, double>::value ? 0 : pivot * pivot * 0x1p-22;
    for (int64_t ky = 0; ky < call.h.taps; ++ky)
      for (int64_t kx = 0; kx < call.w.taps; ++kx) {
        const double product = double(call.weight(ky, x)) * call.weight(y, kx);
        exists = exists && std::fabs(call.weight(ky, kx) * pivot - product) <= tolerance;
      }
    exists = exists && pivot != 0;
  }
  A column(int64_t ky) const { return A(call.weight(ky, x)); }
  A row(int64_t kx) const { return A(call.weight(y, kx)) / A(call.weight(y, x)); }
};

// One axis of a block: where in its copied samples the outputs find what they need.
struct Phases {
  Axis axis;
  int64_t origin, size;  // first output, number of outputs
  int64_t count;         // phases that have outputs
  int64_t first, span;   // samples [first, first + span) are needed
  int64_t length;        // places of the samples that are `down` apart

  Phases(const Axis& a, int64_t begin, int64_t end)
      : axis(a), origin(begin), size(end - begin), count(std::min(a.up, size)),
        first(a.first_sample(begin)) {
    span = 0;
    for (int64_t phase = 0; phase < count; ++phase) {
      const int64_t last = sample(phase) + (outputs(phase) - 1) * a.down + ceil_div(a.taps, a.up);
      span = std::max(span, last - first);
    }
    length = ceil_div(span, a.down);
  }
  int64_t outputs(int64_t phase) const { return (size - phase + axis.up - 1) / axis.up; }
  int64_t sample(int64_t phase) const { return axis.first_sample(origin + phase); }
  int64_t tap(int64_t phase) const { return axis.first_tap(origin + phase); }
};

template <typename T>
class FirBlocks {
  using A = Accumulator<T>;

 public:
  explicit FirBlocks(const Fir& call)
      : call_(call), group_(call.channels_last ? call.channels : 1), product_(call),
        products_(product_.exists ? 1 : call.h.taps), w_(call.w, 0, call.w.out),
        line_(w_.length * group_), most_rows_(Phases(call.h, 0, rows_per_job(call)).length + 1),
        sheet_(most_rows_ * line_), weights_(std::max(call.h.taps, call.w.taps)),
        sources_(std::max(call.h.taps, call.w.taps)),
        samples_(call.h.down * wide_sheet()), wide_(call.w.down > 1 ? wide_sheet() : 0),
        columns_(call.w.down * sheet_ + slack()), sums_(w_.count * sheet_) {}

  // The output rows of `h` of one plane (of one sample, if channels are last).
  void filter(int64_t plane, const Phases& h) {
    const int64_t begin = h.origin;
    copy_samples(static_cast<const T*>(call_.x) + plane * call_.h.in * call_.w.in * group_, h);
    T* y = static_cast<T*>(call_.y) + (plane * call_.h.out + begin) * call_.w.out * group_;
    for (int64_t phase = 0; phase < h.count; ++phase) {
      const int64_t rows = h.outputs(phase);
      for (int64_t product = 0; product < products_; ++product) {
        sum_columns(h, phase, product, rows);
        for (int64_t i = 0; i < w_.count; ++i) sum_rows(i, product, rows);
      }
      for (int64_t row = 0; row < rows; ++row)
        write(sums_.data() + row * line_, y + (phase + row * call_.h.up) * call_.w.out * group_);
    }
  }

 private:
  // Shifted reads may run over the end of a sheet, for outputs that nobody reads.
  int64_t slack() const { return ceil_div(call_.w.taps, call_.w.down) * group_ + group_; }

  // Sheet of the copied samples y, y + down, ...
  A* sheet(int64_t y) { return samples_.data() + y * wide_sheet(); }
  int64_t wide_line() const { return line_ * call_.w.down; }
  int64_t wide_sheet() const { return most_rows_ * wide_line(); }

  void copy_samples(const T* x, const Phases& h) {
    const int64_t stride = call_.w.in * group_;
    const int64_t begin = std::max<int64_t>(0, w_.first);
    const int64_t count = (std::min(call_.w.in, w_.first + w_.span) - begin) * group_;
    int64_t y = 0, offset = 0;  // which sheet, and where in it
    for (int64_t row = h.first; row < h.first + h.span; ++row) {
      A* line = sheet(y) + offset;
      if (row < 0 || row >= call_.h.in) {
        std::fill_n(line, wide_line(), A(0));
      } else {  // around them the line stays zero
        const T* source = x + row * stride + begin * group_;
        line += (begin - w_.first) * group_;
        for (int64_t i = 0; i < count; ++i) line[i] = A(source[i]);
      }
      if (++y == h.axis.down) y = 0, offset += wide_line();
    }
  }

  void sum_columns(const Phases& h, int64_t phase, int64_t product, int64_t rows) {
    int64_t count = 0, place = h.sample(phase) - h.first;
    for (int64_t ky = h.tap(phase); ky < h.axis.taps; ky += h.axis.up, ++place) {
      weights_[count] = product_.exists ? product_.column(ky) : A(ky == product ? 1 : 0);
      sources_[count++] = sheet(place % h.axis.down) + place / h.axis.down * wide_line();
    }
    A* sums = call_.w.down == 1 ? columns_.data() : wide_.data();
    sum<false>(count, sums, rows * wide_line());
    if (call_.w.down > 1) move_apart(sums, rows * line_ / group_);
  }

  // Brings samples that are `down` apart along rows together: line ends do not matter to that.
  void move_apart(const A* from, int64_t count) {
    const int64_t down = call_.w.down;
    for (int64_t x = 0; x < down; ++x) {
      A* to = columns_.data() + x * sheet_;
      const A* source = from + x * group_;
      if (group_ > 1) {
        for (int64_t i = 0; i < count; ++i, to += group_, source += down * group_)
          for (int64_t c = 0; c < group_; ++c) to[c] = source[c];
      } else if (down == 2) {
        for (int64_t i = 0; i < count; ++i) to[i] = source[2 * i];
      } else {
        for (int64_t i = 0; i < count; ++i) to[i] = source[down * i];
      }
    }
  }

  void sum_rows(int64_t phase, int64_t product, int64_t rows) {
    int64_t count = 0, place = w_.sample(phase) - w_.first;
    for (int64_t kx = w_.tap(phase); kx < w_.axis.taps; kx += w_.axis.up, ++place) {
      weights_[count] = product_.exists ? product_.row(kx) : A(call_.weight(product, kx));
      sources_[count++] =
          columns_.data() + place % w_.axis.down * sheet_ + place / w_.axis.down * group_;
    }
    A* out = sums_.data() + phase * sheet_;
    product == 0 ? sum<false>(count, out, rows * line_) : sum<true>(count, out, rows * line_);
  }

  template <bool ADD>
  void sum(int64_t count, A* out, int64_t size) {
    if (count > 0) {
      weighted_sum<ADD>(weights_.data(), sources_.data(), count, out, size);
    } else if (!ADD) {  // fewer taps than phases
      std::fill_n(out, size, A(0));
    }
  }

  // Puts the phases of an output row one into the other.
  void write(const A* sums, T* out) {
    const int64_t size = call_.w.out, up = call_.w.up;
    if (up == 1) {
      for (int64_t i = 0; i < size * group_; ++i) out[i] = static_cast<T>(sums[i]);
    } else if (group_ > 1) {
      for (int64_t phase = 0; phase < w_.count; ++phase) {
        const A* source = sums + phase * sheet_;
        for (int64_t i = phase; i < size; i += up, source += group_)
          for (int64_t c = 0; c < group_; ++c) out[i * group_ + c] = static_cast<T>(source[c]);
      }
    } else if (up == 2) {
      const A* odd = sums + sheet_;
      for (int64_t i = 0; i < size / 2; ++i) {
        out[2 * i] = static_cast<T>(sums[i]);
        out[2 * i + 1] = static_cast<T>(odd[i]);
      }
      if (size % 2) out[size - 1] = static_cast<T>(sums[size / 2]);
    } else {
      for (int64_t i = 0; i < size; ++i) out[i] = static_cast<T>(sums[i % up * sheet_ + i / up]);
    }
  }

  const Fir& call_;
  const int64_t group_;  // numbers that stay together: channels of a pixel, else 1
  const OuterProduct<A> product_;
  const int64_t products_;                // outer products that the filter is the sum of
  const Phases w_;                        // the whole width
  const int64_t line_;                    // numbers in a line: samples that are `down` apart
  const int64_t most_rows_, sheet_;       // lines in a sheet; numbers in it
  Buffer<A> weights_;
  Buffer<const A*> sources_;
  Buffer<A> samples_, wide_, columns_, sums_;
};

template <typename T>
void fir_of(const Fir& call, int64_t begin, int64_t end) {
  FirBlocks<T> blocks(call);
  const int64_t rows = rows_per_job(call), jobs = ceil_div(call.h.out, rows);
  Phases h(call.h, 0, rows);
  for (int64_t job = begin; job < end; ++job) {
    const int64_t row = job % jobs * rows;
    if (row != h.origin || jobs > 1) h = Phases(call.h, row, std::min(row + rows, call.h.out));
    blocks.filter(job / jobs, h);
  }
}

void fir(const Fir& call, int64_t begin, int64_t end) {
  switch (call.kind) {
    case Kind::Half: return fir_of<c10::Half>(call, begin, end);
    case Kind::BFloat16: return fir_of<c10::BFloat16>(call, begin, end);
    case Kind::Float: return fir_of<float>(call, begin, end);
    case Kind::Double: return fir_of<double>(call, begin, end);
  }
}

}  // namespace COOPINIT_ISA
}  // namespace coopinit
