// softmax_kl on the CPU. sum_c q (log q - log p) = (sum_c eb (b - a)) / zb + log(za / zb), with logits less
// their maxima: one logarithm a row, and exactly 0 for equal sides.
#include "softmax_kl.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

double row_loss(const RowSums& sums) { return sums.cross / sums.zb + std::log(sums.za / sums.zb); }

template <class Acc>
MTK_CPU_CLONES void row_gradient(const Rows<Acc>& row, Ratio<Acc> ratio, Acc factor) {
  const Acc *ea = row.ea, *eb = row.eb;
  Acc* gradient = row.gradient;
#pragma omp simd
  for (int64_t c = 0; c < row.classes; ++c) gradient[c] = factor * ratio.difference(ea[c], eb[c]);
}

template <class Acc>
MTK_CPU_CLONES void tile_gradient(const Rows<Acc>& tile, const TileRatio<Acc>& ratio, const Acc* factor) {
  const Acc *ea = tile.ea, *eb = tile.eb;
  Acc* gradient = tile.gradient;
  for (int64_t i = 0; i < tile.classes * kLanes; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      gradient[i + lane] = factor[lane] * ratio.difference(ea[i + lane], eb[i + lane], lane);
    }
  }
}

struct SoftmaxKl {
  template <class Acc>
  static double row(const Rows<Acc>& row) {
    const RowSums sums = exponentials<true>(row);
    if (sums.masked()) return masked_row(row);
    if (row.gradient) {
      row_gradient(row, Ratio<Acc>(sums), static_cast<Acc>(row.scale * sums.inverse_zb()));
    }
    return row_loss(sums);
  }

  template <class Acc>
  static void tile(const Rows<Acc>& tile, double* losses) {
    RowSums sums[kLanes];
    tile_exponentials<true>(tile, sums);
    Acc factor[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      losses[lane] = row_loss(sums[lane]);
      factor[lane] = static_cast<Acc>(tile.scale * sums[lane].inverse_zb());
    }
    if (tile.gradient) tile_gradient(tile, TileRatio<Acc>(sums), factor);
    clear_masked(tile, sums, losses);
  }
};

}  // namespace

void softmax_kl_cpu(const Consistency& args) { consistency_cpu<SoftmaxKl>(args); }

}  // namespace mtk
