// What a thread of a loss's kernel is made of: the arithmetic of a row, loads and stores of any dtype, and
// the group of threads that shares a row. The words are those of consistency_cpu.h.
#pragma once
#include <algorithm>

#include "consistency.h"
#include "reduce.cuh"

namespace mtk {

constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kAnyDtype = -1;
constexpr int64_t kMaxClasses = int64_t{1}
                                << 30;  // offsets within a row in classes are int; in memory, int64

// What a kernel is compiled for. kDtype_: that of both sides, or kAnyDtype, looked up at run time. N_:
// classes of a pack.
template <class Acc_, int kDtype_, int N_>
struct Format {
  using Acc = Acc_;
  static constexpr int kDtype = kDtype_, N = N_;
  // Packs of each side that are loaded before the first is used, and blocks that fit a multiprocessor's
  // registers: as many as the compiler grants without spills.
  static constexpr int kBatch = sizeof(Acc) == 8 ? 2 / N : N == 8 ? 1 : N == 4 ? 2 : 4;
  static constexpr int kBlocksPerSm = sizeof(Acc) == 8 || (kDtype == kAnyDtype && N > 1) ? 1 : 2;
  static constexpr int kPiece =
      std::min<int>(N, 16 / sizeof(Acc));  // classes of a pack that move together in the cache
};

// ---- arithmetic

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }

template <class Acc>
__device__ inline Acc minus_infinity() {
  return -static_cast<Acc>(INFINITY);
}

template <class Acc>
__device__ inline Acc finite_max(Acc max) {
  return max == minus_infinity<Acc>() ? Acc(0) : max;
}

// NaN in x is left out; it shows in the sums.
template <class Acc>
__device__ inline Acc larger(Acc m, Acc x) {
  return x > m ? x : m;
}

// Of one row: sums of exp(a - max a) and of exp(b - max b); cross = sum of exp(b - max b) * ((b - max b) - (a
// - max a)).
template <class Acc>
struct RowSums {
  Acc za, zb, cross;

  __device__ bool masked() const { return za == 0 || zb == 0; }  // -inf throughout; NaN is not masked
  __device__ Acc inverse_za() const { return masked() ? Acc(0) : 1 / za; }
};

// p - q = (ea * (zb / za) - eb) / zb: exactly 0 for equal sides.
template <class Acc>
struct Weights {
  Acc ratio, inverse_zb;  // both 0 for a masked row

  __device__ explicit Weights(const RowSums<Acc>& sums)
      : ratio(sums.masked() ? Acc(0) : sums.zb / sums.za), inverse_zb(sums.masked() ? Acc(0) : 1 / sums.zb) {}
  __device__ Acc difference(Acc ea, Acc eb) const {
    return inverse_zb == 0 ? Acc(0) : (ea * ratio - eb) * inverse_zb;  // 0 also where the other side is NaN
  }
};

// A row's sums as they grow, relative to the maxima seen so far.
template <class Acc, bool kCross>
struct RunningSums {
  Acc max_a = minus_infinity<Acc>(), max_b = minus_infinity<Acc>();
  Acc za = 0, zb = 0, cross = 0;

  // Replaces the logits by exponentials.
  __device__ void add(Acc& a, Acc& b) {
    const Acc x = a - finite_max(max_a), y = b - finite_max(max_b);
    a = exponential(x), b = exponential(y);
    za += a, zb += b;
    if (kCross) cross += b != 0 ? b * (y - x) : Acc(0);
  }

  __device__ void recenter(Acc next_a, Acc next_b) {
    if (next_a == max_a && next_b == max_b) return;
    const Acc to_a = finite_max(next_a), to_b = finite_max(next_b);
    const Acc scale_b = exponential(max_b - to_b);
    if (kCross) {
      const Acc shift = (to_a - to_b) - (finite_max(max_a) - finite_max(max_b));
      cross = scale_b != 0 ? scale_b * (cross + zb * shift) : Acc(0);  // cross may be infinite
    }
    za *= exponential(max_a - to_a), zb *= scale_b;
    max_a = next_a, max_b = next_b;
  }
};

// ---- memory

// A pack as it was loaded, of any dtype up to the accumulator's size.
template <class Acc, int N>
struct Raw {
  uint32_t words[N * sizeof(Acc) / 4];
};

template <class T, class Acc, int N>
__device__ inline void load_bits(const void* data, int64_t at, Raw<Acc, N>& raw) {
  const T* from = static_cast<const T*>(data) + at;
  if constexpr (N * sizeof(T) < 4) {
    raw.words[0] = *from;
  } else {
    const WordsOf<T, N> words = load_words<N>(from);
#pragma unroll
    for (int i = 0; i < static_cast<int>(N * sizeof(T) / 4); ++i) raw.words[i] = words.at[i];
  }
}

