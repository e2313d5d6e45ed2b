// The four floating dtypes that the kernels compute on: tag <-> C++ type, and conversion to and from the
// accumulator.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#define MTK_INLINE __host__ __device__ inline
#else
#define MTK_INLINE inline __attribute__((always_inline))
#endif

namespace mtk {

// The numbers are part of the plan's row codes, which CPU, CUDA and Triton share.
enum class Dtype : int32_t { f32 = 0, f64 = 1, f16 = 2, bf16 = 3 };
constexpr int kDtypes = 4;

struct half_bits {
  uint16_t bits;
};
struct bfloat16_bits {
  uint16_t bits;
};

MTK_INLINE constexpr int64_t size_of(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

template <class To, class From>
MTK_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

MTK_INLINE float widen(float x) { return x; }
MTK_INLINE double widen(double x) { return x; }
MTK_INLINE float widen(bfloat16_bits x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

// Exponent re-biased with integers; selects in place of branches, so that loops over it vectorise.
MTK_INLINE float widen(half_bits x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t normal = magnitude + (112u << 23);
  const uint32_t subnormal =
      bit_cast<uint32_t>(bit_cast<float>(magnitude + (113u << 23)) - bit_cast<float>(113u << 23));
  const uint32_t special = magnitude + (224u << 23);
  const uint32_t finite = magnitude < (1u << 23) ? subnormal : normal;
  return bit_cast<float>((magnitude >= (31u << 23) ? special : finite) | sign);
}

template <Dtype dtype>
struct TypeOf;
template <>
struct TypeOf<Dtype::f32> {
  using type = float;
};
template <>
struct TypeOf<Dtype::f64> {
  using type = double;
};
template <>
struct TypeOf<Dtype::f16> {
  using type = half_bits;
};
template <>
struct TypeOf<Dtype::bf16> {
  using type = bfloat16_bits;
};

// body(T{}) for the tag's type. Not for vector loops: a lambda's body is not cloned for the CPU (cpu.h).
template <class Body>
void visit(Dtype dtype, Body body) {
  switch (dtype) {
    case Dtype::f32:
      return body(float{});
    case Dtype::f64:
      return body(double{});
    case Dtype::f16:
      return body(half_bits{});
    case Dtype::bf16:
      return body(bfloat16_bits{});
  }
}

template <class A, class B>
using Accumulator = std::conditional_t<std::is_same_v<A, double> || std::is_same_v<B, double>, double, float>;

// Rounded to nearest, ties to even; NaN stays NaN.
MTK_INLINE void store(float* to, float x) { *to = x; }
MTK_INLINE void store(double* to, double x) { *to = x; }

MTK_INLINE void store(bfloat16_bits* to, float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

MTK_INLINE void store(half_bits* to, float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Adding 0.5 puts the last bit of a subnormal half at the last bit of the float: the addition rounds.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  const uint32_t overflow = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;  // NaN, or 65520 and more: infinity
  to->bits = static_cast<uint16_t>((magnitude >= 0x477ff000u ? overflow : finite) | sign);
}

}  // namespace mtk
