// softmax_mse on the CPU. p - q is taken as (ea * (zb / za) - eb) / zb, so that equal sides give exactly 0 however the
// compiler contracts it.
#include "softmax_mse.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

struct SoftmaxMse {
  template <class Acc>
  MTK_INLINE static double row(const Rows<Acc>& row) {
    const RowSums<Acc> sums = exponentials<false>(row);
    const bool masked = sums.masked();
    const Acc inverse_za = masked ? 0 : 1 / sums.za, inverse_zb = masked ? 0 : 1 / sums.zb;
    const Acc ratio = masked ? 0 : sums.zb / sums.za;
    double squares = 0, along = 0;  // sum (p - q)^2, sum p (p - q)
    for (int64_t begin = 0; begin < row.classes; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, row.classes);
      Acc block_squares = 0, block_along = 0;
#pragma omp simd reduction(+ : block_squares, block_along)
      for (int64_t c = begin; c < end; ++c) {
        const Acc difference = (row.ea[c] * ratio - row.eb[c]) * inverse_zb;
        block_squares += difference * difference;
        block_along += row.ea[c] * difference;
      }
      squares += block_squares, along += block_along;
    }
    if (row.gradient) {
      const Acc mean_along = static_cast<Acc>(along) * inverse_za;
      const Acc factor = 2 * row.scale / static_cast<Acc>(row.classes) * inverse_za;
#pragma omp simd
      for (int64_t c = 0; c < row.classes; ++c) {
        const Acc difference = (row.ea[c] * ratio - row.eb[c]) * inverse_zb;
        row.gradient[c] = factor * row.ea[c] * (difference - mean_along);
      }
    }
    return squares / static_cast<double>(row.classes);
  }

  template <class Acc>
  MTK_INLINE static void tile(const Rows<Acc>& tile, Acc* losses) {
    RowSums<Acc> sums[kLanes];
    tile_exponentials<false>(tile, sums);
    Acc inverse_za[kLanes], inverse_zb[kLanes], ratio[kLanes], squares[kLanes] = {}, along[kLanes] = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      const bool masked = sums[lane].masked();
      inverse_za[lane] = masked ? 0 : 1 / sums[lane].za;
      inverse_zb[lane] = masked ? 0 : 1 / sums[lane].zb;
      ratio[lane] = masked ? 0 : sums[lane].zb / sums[lane].za;
    }
    for (int64_t i = 0; i < tile.classes * kLanes; i += kLanes) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const Acc difference = (tile.ea[i + lane] * ratio[lane] - tile.eb[i + lane]) * inverse_zb[lane];
        squares[lane] += difference * difference;
        along[lane] += tile.ea[i + lane] * difference;
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) losses[lane] = squares[lane] / static_cast<Acc>(tile.classes);
    if (!tile.gradient) return;
    const Acc factor = 2 * tile.scale / static_cast<Acc>(tile.classes);
    for (int64_t i = 0; i < tile.classes * kLanes; i += kLanes) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const Acc difference = (tile.ea[i + lane] * ratio[lane] - tile.eb[i + lane]) * inverse_zb[lane];
        tile.gradient[i + lane] =
            factor * inverse_za[lane] * tile.ea[i + lane] * (difference - along[lane] * inverse_za[lane]);
      }
    }
  }
};

MTK_CPU_CLONES void run_float(const Consistency& args, int64_t begin, int64_t end, float* scratch, double* losses) {
  run_rows<SoftmaxMse>(args, begin, end, scratch, losses);
}

MTK_CPU_CLONES void run_double(const Consistency& args, int64_t begin, int64_t end, double* scratch, double* losses) {
  run_rows<SoftmaxMse>(args, begin, end, scratch, losses);
}

}  // namespace

void softmax_mse_cpu(const Consistency& args) {
  args.doubles() ? run_threads<double>(args, run_double) : run_threads<float>(args, run_float);
}

}  // namespace mtk
