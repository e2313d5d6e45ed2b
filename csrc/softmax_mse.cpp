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

  Gradient(const RowSums& sums, double along, double scale, int64_t classes)
      : factor(static_cast<Acc>(2 * scale / static_cast<double>(classes) * sums.inverse_za() * sums.inverse_zb())),
        mean_along(static_cast<Acc>(along * sums.inverse_za())) {}
};

// The sums belong to the ratio as rounded to Acc, the same for the whole row: its error would not average out over the
// classes, so it is taken back to first order.
double row_loss(const RowSums& sums, double squares, double along, double rounded_ratio, int64_t classes) {
  const double corrected = squares - 2 * (rounded_ratio - sums.ratio()) * along;
  return corrected * sums.inverse_zb() * sums.inverse_zb() / static_cast<double>(classes);
}

template <class Acc>
MTK_CPU_CLONES Sums block_sums(const Acc* ea, const Acc* eb, Acc ratio, int64_t count) {
  Acc squares = 0, along = 0;
#pragma omp simd reduction(+ : squares, along)
  for (int64_t c = 0; c < count; ++c) {
    const Acc d = difference(ea[c], eb[c], ratio);
    squares += d * d;
    along += ea[c] * d;
  }
  return {squares, along};
}

template <class Acc>
MTK_CPU_CLONES void row_gradient(const Rows<Acc>& row, Acc ratio, Gradient<Acc> g) {
  const Acc *ea = row.ea, *eb = row.eb;
  Acc* gradient = row.gradient;
#pragma omp simd
  for (int64_t c = 0; c < row.classes; ++c) {
    gradient[c] = g.factor * ea[c] * (difference(ea[c], eb[c], ratio) - g.mean_along);
  }
}

template <class Acc>
MTK_CPU_CLONES void tile_sums(const Rows<Acc>& tile, const Acc* ratio, double* squares_sum, double* along_sum) {
  const Acc *ea = tile.ea, *eb = tile.eb;
  const int64_t size = tile.classes * kLanes;
  for (int64_t begin = 0; begin < size; begin += kTileBlock * kLanes) {
    Acc squares[kLanes] = {}, along[kLanes] = {};
    for (int64_t i = begin; i < std::min(size, begin + kTileBlock * kLanes); i += kLanes) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) {
        const Acc d = difference(ea[i + lane], eb[i + lane], ratio[lane]);
        squares[lane] += d * d;
        along[lane] += ea[i + lane] * d;
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) squares_sum[lane] += squares[lane], along_sum[lane] += along[lane];
  }
}

template <class Acc>
MTK_CPU_CLONES void tile_gradient(const Rows<Acc>& tile, const Acc* ratio, const Acc* factor, const Acc* mean_along) {
  const Acc *ea = tile.ea, *eb = tile.eb;
  Acc* gradient = tile.gradient;
  for (int64_t i = 0; i < tile.classes * kLanes; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const Acc d = difference(ea[i + lane], eb[i + lane], ratio[lane]);
      gradient[i + lane] = factor[lane] * ea[i + lane] * (d - mean_along[lane]);
    }
  }
}

struct SoftmaxMse {
  template <class Acc>
  static double row(const Rows<Acc>& row) {
    const RowSums sums = exponentials<false>(row);
    const Acc ratio = static_cast<Acc>(sums.ratio());
    double squares = 0, along = 0;
    for (int64_t c = 0; c < row.classes; c += kBlock<Acc>) {
      const Sums block = block_sums(row.ea + c, row.eb + c, ratio, std::min(kBlock<Acc>, row.classes - c));
      squares += block.squares, along += block.along;
    }
    if (row.gradient) row_gradient(row, ratio, Gradient<Acc>(sums, along, row.scale, row.classes));
    return row_loss(sums, squares, along, ratio, row.classes);
  }

  template <class Acc>
  static void tile(const Rows<Acc>& tile, double* losses) {
    RowSums sums[kLanes];
    tile_exponentials<false>(tile, sums);
    Acc ratio[kLanes], factor[kLanes], mean_along[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) ratio[lane] = static_cast<Acc>(sums[lane].ratio());
    double squares[kLanes] = {}, along[kLanes] = {};
    tile_sums(tile, ratio, squares, along);
    for (int lane = 0; lane < kLanes; ++lane) {
      losses[lane] = row_loss(sums[lane], squares[lane], along[lane], ratio[lane], tile.classes);
      const Gradient<Acc> g(sums[lane], along[lane], tile.scale, tile.classes);
      factor[lane] = g.factor, mean_along[lane] = g.mean_along;
    }
    if (tile.gradient) tile_gradient(tile, ratio, factor, mean_along);
  }
};

}  // namespace

void softmax_mse_cpu(const Consistency& args) { consistency_cpu<SoftmaxMse>(args); }

}  // namespace mtk
