// The loops over the classes of one row, or of a tile of rows side by side, that the CPU's losses are made
// of. They are leaf functions with clones for each instruction set; what calls them is compiled once.
#pragma once
#include <algorithm>
#include <limits>

#include "cpu.h"
#include "vec.h"

namespace mtk {

// Classes summed in the accumulator before an fp64 sum takes over; exp in fp64 is scalar, so its blocks are
// short.
template <class Acc, int L>
constexpr int64_t kBlock = sizeof(Acc) == 8 ? (L > 1 ? 4 : 16)
                           : L > 1          ? 64
                                            : 1024;

// L rows: class c of row `lane` at c * L + lane. x = (a - ma) * sa, and y likewise: what exponentials are
// taken of.
template <class Acc, int L>
struct Block {
  const Acc *a, *b;
  Acc *ea, *eb;  // exp x and exp y; may be a and b where those are not needed any more
  int64_t classes;
  Acc sa, sb;
  Acc ma[L], mb[L];
};

// A sum of blocks' sums, with what was rounded off kept apart: fp64 rows are asked for fp64's last digit.
struct Sum {
  double value = 0, rest = 0;

  void operator+=(double x) {
    const double sum = value + x, back = sum - value;
    rest += (value - (sum - back)) + (x - back);
    value = sum;
  }
  operator double() const { return std::isfinite(value) ? value + rest : value; }
};

// What the first pass over a row adds up; `cross` is the loss's own.
struct Sums {
  Sum za, zb, cross;
};
using Terms = Sum[2];

template <class Acc>
MTK_INLINE Acc finite_max(Acc max) {
  return max == -std::numeric_limits<Acc>::infinity() ? Acc(0) : max;
}

// max a and max b. x > m ? x : m vectorises in a reduction where std::max does not; the two halves of both
// rows are four chains that do not wait for each other (one chain: 0.15 ns a logit, four: 0.05).
template <class Acc>
MTK_CPU_CLONES static void maxima(Block<Acc, 1>& block) {
  const Acc *a = block.a, *b = block.b;
  const int64_t half = block.classes / 2;
  Acc a0 = a[block.classes - 1], a1 = a0, b0 = b[block.classes - 1], b1 = b0;
#pragma omp simd reduction(max : a0, a1, b0, b1)
  for (int64_t c = 0; c < half; ++c) {
    a0 = a[c] > a0 ? a[c] : a0;
    a1 = a[half + c] > a1 ? a[half + c] : a1;
    b0 = b[c] > b0 ? b[c] : b0;
    b1 = b[half + c] > b1 ? b[half + c] : b1;
  }
  block.ma[0] = a0 > a1 ? a0 : a1;
  block.mb[0] = b0 > b1 ? b0 : b1;
}

template <class Acc, int L>
MTK_CPU_CLONES static void maxima(Block<Acc, L>& block) {
  Acc ma[L], mb[L];
  for (int lane = 0; lane < L; ++lane) ma[lane] = mb[lane] = -std::numeric_limits<Acc>::infinity();
  for (int64_t i = 0; i < block.classes * L; i += L) {
#pragma omp simd
    for (int lane = 0; lane < L; ++lane) {
      ma[lane] = block.a[i + lane] > ma[lane] ? block.a[i + lane] : ma[lane];
      mb[lane] = block.b[i + lane] > mb[lane] ? block.b[i + lane] : mb[lane];
    }
  }
  for (int lane = 0; lane < L; ++lane) block.ma[lane] = ma[lane], block.mb[lane] = mb[lane];
}

// Whether a side of a lane is -inf throughout; `max` is what `maxima` found, which passes NaN over.
template <class Acc>
bool masked_side(const Acc* side, Acc max, int64_t classes, int lanes, int lane) {
  constexpr Acc kNone = -std::numeric_limits<Acc>::infinity();
  if (max != kNone) return false;
  for (int64_t c = 0; c < classes; ++c) {
    if (side[c * lanes + lane] != kNone) return false;
  }
  return true;
}

// The first largest class, NaN counting as the largest, as in torch; `max` is what `maxima` found.
template <class Acc>
MTK_CPU_CLONES static void first_largest(const Acc* b, int64_t classes, const Acc (&max)[1],
                                         int64_t (&index)[1]) {
  constexpr int64_t kStep = 256;
  const Acc most = max[0];
  int64_t first = -1;
  for (int64_t begin = 0; begin < classes; begin += kStep) {
    const int64_t end = std::min(classes, begin + kStep);
    int equal = 0, unordered = 0;
#pragma omp simd reduction(| : equal, unordered)
    for (int64_t c = begin; c < end; ++c) equal |= b[c] == most, unordered |= b[c] != b[c];
    if (first < 0 && equal) {
      for (first = begin; b[first] != most;) ++first;
    }
    if (unordered) {
      for (first = begin; b[first] == b[first];) ++first;
      break;
    }
  }
  index[0] = std::max<int64_t>(first, 0);
}

template <class Acc, int L>
MTK_CPU_CLONES static void first_largest(const Acc* b, int64_t classes, const Acc (&)[L],
                                         int64_t (&index)[L]) {
  Acc most[L];
  int best[L] = {};  // a tile has few classes
  std::copy_n(b, L, most);
  for (int c = 1; c < classes; ++c) {
#pragma omp simd
    for (int lane = 0; lane < L; ++lane) {
      const Acc x = b[c * L + lane];
      const bool larger = (x > most[lane]) | ((x != x) & (most[lane] == most[lane]));
      most[lane] = larger ? x : most[lane];
      best[lane] = larger ? c : best[lane];
    }
  }
  std::copy_n(best, L, index);
}

// Exponentials of classes [begin, end), their sums, and the sum of Cross::term. Total: of what the sums of a
// row are, the accumulator or fp64, which costs 0.1 ns a logit; a tile's are fp64.
template <class Cross, class Total, class Acc>
MTK_CPU_CLONES static void add_exponentials(const Block<Acc, 1>& block, int64_t begin, int64_t end,
                                            Sums* sums) {
  const Acc *a = block.a, *b = block.b, ma = block.ma[0], mb = block.mb[0], sa = block.sa, sb = block.sb;
  Acc *to_a = block.ea, *to_b = block.eb;
  Total za = 0, zb = 0, cross = 0;
#pragma omp simd reduction(+ : za, zb, cross)
  for (int64_t c = begin; c < end; ++c) {
    const Acc x = (a[c] - ma) * sa, y = (b[c] - mb) * sb;
    const Acc ea = exp_nonpositive(x), eb = exp_nonpositive(y);
    to_a[c] = ea, to_b[c] = eb;
    za += ea, zb += eb;
    cross += Cross::term(ea, eb, x, y);
  }
  sums->za += za, sums->zb += zb, sums->cross += cross;
}

template <class Cross, class Total, class Acc, int L>
MTK_CPU_CLONES static void add_exponentials(const Block<Acc, L>& block, int64_t begin, int64_t end,
                                            Sums* sums) {
  const Acc sa = block.sa, sb = block.sb;
  double za[L] = {}, zb[L] = {}, cross[L] = {};
  for (int64_t i = begin * L; i < end * L; i += L) {
#pragma omp simd
    for (int lane = 0; lane < L; ++lane) {
      const Acc x = (block.a[i + lane] - block.ma[lane]) * sa, y = (block.b[i + lane] - block.mb[lane]) * sb;
      const Acc ea = exp_nonpositive(x), eb = exp_nonpositive(y);
      block.ea[i + lane] = ea, block.eb[i + lane] = eb;
      za[lane] += ea, zb[lane] += eb;
      cross[lane] += Cross::term(ea, eb, x, y);
    }
  }
  for (int lane = 0; lane < L; ++lane) {
    sums[lane].za += za[lane], sums[lane].zb += zb[lane], sums[lane].cross += cross[lane];
  }
}

// Sums of f.first and f.second over classes [begin, end). Functors take and give single numbers: an aggregate
// in the loop's body keeps GCC from the vector.
template <class F, class Acc>
MTK_CPU_CLONES static void add_terms(F f, const Block<Acc, 1>& block, int64_t begin, int64_t end, Terms* to) {
  const Acc *a = block.a, *b = block.b, *ea = block.ea, *eb = block.eb;
  const Acc ma = block.ma[0], mb = block.mb[0], sa = block.sa, sb = block.sb;
  const auto first = [&](int64_t c) __attribute__((always_inline)) {
    return f.first(ea[c], eb[c], (a[c] - ma) * sa, (b[c] - mb) * sb, 0);
  };
  const auto second = [&](int64_t c) __attribute__((always_inline)) {
    return f.second(ea[c], eb[c], (a[c] - ma) * sa, (b[c] - mb) * sb, 0);
  };
  const int64_t quarter = (end - begin) / 64 * 16;  // whole vectors
  double t0 = 0, t1 = 0;
#pragma omp simd reduction(+ : t0, t1)
  for (int64_t c = begin; c < begin + quarter; ++c) {
    t0 += (first(c) + first(c + quarter)) + (first(c + 2 * quarter) + first(c + 3 * quarter));
    t1 += (second(c) + second(c + quarter)) + (second(c + 2 * quarter) + second(c + 3 * quarter));
  }
#pragma omp simd reduction(+ : t0, t1)
  for (int64_t c = begin + 4 * quarter; c < end; ++c) {
    t0 += first(c);
    t1 += second(c);
  }
  to[0][0] += t0, to[0][1] += t1;
}

template <class F, class Acc, int L>
MTK_CPU_CLONES static void add_terms(F f, const Block<Acc, L>& block, int64_t begin, int64_t end, Terms* to) {
  const Acc *a = block.a, *b = block.b, *ea = block.ea, *eb = block.eb, sa = block.sa, sb = block.sb;
  double t0[L] = {}, t1[L] = {};
  for (int64_t i = begin * L; i < end * L; i += L) {
#pragma omp simd
    for (int lane = 0; lane < L; ++lane) {
      const int64_t at = i + lane;
      const Acc x = (a[at] - block.ma[lane]) * sa, y = (b[at] - block.mb[lane]) * sb;
      t0[lane] += f.first(ea[at], eb[at], x, y, lane);
      t1[lane] += f.second(ea[at], eb[at], x, y, lane);
    }
  }
  for (int lane = 0; lane < L; ++lane) to[lane][0] += t0[lane], to[lane][1] += t1[lane];
}

// to = f of each class; `to` may be ea or eb.
template <class F, class Acc>
MTK_CPU_CLONES static void write_gradient(F f, const Block<Acc, 1>& block, Acc* to) {
  const Acc *a = block.a, *b = block.b, *ea = block.ea, *eb = block.eb;
  const Acc ma = block.ma[0], mb = block.mb[0], sa = block.sa, sb = block.sb;
  const int64_t classes = block.classes;
#pragma omp simd
  for (int64_t c = 0; c < classes; ++c) to[c] = f(ea[c], eb[c], (a[c] - ma) * sa, (b[c] - mb) * sb, 0);
}

template <class F, class Acc, int L>
MTK_CPU_CLONES static void write_gradient(F f, const Block<Acc, L>& block, Acc* to) {
  const Acc *a = block.a, *b = block.b, *ea = block.ea, *eb = block.eb, sa = block.sa, sb = block.sb;
  const int64_t size = block.classes * L;
  for (int64_t i = 0; i < size; i += L) {
#pragma omp simd
    for (int lane = 0; lane < L; ++lane) {
      const int64_t at = i + lane;
      to[at] = f(ea[at], eb[at], (a[at] - block.ma[lane]) * sa, (b[at] - block.mb[lane]) * sb, lane);
    }
  }
}

// body(begin, end) for the blocks of classes that are summed in the accumulator.
template <class Acc, int L, class Body>
void for_each_block(int64_t classes, Body body) {
  for (int64_t c = 0; c < classes; c += kBlock<Acc, L>) body(c, std::min(classes, c + kBlock<Acc, L>));
}

}  // namespace mtk
