// CPU kernel of upfirdn2d; included once per instruction set, into namespace COOPINIT_ISA.
//
// Contiguous images are filtered row by row. Outputs that are `up` apart meet the same taps, and
// their samples are `down` apart: they form a phase. Rows are first copied, as accumulators, with
// the zeros around them, and with samples that are `down` apart side by side. Then every output of
// a phase is the same sum of weights times contiguous numbers, whatever the factors are.
namespace coopinit {
namespace COOPINIT_ISA {

// Memory that grows. No std::vector: its functions are shared between all object files, and the
// linker might keep the copy that was compiled for the wrong instruction set.
template <typename V>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  void resize(int64_t size) {  // contents are undefined
    if (size <= size_) return;
    std::free(data_);
    data_ = static_cast<V*>(std::malloc(size * sizeof(V)));
    size_ = data_ ? size : 0;
    if (!data_) throw std::bad_alloc();
  }
  V& operator[](int64_t i) { return data_[i]; }
  V* data() { return data_; }

 private:
  V* data_ = nullptr;
  int64_t size_ = 0;
};

template <typename A>
constexpr int64_t kBlock = 64 / sizeof(A);  // outputs that are summed at once, in registers

// out[i] = sum over t of weights[t] * sources[t][i]; reads and writes whole blocks.
template <int64_t COUNT, typename A>
void weighted_sum(const A* weights, const A* const* sources, int64_t count, A* out, int64_t size) {
  if constexpr (COUNT > 0) count = COUNT;  // known to the compiler, which unrolls
  for (int64_t at = 0; at < size; at += kBlock<A>) {
    A sum[kBlock<A>] = {};
    for (int64_t t = 0; t < count; ++t) {
      const A weight = weights[t];
      const A* source = sources[t] + at;
      for (int64_t i = 0; i < kBlock<A>; ++i) sum[i] += weight * source[i];
    }
    for (int64_t i = 0; i < kBlock<A>; ++i) out[at + i] = sum[i];
  }
}

// The counts of StyleGAN2's filters: 4x4 at factor 2 up and inside the image otherwise, and 12
// taps with and without up 2.
template <typename A>
void sum_taps(const A* weights, const A* const* sources, int64_t count, A* out, int64_t size) {
  switch (count) {
    case 4: return weighted_sum<4>(weights, sources, count, out, size);
    case 6: return weighted_sum<6>(weights, sources, count, out, size);
    case 12: return weighted_sum<12>(weights, sources, count, out, size);
    case 16: return weighted_sum<16>(weights, sources, count, out, size);
    default: return weighted_sum<0>(weights, sources, count, out, size);
  }
}

template <typename T>
class FirPlanes {
  using A = Accumulator<T>;

 public:
  explicit FirPlanes(const Fir& call) : call_(call), h_(call.h), w_(call.w) {
    first_ = std::numeric_limits<int64_t>::max();
    int64_t last = std::numeric_limits<int64_t>::min();
    for (int64_t phase = 0; phase < std::min(w_.up, w_.out); ++phase) {
      const int64_t first = w_.first_sample(phase);
      const int64_t taps = std::max<int64_t>(0, ceil_div(w_.taps - w_.first_tap(phase), w_.up));
      first_ = std::min(first_, first);
      last = std::max(last, first + (outputs(phase) - 1) * w_.down + taps - 1);
    }
    line_ = whole_blocks(ceil_div(last - first_ + 1, w_.down)) + 2 * kBlock<A> + w_.taps;
    weights_.resize(h_.taps * w_.taps);
    for (int64_t ky = 0; ky < h_.taps; ++ky)
      for (int64_t kx = 0; kx < w_.taps; ++kx)
        weights_[ky * w_.taps + kx] = static_cast<A>(call.weight(ky, kx));
    sums_.resize(whole_blocks(ceil_div(w_.out, w_.up)));
    tap_weights_.resize(h_.taps * w_.taps);
    sources_.resize(h_.taps * w_.taps);
  }

  // Output rows [begin, end) of one plane.
  void filter(int64_t plane, int64_t begin, int64_t end) {
    const T* x = static_cast<const T*>(call_.x) + plane * h_.in * w_.in;
    T* y = static_cast<T*>(call_.y) + plane * h_.out * w_.out;
    top_ = std::max<int64_t>(0, h_.first_sample(begin));
    const int64_t bottom = std::min(h_.in, h_.first_sample(end - 1) + ceil_div(h_.taps, h_.up));
    rows_.resize(std::max<int64_t>(1, bottom - top_) * w_.down * line_);
    for (int64_t row = top_; row < bottom; ++row) copy_row(x + row * w_.in, row);
    for (int64_t row = begin; row < end; ++row)
      for (int64_t phase = 0; phase < std::min(w_.up, w_.out); ++phase)
        filter_phase(row, phase, y + row * w_.out);
  }

 private:
  static int64_t whole_blocks(int64_t count) { return ceil_div(count, kBlock<A>) * kBlock<A>; }
  int64_t outputs(int64_t phase) const { return ceil_div(w_.out - phase, w_.up); }
  int64_t within(int64_t place, int64_t least) const {
    return std::min(std::max(place, least), line_);
  }
  A* row_at(int64_t row) { return rows_.data() + (row - top_) * w_.down * line_; }

