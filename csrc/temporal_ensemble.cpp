// temporal_ensemble_ on the CPU: rows are brought to accumulators in scratch memory, one at a time or, where
// they are short, kLanes of them side by side.
#include "temporal_ensemble.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "matrix_cpu.h"
#include "vec.h"

namespace mtk {
namespace {

// L rows: class c of row `lane` at c * L + lane.
template <class Acc, int L>
struct Rows {
  Acc* p;                             // logits, then exp(logit - max), then p
  Acc* z;                             // of the ensemble: as it was, then as it is
  Acc* d;                             // p - t, then the gradient
  Factor<Acc, L> inverse, corrected;  // of p and of t
  Acc max[L], alpha[L], beta[L], factor[L], along[L];
};

// Sums of exp(logit - max) and of z.
template <class Acc, int L>
struct Exponentials {
  Rows<Acc, L> rows;
  MTK_INLINE void at(int64_t i, int lane, Careful<Acc>& first, Careful<Acc>& second) const {
    const Acc e = exp_nonpositive(rows.p[i] - rows.max[lane]);
    rows.p[i] = e;
    first += e;
    second += rows.z[i];
  }
};

// Sums of (p - t)^2 and of p (p - t).
template <class Acc, int L>
struct Differences {
  Rows<Acc, L> rows;
  MTK_INLINE void at(int64_t i, int lane, Careful<Acc>& first, Careful<Acc>& second) const {
    const Acc p = rows.inverse.times(rows.p[i], lane), z = rows.z[i];
    const Acc d = p - rows.corrected.times(z, lane);
    rows.p[i] = p;
    rows.d[i] = d;
    rows.z[i] = rows.alpha[lane] * z + rows.beta[lane] * p;
    first += d * d;
    second += p * d;
  }
};

template <class Acc, int L>
struct Gradient {
  Rows<Acc, L> rows;
  MTK_INLINE void at(int64_t i, int lane, Acc&, Acc&) const {
    rows.d[i] = rows.factor[lane] * rows.p[i] * (rows.d[i] - rows.along[lane]);
  }
};

// Where L rows lie, from `row` on.
template <int L>
struct Places {
  int64_t ensemble[L], student[L], dstudent[L];

  Places(const TemporalEnsemble& args, int64_t row, int lanes) {
    for (int lane = 0; lane < L; ++lane) {
      const int64_t at = lane < lanes ? row + lane : row;
      ensemble[lane] = args.sample(at) * args.ensemble.row_stride;
      student[lane] = at * args.student.row_stride;
      dstudent[lane] = at * args.dstudent.row_stride;
    }
  }
};

// What the sums of a row say of it. Gives whether it has neither loss nor gradient.
template <class Acc, int L>
bool settle(const TemporalEnsemble& args, const double (&sums)[2], Rows<Acc, L>& rows, int lane) {
  const bool masked = sums[0] == 0;
  rows.inverse.set_inverse(lane, sums[0]);
  rows.corrected.set_inverse(lane, args.renormalize ? sums[1] : args.divisor);
  rows.alpha[lane] = static_cast<Acc>(masked ? 1 : args.alpha);
  rows.beta[lane] = static_cast<Acc>(masked ? 0 : 1 - args.alpha);
  return masked || !args.has_target || (args.renormalize && sums[1] == 0);
}

// Rows [row, row + lanes), and their losses. scratch: [3, classes, L].
template <class Acc, int L>
void run_tile(const TemporalEnsemble& args, int64_t row, int lanes, Acc* scratch, double* losses) {
  const int64_t classes = args.classes;
  Rows<Acc, L> rows;
  rows.p = scratch, rows.z = rows.p + classes * L, rows.d = rows.z + classes * L;
  const Places<L> places(args, row, lanes);
  gather(args.student.dtype, args.student.data, places.student, L, args.student.class_stride, classes,
         rows.p);
  gather(args.ensemble.dtype, args.ensemble.data, places.ensemble, L, 1, classes, rows.z);
  maxima<L>(rows.p, classes, rows.max);
  for (Acc& max : rows.max) max = max == -std::numeric_limits<Acc>::infinity() ? Acc(0) : max;
  double first[L][2] = {}, second[L][2] = {}, none[L][2] = {};
  bool idle[L];
  sweep<L, Acc, Careful<Acc>>(Exponentials<Acc, L>{rows}, classes, first);
  for (int lane = 0; lane < L; ++lane) idle[lane] = settle(args, first[lane], rows, lane);
  sweep<L, Acc, Careful<Acc>>(Differences<Acc, L>{rows}, classes, second);
  scatter(rows.z, args.ensemble.dtype, args.ensemble.data, places.ensemble, L, lanes, 1, classes);
  for (int lane = 0; lane < lanes; ++lane) {
    losses[lane] = idle[lane] ? 0 : second[lane][0] / static_cast<double>(classes);
  }
  if (!args.dstudent.data) return;
  for (int lane = 0; lane < L; ++lane) {
    rows.factor[lane] = static_cast<Acc>(2 * args.row_scale / static_cast<double>(classes));
    rows.along[lane] = static_cast<Acc>(second[lane][1]);
  }
  sweep<L, Acc, Acc>(Gradient<Acc, L>{rows}, classes, none);
  for (int lane = 0; lane < lanes; ++lane) {
    for (int64_t c = 0; idle[lane] && c < classes; ++c) rows.d[c * L + lane] = 0;
  }
  scatter(rows.d, args.dstudent.dtype, args.dstudent.data, places.dstudent, L, lanes,
          args.dstudent.class_stride, classes);
}

double sum_pairwise(const double* values, size_t count) {
  if (count > 64)
    return sum_pairwise(values, count / 2) + sum_pairwise(values + count / 2, count - count / 2);
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += values[i];
  return sum;
}

// Threads share the rows, whole tiles each; the losses are added up in their order.
template <class Acc, int L>
void run(const TemporalEnsemble& args) {
  std::vector<double> losses(static_cast<size_t>(args.rows));
  const int64_t size = 3 * args.classes * L, tiles = (args.rows + L - 1) / L;
  const int threads = threads_for(args.rows * args.classes, kLogitsPerThread);
  const std::unique_ptr<Acc[]> scratch(new Acc[static_cast<size_t>(size * threads)]);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread) {
    for (int64_t tile = tiles * thread / threads; tile < tiles * (thread + 1) / threads; ++tile) {
      const int lanes = static_cast<int>(std::min<int64_t>(L, args.rows - tile * L));
      run_tile<Acc, L>(args, tile * L, lanes, scratch.get() + size * thread, losses.data() + tile * L);
    }
  }
  Acc* const loss = static_cast<Acc*>(args.loss);
  if (args.reduced) {
    *loss = static_cast<Acc>(sum_pairwise(losses.data(), losses.size()) * args.row_scale);
  } else {
    for (int64_t row = 0; row < args.rows; ++row) loss[row] = static_cast<Acc>(losses[row]);
  }
}

template <class Acc>
void run(const TemporalEnsemble& args) {
  args.classes < kTileClasses ? run<Acc, kLanes>(args) : run<Acc, 1>(args);
}

}  // namespace

void temporal_ensemble_cpu(const TemporalEnsemble& args) {
  args.doubles() ? run<double>(args) : run<float>(args);
}

}  // namespace mtk
