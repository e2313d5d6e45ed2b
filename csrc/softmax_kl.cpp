// softmax_kl on the CPU. sum_c q (log q - log p) = (sum_c eb (b - a)) / zb + log za - log zb, with logits less their
// maxima: one logarithm a row. p - q is taken as in softmax_mse, exactly 0 for equal sides.
#include "softmax_kl.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

template <class Acc>
MTK_INLINE double row_loss(const RowSums<Acc>& sums) {
  if (sums.masked()) return 0;
  return static_cast<double>(sums.cross) / sums.zb + (std::log(static_cast<double>(sums.za)) - std::log(static_cast<double>(sums.zb)));
}

struct SoftmaxKl {
  template <class Acc>
  MTK_INLINE static double row(const Rows<Acc>& row) {
    const RowSums<Acc> sums = exponentials<true>(row);
    if (row.gradient) {
      const Acc ratio = sums.masked() ? 0 : sums.zb / sums.za;
      const Acc factor = sums.masked() ? 0 : row.scale / sums.zb;
#pragma omp simd
      for (int64_t c = 0; c < row.classes; ++c) row.gradient[c] = factor * (row.ea[c] * ratio - row.eb[c]);
    }
    return row_loss(sums);
  }

  template <class Acc>
  MTK_INLINE static void tile(const Rows<Acc>& tile, Acc* losses) {
    RowSums<Acc> sums[kLanes];
    tile_exponentials<true>(tile, sums);
    for (int lane = 0; lane < kLanes; ++lane) losses[lane] = static_cast<Acc>(row_loss(sums[lane]));
    if (!tile.gradient) return;
    Acc ratio[kLanes], factor[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      ratio[lane] = sums[lane].masked() ? 0 : sums[lane].zb / sums[lane].za;
      factor[lane] = sums[lane].masked() ? 0 : tile.scale / sums[lane].zb;
    }
    for (int64_t i = 0; i < tile.classes * kLanes; i += kLanes) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        tile.gradient[i + lane] = factor[lane] * (tile.ea[i + lane] * ratio[lane] - tile.eb[i + lane]);
      }
    }
  }
};

MTK_CPU_CLONES void run_float(const Consistency& args, int64_t begin, int64_t end, float* scratch, double* losses) {
  run_rows<SoftmaxKl>(args, begin, end, scratch, losses);
}

MTK_CPU_CLONES void run_double(const Consistency& args, int64_t begin, int64_t end, double* scratch, double* losses) {
  run_rows<SoftmaxKl>(args, begin, end, scratch, losses);
}

}  // namespace

void softmax_kl_cpu(const Consistency& args) {
  args.doubles() ? run_threads<double>(args, run_double) : run_threads<float>(args, run_float);
}

}  // namespace mtk