template <class F, class Acc, int N>
__device__ inline void load(const Operand& operand, int64_t at, Raw<Acc, N>& raw) {
  const Dtype dtype = F::kDtype == kAnyDtype ? operand.dtype : static_cast<Dtype>(F::kDtype);
  const int64_t size = size_of(dtype);
  if (size == 2) return load_bits<uint16_t>(operand.data, at, raw);
  if (size == 4) return load_bits<uint32_t>(operand.data, at, raw);
  if constexpr (sizeof(Acc) == 8) load_bits<uint64_t>(operand.data, at, raw);
}

template <class T, class Acc, int N>
__device__ inline void widen_as(const Raw<Acc, N>& raw, Acc (&x)[N]) {
  if constexpr (N * sizeof(T) < 4) {
    x[0] = widened<Acc>(bit_cast<T>(static_cast<uint16_t>(raw.words[0])));
  } else {
    WordsOf<T, N> words;
#pragma unroll
    for (int i = 0; i < static_cast<int>(N * sizeof(T) / 4); ++i) words.at[i] = raw.words[i];
    const Pack<T, N> pack = unpack<T, N>(words);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = widened<Acc>(pack.at[i]);
  }
}

template <class F, class Acc, int N>
__device__ inline void widen_pack(const Operand& operand, const Raw<Acc, N>& raw, Acc (&x)[N]) {
  switch (F::kDtype == kAnyDtype ? operand.dtype : static_cast<Dtype>(F::kDtype)) {
    case Dtype::f32:
      return widen_as<float>(raw, x);
    case Dtype::f16:
      return widen_as<half_bits>(raw, x);
    case Dtype::bf16:
      return widen_as<bfloat16_bits>(raw, x);
    case Dtype::f64:
      if constexpr (sizeof(Acc) == 8) return widen_as<double>(raw, x);
  }
}

template <class T, class Acc, int N>
__device__ inline void store_as(void* data, int64_t at, const Acc (&x)[N]) {
  T* to = static_cast<T*>(data) + at;
  if constexpr (N == 1) {
    *to = narrowed<T>(x[0]);
  } else {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.at[i] = narrowed<T>(x[i]);
    store_pack(to, pack);
  }
}

template <class F, class Acc, int N>
__device__ inline void store_gradient(const Operand& operand, int64_t at, const Acc (&x)[N]) {
  constexpr Dtype kFixed = static_cast<Dtype>(F::kDtype);
  switch (F::kDtype == kAnyDtype ? operand.dtype : kFixed == Dtype::f16 ? Dtype::f32 : kFixed) {
    case Dtype::f32:
      return store_as<float>(operand.data, at, x);
    case Dtype::f16:
      return store_as<half_bits>(operand.data, at, x);
    case Dtype::bf16:
      return store_as<bfloat16_bits>(operand.data, at, x);
    case Dtype::f64:
      if constexpr (sizeof(Acc) == 8) return store_as<double>(operand.data, at, x);
  }
}

// The threads of a row. All of them, and all groups of a block, take part in every reduction; all get the
// same bits.
template <class Acc>
class Group {
 public:
  const int size, rank;

  __device__ explicit Group(int size) : size(size), rank(static_cast<int>(threadIdx.x) & (size - 1)) {}

  template <int K>
  __device__ void sum(Acc (&x)[K]) {
    reduce(x, [](Acc a, Acc b) { return a + b; });
  }
  template <int K>
  __device__ void max(Acc (&x)[K]) {
    reduce(x, [](Acc a, Acc b) { return larger(a, b); });
  }

 private:
  // Successive reductions over a block alternate between two sets of slots: who writes a set has passed the
  // barrier that follows the reads of its last use.
  int parity_ = 0;

  template <int K, class F>
  __device__ void reduce(Acc (&x)[K], F f) {
    for (int lanes = (size < kWarp ? size : kWarp) / 2; lanes > 0; lanes /= 2) {
#pragma unroll
      for (int k = 0; k < K; ++k) x[k] = f(x[k], __shfl_xor_sync(kAllLanes, x[k], lanes));
    }
    if (size <= kWarp) return;
    static_assert(2 * kMaxWarps * K * sizeof(Acc) <= kSharedHeader, "both sets fit before the cache");
    Acc* slots = reinterpret_cast<Acc*>(shared_bytes() + parity_ * (kSharedHeader / 2));
    parity_ ^= 1;
    if (rank % kWarp == 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) slots[rank / kWarp * K + k] = x[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) {
      x[k] = slots[k];
      for (int warp = 1; warp < size / kWarp; ++warp) x[k] = f(x[k], slots[warp * K + k]);
    }
  }
};

}  // namespace mtk