  // Sample s of the row, s >= first_, goes to line (s - first_) % down, place (s - first_) / down.
  void copy_row(const T* source, int64_t row) {
    for (int64_t phase = 0; phase < w_.down; ++phase) {
      const int64_t shift = first_ + phase;  // the sample at place 0
      const int64_t begin = within(ceil_div(-shift, w_.down), 0);
      const int64_t end = within(ceil_div(w_.in - shift, w_.down), begin);
      A* line = row_at(row) + phase * line_;
      for (int64_t i = 0; i < begin; ++i) line[i] = A(0);
      for (int64_t i = end; i < line_; ++i) line[i] = A(0);
      if (w_.down == 1) {
        for (int64_t i = begin; i < end; ++i) line[i] = A(source[i + shift]);
      } else if (w_.down == 2) {
        for (int64_t i = begin; i < end; ++i) line[i] = A(source[2 * i + shift]);
      } else {
        for (int64_t i = begin; i < end; ++i) line[i] = A(source[w_.down * i + shift]);
      }
    }
  }

  void filter_phase(int64_t row, int64_t phase, T* out) {
    int64_t count = 0;
    for (int64_t ky = h_.first_tap(row), iy = h_.first_sample(row); ky < h_.taps;
         ky += h_.up, ++iy) {
      if (iy < 0 || iy >= h_.in) continue;
      int64_t place = w_.first_sample(phase) - first_;
      for (int64_t kx = w_.first_tap(phase); kx < w_.taps; kx += w_.up, ++place) {
        tap_weights_[count] = weights_[ky * w_.taps + kx];
        sources_[count] = row_at(iy) + (place % w_.down) * line_ + place / w_.down;
        ++count;
      }
    }
    const int64_t size = outputs(phase);
    sum_taps(tap_weights_.data(), sources_.data(), count, sums_.data(), size);
    const A* sums = sums_.data();
    if (w_.up == 1) {
      for (int64_t i = 0; i < size; ++i) out[i] = static_cast<T>(sums[i]);
    } else if (w_.up == 2) {
      for (int64_t i = 0; i < size; ++i) out[2 * i + phase] = static_cast<T>(sums[i]);
    } else {
      for (int64_t i = 0; i < size; ++i) out[w_.up * i + phase] = static_cast<T>(sums[i]);
    }
  }

  const Fir& call_;
  const Axis h_, w_;
  int64_t first_, line_, top_ = 0;  // first sample that is needed; length of a line; first row
  Buffer<A> weights_, rows_, sums_, tap_weights_;
  Buffer<const A*> sources_;
};

// One row of pixels of channels-last images: neighbours in memory are channels.
template <typename T>
void fir_pixels(const Fir& call, int64_t n, int64_t row) {
  using A = Accumulator<T>;
  const int64_t channels = call.channels;
  const Axis h = call.h, w = call.w;
  const T* x = static_cast<const T*>(call.x) + n * h.in * w.in * channels;
  T* y = static_cast<T*>(call.y) + (n * h.out + row) * w.out * channels;
  Buffer<A> weights;
  Buffer<const T*> sources;
  weights.resize(h.taps * w.taps);
  sources.resize(h.taps * w.taps);
  for (int64_t column = 0; column < w.out; ++column, y += channels) {
    int64_t count = 0;
    for (int64_t ky = h.first_tap(row), iy = h.first_sample(row); ky < h.taps; ky += h.up, ++iy) {
      if (iy < 0 || iy >= h.in) continue;
      for (int64_t kx = w.first_tap(column), ix = w.first_sample(column); kx < w.taps;
           kx += w.up, ++ix) {
        if (ix < 0 || ix >= w.in) continue;
        weights[count] = static_cast<A>(call.weight(ky, kx));
        sources[count++] = x + (iy * w.in + ix) * channels;
      }
    }
    for (int64_t at = 0; at < channels; at += kBlock<A>) {
      const int64_t size = std::min(kBlock<A>, channels - at);
      A sum[kBlock<A>] = {};
      for (int64_t t = 0; t < count; ++t) {
        if (size == kBlock<A>) {
          for (int64_t i = 0; i < kBlock<A>; ++i) sum[i] += weights[t] * A(sources[t][at + i]);
        } else {
          for (int64_t i = 0; i < size; ++i) sum[i] += weights[t] * A(sources[t][at + i]);
        }
      }
      for (int64_t i = 0; i < size; ++i) y[at + i] = static_cast<T>(sum[i]);
    }
  }
}

template <typename T>
void fir_of(const Fir& call, int64_t begin, int64_t end) {
  if (call.channels_last) {
    for (int64_t job = begin; job < end; ++job)
      fir_pixels<T>(call, job / call.h.out, job % call.h.out);
    return;
  }
  FirPlanes<T> planes(call);
  const int64_t jobs = ceil_div(call.h.out, kRowsPerJob);
  for (int64_t job = begin; job < end; ++job) {
    const int64_t row = job % jobs * kRowsPerJob;
    planes.filter(job / jobs, row, std::min(row + kRowsPerJob, call.h.out));
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
