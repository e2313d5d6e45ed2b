// scale on the CPU.
#include "scale.h"

#include "cpu.h"

namespace mtk {
namespace {

constexpr int64_t kGrain = 32 * 1024;  // elements that pay for one more thread

template <class T, class Acc>
MTK_INLINE void multiply(T* data, int64_t count, Acc factor) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) store(&data[i], widen(data[i]) * factor);
}

MTK_CPU_CLONES void run_share(const Scale& args, int64_t begin, int64_t end, double factor) {
  const int64_t count = end - begin;
  switch (args.dtype) {
    case Dtype::f32:
      return multiply(static_cast<float*>(args.data) + begin, count, static_cast<float>(factor));
    case Dtype::f64:
      return multiply(static_cast<double*>(args.data) + begin, count, factor);
    case Dtype::f16:
      return multiply(static_cast<half_bits*>(args.data) + begin, count, static_cast<float>(factor));
    case Dtype::bf16:
      return multiply(static_cast<bfloat16_bits*>(args.data) + begin, count, static_cast<float>(factor));
  }
}

}  // namespace

void scale_cpu(const Scale& args) {
  const double factor = args.factor_dtype == Dtype::f64 ? *static_cast<const double*>(args.factor)
                                                        : *static_cast<const float*>(args.factor);
  if (factor == 1) return;
  const int threads = threads_for(args.count, kGrain);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int thread = 0; thread < threads; ++thread) {
    run_share(args, args.count * thread / threads, args.count * (thread + 1) / threads, factor);
  }
}

}  // namespace mtk
