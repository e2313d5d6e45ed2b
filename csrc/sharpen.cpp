// sharpen on the CPU: rows are brought to accumulators in scratch memory, one at a time or, where they are
// short, kLanes of them side by side.
#include "sharpen.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <memory>

#include "matrix_cpu.h"
#include "vec.h"

namespace mtk {
namespace {

// r^y for 0 <= r <= 1, in fp32: exp(y log r) with log r = e ln 2 + log(1 + f), 1 + f in [sqrt(1/2), sqrt(2)),
// and a polynomial for log(1 + f). y is normal and finite, so that 0^y is 0 and 1^y is 1. NaN for what is
// neither r >= 0.
MTK_INLINE float power(float r, float y) {
  const bool subnormal = r < FLT_MIN;
  const float scaled = subnormal ? r * 8388608.0f : r;          // 2^23
  const int32_t bits = bit_cast<int32_t>(scaled) - 0x3f3504f3;  // of sqrt(1/2)
  const float f = bit_cast<float>((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
  const float e = static_cast<float>(bits >> 23) - (subnormal ? 23.0f : 0.0f);
  float poly = 7.0376836292e-2f;
  poly = poly * f - 1.1514610310e-1f;
  poly = poly * f + 1.1676998740e-1f;
  poly = poly * f - 1.2420140846e-1f;
  poly = poly * f + 1.4249322787e-1f;
  poly = poly * f - 1.6668057665e-1f;
  poly = poly * f + 2.0000714765e-1f;
  poly = poly * f - 2.4999993993e-1f;
  poly = poly * f + 3.3333331174e-1f;
  const float square = f * f;
  const float tail = (poly * f * square + e * -2.12194440e-4f) - 0.5f * square;
  const float log = (f + tail) + e * 0.693359375f;
  const float result = exp_nonpositive(log * y);
  const float outside = r == 0.0f ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  return r > 0.0f ? result : outside;
}

MTK_INLINE double power(double r, double y) {
  return r >= 0 ? std::pow(r, y) : std::numeric_limits<double>::quiet_NaN();
}

// kExponent: 1 or 2, or 0 for any other.
template <int kExponent, class Acc, int L>
struct Powers {
  Acc* p;
  Acc max[L], exponent;

  MTK_INLINE void at(int64_t i, int lane, Careful<Acc>& first, Careful<Acc>&) const {
    const Acc r = p[i] / max[lane];
    const Acc chosen = kExponent == 0 ? power(r, exponent) : kExponent == 1 ? r : r * r;
    const Acc result = kExponent == 0 || !(r < 0) ? chosen : std::numeric_limits<Acc>::quiet_NaN();
    p[i] = result;
    first += result;
  }
};

template <int kExponent, class Acc, int L>
void raise(const Acc* max, Acc exponent, int64_t classes, Acc* p, double (*sums)[2]) {
  Powers<kExponent, Acc, L> powers{p, {}, exponent};
  std::copy_n(max, L, powers.max);
  sweep<L, Acc, Careful<Acc>>(powers, classes, sums);
}

template <class Acc, int L>
struct Quotients {
  Acc* p;
  Factor<Acc, L> inverse;

  MTK_INLINE void at(int64_t i, int lane, Acc&, Acc&) const { p[i] = inverse.times(p[i], lane); }
};

template <class Acc, int L>
void run_tile(const Sharpen& args, int64_t row, int lanes, Acc exponent, Acc* scratch) {
  int64_t from[L], to[L];
  for (int lane = 0; lane < L; ++lane) {
    from[lane] = to[lane] = 0;
    int64_t rest = lane < lanes ? row + lane : row;
    for (int dim = args.dims - 1; dim >= 0 && rest > 0; --dim) {
      const int64_t index = rest % args.sizes[dim];
      rest /= args.sizes[dim];
      from[lane] += index * args.strides[dim], to[lane] += index * args.sharpened_strides[dim];
    }
  }
  gather(args.dtype, args.probs, from, L, args.stride, args.classes, scratch);
  Acc max[L];
  maxima<L>(scratch, args.classes, max);
  for (int lane = 0; lane < L; ++lane) {
    if (max[lane] == 0) max[lane] = 1;
    if (max[lane] < 0) max[lane] = std::numeric_limits<Acc>::quiet_NaN();
  }
  double sums[L][2] = {}, none[L][2] = {};
  const auto run = exponent == 1 ? raise<1, Acc, L> : exponent == 2 ? raise<2, Acc, L> : raise<0, Acc, L>;
  run(max, exponent, args.classes, scratch, sums);
  Quotients<Acc, L> quotients{scratch, {}};
  for (int lane = 0; lane < L; ++lane) quotients.inverse.set_inverse(lane, sums[lane][0]);
  sweep<L, Acc, Acc>(quotients, args.classes, none);
  scatter(scratch, args.dtype, args.sharpened, to, L, lanes, args.sharpened_stride, args.classes);
}

// 1 / T among the normal numbers: past them the powers are 0 and 1 all the same.
template <class Acc>
Acc exponent_of(double temperature) {
  const double least = std::numeric_limits<Acc>::min(), most = std::numeric_limits<Acc>::max();
  return static_cast<Acc>(std::min(std::max(1 / temperature, least), most));
}

template <class Acc, int L>
void run(const Sharpen& args) {
  const int64_t size = args.classes * L, tiles = (args.rows + L - 1) / L;
  const Acc exponent = exponent_of<Acc>(args.temperature);
  const int threads = threads_for(args.rows * args.classes, kLogitsPerThread);
  const std::unique_ptr<Acc[]> scratch(new Acc[static_cast<size_t>(size * threads)]);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread) {
    for (int64_t tile = tiles * thread / threads; tile < tiles * (thread + 1) / threads; ++tile) {
      const int lanes = static_cast<int>(std::min<int64_t>(L, args.rows - tile * L));
      run_tile<Acc, L>(args, tile * L, lanes, exponent, scratch.get() + size * thread);
    }
  }
}

template <class Acc>
void run(const Sharpen& args) {
  args.classes < kTileClasses ? run<Acc, kLanes>(args) : run<Acc, 1>(args);
}

}  // namespace

void sharpen_cpu(const Sharpen& args) { args.dtype == Dtype::f64 ? run<double>(args) : run<float>(args); }

}  // namespace mtk
