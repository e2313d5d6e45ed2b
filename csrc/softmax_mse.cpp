// softmax_mse on the CPU.
#include "softmax_mse.h"

#include "consistency_cpu.h"

namespace mtk {
namespace {

// With d = zb (p - q): sum d^2 and sum ea d.
struct Sums {
  double squares, along;
};

// The gradient is factor * ea * (d - mean_along).
template <class Acc>
struct Gradient {
  Acc factor, mean_along;

  Gradient(const RowSums& z, const Sums& sums, double scale, int64_t classes)
      : factor(static_cast<Acc>(2 * scale / static_cast<double>(classes) * z.inverse_za() * z.inverse_zb())),
        mean_along(static_cast<Acc>(sums.along * z.inverse_za())) {}
};

double row_loss(const RowSums& z, const Sums& sums, int64_t classes) {
  return sums.squares * z.inverse_zb() * z.inverse_zb() / static_cast<double>(classes);
}

template <class Acc>
MTK_CPU_CLONES Sums row_sums(const Acc* ea, const Acc* eb, Ratio<Acc> ratio, int64_t classes) {
  double squares = 0, along = 0;
#pragma omp simd reduction(+ : squares, along)
  for (int64_t c = 0; c < classes; ++c) {
    const Acc d = ratio.difference(ea[c], eb[c]);
    squares += d * d;
    along += ea[c] * d;
  }
  return {squares, along};
}

template <class Acc>
MTK_CPU_CLONES void row_gradient(const Rows<Acc>& row, Ratio<Acc> ratio, Gradient<Acc> g) {
  const Acc *ea = row.ea, *eb = row.eb;
  Acc* gradient = row.gradient;
#pragma omp simd
  for (int64_t c = 0; c < row.classes; ++c) {
    gradient[c] = g.factor * ea[c] * (ratio.difference(ea[c], eb[c]) - g.mean_along);
  }
}

template <class Acc>
MTK_CPU_CLONES void tile_sums(const Rows<Acc>& tile, const TileRatio<Acc>& ratio, Sums* sums) {
  const Acc *ea = tile.ea, *eb = tile.eb;
  double squares[kLanes] = {}, along[kLanes] = {};
  for (int64_t i = 0; i < tile.classes * kLanes; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const Acc d = ratio.difference(ea[i + lane], eb[i + lane], lane);
      squares[lane] += d * d;
      along[lane] += ea[i + lane] * d;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) sums[lane] = {squares[lane], along[lane]};
}

template <class Acc>
MTK_CPU_CLONES void tile_gradient(const Rows<Acc>& tile, const TileRatio<Acc>& ratio, const Acc* factor,
                                  const Acc* mean_along) {
  const Acc *ea = tile.ea, *eb = tile.eb;
  Acc* gradient = tile.gradient;
  for (int64_t i = 0; i < tile.classes * kLanes; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const Acc d = ratio.difference(ea[i + lane], eb[i + lane], lane);
      gradient[i + lane] = factor[lane] * ea[i + lane] * (d - mean_along[lane]);
    }
  }
}

struct SoftmaxMse {
  template <class Acc>
  static double row(const Rows<Acc>& row) {
    const RowSums z = exponentials<false>(row);
    if (z.masked()) return masked_row(row);
    const Ratio<Acc> ratio(z);
    const Sums sums = row_sums(row.ea, row.eb, ratio, row.classes);
    if (row.gradient) row_gradient(row, ratio, Gradient<Acc>(z, sums, row.scale, row.classes));
    return row_loss(z, sums, row.classes);
  }

  template <class Acc>
  static void tile(const Rows<Acc>& tile, double* losses) {
    RowSums z[kLanes];
    Sums sums[kLanes];
    tile_exponentials<false>(tile, z);
    const TileRatio<Acc> ratio(z);
    tile_sums(tile, ratio, sums);
    Acc factor[kLanes], mean_along[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      losses[lane] = row_loss(z[lane], sums[lane], tile.classes);
      const Gradient<Acc> g(z[lane], sums[lane], tile.scale, tile.classes);
      factor[lane] = g.factor, mean_along[lane] = g.mean_along;
    }
    if (tile.gradient) tile_gradient(tile, ratio, factor, mean_along);
    clear_masked(tile, z, losses);
  }
};

}  // namespace

void softmax_mse_cpu(const Consistency& args) { consistency_cpu<SoftmaxMse>(args); }

}  // namespace mtk
