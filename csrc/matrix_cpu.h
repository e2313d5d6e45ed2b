// Rows on their way between memory of any dtype and the CPU's accumulators: one row, or a tile of them side
// by side with (class c, lane) at c * width + lane.
#pragma once
#include <cmath>
#include <type_traits>

#include "cpu.h"
#include "dtype.h"

namespace mtk {

constexpr int kLanes = 16;                      // rows of a tile
constexpr int64_t kTileClasses = 64;            // rows shorter than this go in tiles
constexpr int64_t kLogitsPerThread = 8 * 1024;  // fewer do not pay for one more thread

// offsets: where the `width` rows of a tile start, in elements.
template <class T, class Acc>
MTK_CPU_CLONES static void gather_as(const T* from, const int64_t* offsets, int width, int64_t stride,
                                     int64_t classes, Acc* to) {
  if (width == 1 && stride == 1) {
    from += offsets[0];
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) to[c] = static_cast<Acc>(widen(from[c]));
    return;
  }
  for (int lane = 0; lane < width; ++lane) {
    const T* const row = from + offsets[lane];
#pragma GCC unroll 8
    for (int64_t c = 0; c < classes; ++c) to[c * width + lane] = static_cast<Acc>(widen(row[c * stride]));
  }
}

// The first `lanes` rows of the tile alone.
template <class T, class Acc>
MTK_CPU_CLONES static void scatter_as(const Acc* from, T* to, const int64_t* offsets, int width, int lanes,
                                      int64_t stride, int64_t classes) {
  if (width == 1 && stride == 1) {
    to += offsets[0];
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) store(&to[c], from[c]);
    return;
  }
  for (int lane = 0; lane < lanes; ++lane) {
    T* const row = to + offsets[lane];
#pragma GCC unroll 8
    for (int64_t c = 0; c < classes; ++c) store(&row[c * stride], from[c * width + lane]);
  }
}

template <class Acc>
void gather(Dtype dtype, const void* data, const int64_t* offsets, int width, int64_t stride, int64_t classes,
            Acc* to) {
  visit(dtype, [&](auto type) {
    gather_as(static_cast<const decltype(type)*>(data), offsets, width, stride, classes, to);
  });
}

template <class Acc>
void scatter(const Acc* from, Dtype dtype, void* data, const int64_t* offsets, int width, int lanes,
             int64_t stride, int64_t classes) {
  visit(dtype, [&](auto type) {
    scatter_as(from, static_cast<decltype(type)*>(data), offsets, width, lanes, stride, classes);
  });
}

// The largest of each of L rows. x > m ? x : m vectorises in a reduction where std::max does not.
template <int L, class Acc>
MTK_CPU_CLONES static void maxima(const Acc* rows, int64_t classes, Acc* to) {
  if constexpr (L == 1) {
    Acc max = rows[0];
#pragma omp simd reduction(max : max)
    for (int64_t c = 0; c < classes; ++c) max = rows[c] > max ? rows[c] : max;
    to[0] = max;
  } else {
    Acc max[L];
    for (int lane = 0; lane < L; ++lane) max[lane] = rows[lane];
    for (int64_t i = L; i < classes * L; i += L) {
#pragma omp simd
      for (int lane = 0; lane < L; ++lane)
        max[lane] = rows[i + lane] > max[lane] ? rows[i + lane] : max[lane];
    }
    for (int lane = 0; lane < L; ++lane) to[lane] = max[lane];
  }
}

// A factor in two parts: its rounding would be the same for a whole row, and not average out over the
// classes.
template <class Acc, int L>
struct Factor {
  Acc high[L], low[L];

  // 1 / divisor, or 0.
  void set_inverse(int lane, double divisor) {
    high[lane] = static_cast<Acc>(divisor == 0 ? 0 : 1 / divisor);
    low[lane] = divisor == 0
                    ? 0
                    : static_cast<Acc>(std::fma(-static_cast<double>(high[lane]), divisor, 1.0) / divisor);
  }
  MTK_INLINE Acc times(Acc x, int lane) const { return x * high[lane] + x * low[lane]; }
};

// A sum in fp64 that keeps what each addition rounds away.
struct Compensated {
  double sum = 0, rest = 0;

  MTK_INLINE void operator+=(double x) {
    const double total = sum + x, added = total - sum;
    rest += (sum - (total - added)) + (x - added);
    sum = total;
  }
  MTK_INLINE operator double() const { return sum + rest; }
};

// For sums that all of a row is divided by. exp and pow in fp64 are scalar, and so may be the sum of them.
template <class Acc>
using Careful = std::conditional_t<sizeof(Acc) == 4, double, Compensated>;

// step.at(i, lane, first, second) for all classes of L rows; what it adds to first and second goes to each
// lane's sums.
template <int L, class Acc, class Sum, class Step>
MTK_CPU_CLONES static void sweep(const Step& shared, int64_t classes, double (*sums)[2]) {
  const Step step = shared;
  Sum first[L] = {}, second[L] = {};
  if constexpr (L > 1) {
    for (int64_t i = 0; i < classes * L; i += L) {
#pragma omp simd
      for (int lane = 0; lane < L; ++lane) step.at(i + lane, lane, first[lane], second[lane]);
    }
  } else if constexpr (std::is_same_v<Sum, Compensated>) {
    for (int64_t c = 0; c < classes; ++c) step.at(c, 0, first[0], second[0]);
  } else {
    Sum f = 0, s = 0;
#pragma omp simd reduction(+ : f, s)
    for (int64_t c = 0; c < classes; ++c) step.at(c, 0, f, s);
    first[0] = f, second[0] = s;
  }
  for (int lane = 0; lane < L; ++lane) sums[lane][0] = first[lane], sums[lane][1] = second[lane];
}

}  // namespace mtk
