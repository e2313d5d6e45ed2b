// Logits on their way between the operands of a loss and the CPU's loops: one row, or a tile of rows side by
// side.
#pragma once
#include "consistency.h"
#include "cpu.h"

namespace mtk {

constexpr int kLanes = 16;            // rows of a tile
constexpr int64_t kTileClasses = 64;  // contiguous rows shorter than this go in tiles
constexpr int64_t kTileStrided =
    4096;  // strided rows go in tiles up to this many classes: 0.5 MB, about an L2

// Where L rows begin in an operand; lanes past the last row repeat the first.
template <int L>
struct Starts {
  int64_t at[L];
  int lanes;
  bool adjacent;  // one after the other in memory, class by class: a whole tile

  Starts(const Operand& operand, const int64_t (&row_sizes)[kMaxRowDims], int64_t row, int lanes)
      : lanes(lanes) {
    adjacent = lanes == L && operand.class_stride != 1;
    for (int lane = 0; lane < L; ++lane) {
      at[lane] = lane < lanes ? row_offset(operand, row_sizes, row + lane) : at[0];
      adjacent = adjacent && at[lane] == at[0] + lane;
    }
  }
};

// Class-major accumulators: (class c, lane) at c * kLanes + lane.
template <class T, class Acc>
MTK_CPU_CLONES static void gather_tile(const T* from, const Starts<kLanes>& rows, int64_t class_stride,
                                       int64_t classes, Acc* to) {
  if (rows.adjacent) {
    for (int64_t c = 0; c < classes; ++c) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        to[c * kLanes + lane] = static_cast<Acc>(widen(from[rows.at[0] + c * class_stride + lane]));
      }
    }
  } else if (class_stride == 1) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const T* row = from + rows.at[lane];
#pragma GCC unroll 8
      for (int64_t c = 0; c < classes; ++c) to[c * kLanes + lane] = static_cast<Acc>(widen(row[c]));
    }
  } else {
    for (int64_t c = 0; c < classes; ++c) {
      for (int lane = 0; lane < kLanes; ++lane) {
        to[c * kLanes + lane] = static_cast<Acc>(widen(from[rows.at[lane] + c * class_stride]));
      }
    }
  }
}

template <class T, class Acc>
MTK_CPU_CLONES static void scatter_tile(const Acc* from, T* to, const Starts<kLanes>& rows,
                                        int64_t class_stride, int64_t classes) {
  if (rows.adjacent) {
    for (int64_t c = 0; c < classes; ++c) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        store(&to[rows.at[0] + c * class_stride + lane], from[c * kLanes + lane]);
      }
    }
  } else if (class_stride == 1) {
    for (int lane = 0; lane < rows.lanes; ++lane) {
      T* row = to + rows.at[lane];
#pragma GCC unroll 8
      for (int64_t c = 0; c < classes; ++c) store(&row[c], from[c * kLanes + lane]);
    }
  } else {
    for (int64_t c = 0; c < classes; ++c) {
      for (int lane = 0; lane < rows.lanes; ++lane) {
        store(&to[rows.at[lane] + c * class_stride], from[c * kLanes + lane]);
      }
    }
  }
}

template <class T, class Acc>
MTK_CPU_CLONES static void gather_row(const T* from, int64_t class_stride, int64_t classes, Acc* to) {
  if (class_stride == 1) {
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) to[c] = static_cast<Acc>(widen(from[c]));
  } else {
    for (int64_t c = 0; c < classes; ++c) to[c] = static_cast<Acc>(widen(from[c * class_stride]));
  }
}

template <class T, class Acc>
MTK_CPU_CLONES static void scatter_row(const Acc* from, T* to, int64_t class_stride, int64_t classes) {
  if (class_stride == 1) {
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) store(&to[c], from[c]);
  } else {
    for (int64_t c = 0; c < classes; ++c) store(&to[c * class_stride], from[c]);
  }
}

// L rows of an operand: 1 or kLanes of them.
template <int L>
struct RowsOf {
  const Operand& operand;
  int64_t classes;
  Starts<L> starts;

  RowsOf(const Operand& operand, const int64_t (&row_sizes)[kMaxRowDims], int64_t row, int lanes,
         int64_t classes)
      : operand(operand), classes(classes), starts(operand, row_sizes, row, lanes) {}

  template <class Acc>
  void gather(Acc* to) const {
    visit(operand.dtype, [&](auto type) {
      const auto* from = static_cast<const decltype(type)*>(operand.data);
      if constexpr (L == 1) {
        gather_row(from + starts.at[0], operand.class_stride, classes, to);
      } else {
        gather_tile(from, starts, operand.class_stride, classes, to);
      }
    });
  }

  template <class Acc>
  void scatter(const Acc* from) const {
    visit(operand.dtype, [&](auto type) {
      auto* to = static_cast<decltype(type)*>(operand.data);
      if constexpr (L == 1) {
        scatter_row(from, to + starts.at[0], operand.class_stride, classes);
      } else {
        scatter_tile(from, to, starts, operand.class_stride, classes);
      }
    });
  }

  // The row where it lies, if it lies there as accumulators; else null.
  template <class Acc>
  Acc* in_place() const {
    const bool same =
        operand.dtype == (sizeof(Acc) == 8 ? Dtype::f64 : Dtype::f32) && operand.class_stride == 1;
    return L == 1 && operand.data && same ? static_cast<Acc*>(operand.data) + starts.at[0] : nullptr;
  }
};

// Whether rows go in tiles: few classes, or classes that are not beside each other.
inline bool in_tiles(int64_t classes, const Operand& student, const Operand& teacher) {
  const bool contiguous = student.class_stride == 1 && teacher.class_stride == 1;
  return classes < (contiguous ? kTileClasses : kTileStrided);
}

}  // namespace mtk
