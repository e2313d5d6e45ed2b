// What a thread of a loss's kernel is made of: arithmetic, and loads and stores of any dtype.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "consistency.h"
#include "group.cuh"

namespace mtk {

constexpr int64_t kMaxClasses = int64_t{1}
                                << 30;  // offsets within a row in classes are int; in memory, int64

// What a kernel is compiled for. kWidth_: bytes of a logit on all sides, or 0: looked up at run time. N_:
// classes of a pack. kOptions_: center, row weights, threshold, labels, a gradient for the teacher.
template <class Acc_, int kWidth_, int N_, bool kOptions_>
struct Format {
  using Acc = Acc_;
  static constexpr int kWidth = kWidth_, N = N_;
  static constexpr bool kOptions = kOptions_;
  // Packs of each side that are loaded before the first is used, and blocks that fit a multiprocessor's
  // registers: as many as the compiler grants without spills.
  static constexpr int kBatch = sizeof(Acc) == 8 ? 2 / N : N == 1 ? 4 : 2;
  static constexpr int kBlocksPerSm = sizeof(Acc) == 8 || (kWidth == 0 && N > 1) ? 2 : 3;
  static constexpr int kPiece =
      std::min<int>(N, 16 / sizeof(Acc));  // classes of a pack that move together in the cache

  // What is known of an operand's dtype, at compile time where it can be.
  __device__ static Dtype dtype_of(const Operand& operand) {
    if (kWidth == 4) return Dtype::f32;
    if (kWidth == 2) return operand.dtype == Dtype::f16 ? Dtype::f16 : Dtype::bf16;
    return operand.dtype;
  }
};

// ---- arithmetic

__device__ inline float logarithm(float x) { return logf(x); }
__device__ __noinline__ inline double logarithm(double x) { return log(x); }
__device__ inline float logarithm_1p(float x) { return log1pf(x); }
__device__ __noinline__ inline double logarithm_1p(double x) { return log1p(x); }

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

// (log2 e) * scale in two parts: exponentials of one row would all share the rounding of one. Both parts are
// positive, so that -inf stays -inf.
template <class Acc>
struct Multiplier {
  Acc high, low;
};

__device__ inline float exponential(float x, const Multiplier<float>& m) {
  return exp2f(fmaf(x, m.high, x * m.low));
}
// Called, not inlined: dozens of copies would be most of the time that a compiler takes.
__device__ __noinline__ inline double exponential_f64(double x) { return exp(x); }
__device__ inline double exponential(double x, const Multiplier<double>& m) {
  return exponential_f64(x * m.high);
}

template <class Acc>
Multiplier<Acc> multiplier_of(double scale) {
  if constexpr (sizeof(Acc) == 8) return {scale, 0};
  const double exact = scale * 1.4426950408889634;
  float high = static_cast<float>(exact);
  if (high >= exact) high = std::nextafter(high, 0.0f);
  return {high, std::max(static_cast<float>(exact - high), std::numeric_limits<float>::min())};
}

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
  const int64_t size = F::kWidth ? F::kWidth : size_of(operand.dtype);
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
  switch (F::dtype_of(operand)) {
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
  switch (F::kWidth == 4 ? Dtype::f32 : operand.dtype) {
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

// One element of any dtype.
template <class Acc>
__device__ inline Acc element(const Operand& operand, int64_t at) {
  switch (operand.dtype) {
    case Dtype::f32:
      return widened<Acc>(static_cast<const float*>(operand.data)[at]);
    case Dtype::f16:
      return widened<Acc>(static_cast<const half_bits*>(operand.data)[at]);
    case Dtype::bf16:
      return widened<Acc>(static_cast<const bfloat16_bits*>(operand.data)[at]);
    case Dtype::f64:
      break;
  }
  return static_cast<Acc>(static_cast<const double*>(operand.data)[at]);
}

}  // namespace mtk
