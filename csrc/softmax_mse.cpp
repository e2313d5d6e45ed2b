// softmax_mse on the CPU.
#include "softmax_mse.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

template <class Acc>
struct Sums {
  Acc squares, along;  // sum (p - q)^2, sum ea (p - q)
};

template <class Acc>
MTK_CPU_CLONES Sums<Acc> block_sums(const Acc* ea, const Acc* eb, Weights<Acc> w, int64_t count) {
  Acc squares = 0, along = 0;
#pragma omp simd reduction(+ : squares, along)
  for (int64_t c = 0; c < count; ++c) {
    const Acc d = w.difference(ea[c], eb[c]);
    squares += d * d;
    along += ea[c] * d;
  }
  return {squares, along};
}

// gradient = factor * ea * (p - q - mean_along)
template <class Acc>
MTK_CPU_CLONES void row_gradient(const Rows<Acc>& row, Weights<Acc> w, Acc factor, Acc mean_along) {
  const Acc *ea = row.ea, *eb = row.eb;
  Acc* gradient = row.gradient;
#pragma omp simd
  for (int64_t c = 0; c < row.classes; ++c) gradient[c] = factor * ea[c] * (w.difference(ea[c], eb[c]) - mean_along);
}

template <class Acc>
MTK_CPU_CLONES void tile_sums(const Rows<Acc>& tile, const TileWeights<Acc>& w, double* squares_sum, double* along_sum) {
  const Acc *ea = tile.ea, *eb = tile.eb;
  const int64_t size = tile.classes * kLanes;
  for (int64_t begin = 0; begin < size; begin += kTileBlock * kLanes) {
    Acc squares[kLanes] = {}, along[kLanes] = {};
    for (int64_t i = begin; i < std::min(size, begin + kTileBlock * kLanes); i += kLanes) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const Acc d = w.difference(ea[i + lane], eb[i + lane], lane);
        squares[lane] += d * d;
        along[lane] += ea[i + lane] * d;
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) squares_sum[lane] += squares[lane], along_sum[lane] += along[lane];
  }
}

template <class Acc>
MTK_CPU_CLONES void tile_gradient(const Rows<Acc>& tile, const TileWeights<Acc>& w, const Acc* factor,
                                  const Acc* mean_along) {
  const Acc *ea = tile.ea, *eb = tile.eb;
  Acc* gradient = tile.gradient;
  for (int64_t i = 0; i < tile.classes * kLanes; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const Acc d = w.difference(ea[i + lane], eb[i + lane], lane);
      gradient[i + lane] = factor[lane] * ea[i + lane] * (d - mean_along[lane]);
    }
  }
}

struct SoftmaxMse {
  template <class Acc>
  static double row(const Rows<Acc>& row) {
    const RowSums sums = exponentials<false>(row);
    const Weights<Acc> w(sums);
    double squares = 0, along = 0;
    for (int64_t c = 0; c < row.classes; c += kBlock<Acc>) {
      const Sums<Acc> block = block_sums(row.ea + c, row.eb + c, w, std::min(kBlock<Acc>, row.classes - c));
      squares += block.squares, along += block.along;
    }
    if (row.gradient) {
      row_gradient(row, w, static_cast<Acc>(2 * row.scale / static_cast<double>(row.classes) * sums.inverse_za()),
                   static_cast<Acc>(along * sums.inverse_za()));
    }
    return squares / static_cast<double>(row.classes);
  }

  template <class Acc>
  static void tile(const Rows<Acc>& tile, double* losses) {
    RowSums sums[kLanes];
    tile_exponentials<false>(tile, sums);
    const TileWeights<Acc> w(sums);
    double squares[kLanes] = {}, along[kLanes] = {};
    tile_sums(tile, w, squares, along);
    Acc mean_along[kLanes], factor[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      losses[lane] = squares[lane] / static_cast<double>(tile.classes);
      mean_along[lane] = static_cast<Acc>(along[lane] * sums[lane].inverse_za());
      factor[lane] = static_cast<Acc>(2 * tile.scale / static_cast<double>(tile.classes) * sums[lane].inverse_za());
    }
    if (tile.gradient) tile_gradient(tile, w, factor, mean_along);
  }
};

}  // namespace

void softmax_mse_cpu(const Consistency& args) { consistency_cpu<SoftmaxMse>(args); }

}  // namespace mtk
