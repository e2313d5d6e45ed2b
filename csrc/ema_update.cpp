// ema_update on the CPU: each thread walks an equal share of the table's elements.
#include "ema_update.h"

#include <algorithm>

#include "cpu.h"

namespace mtk {
namespace {

constexpr int64_t kGrain = 32 * 1024;  // elements that pay for one more thread

// The average as near + weight * (far - near), weight <= 1/2.
struct Blend {
  double weight;
  bool from_teacher;  // near is the teacher: decay > 1/2

  explicit Blend(double decay) : weight(decay > 0.5 ? 1.0 - decay : decay), from_teacher(decay > 0.5) {}
};

// Equal sides stay as they are, infinite ones too; a weight of 0 keeps the near side, whatever the far one
// is.
template <class Acc>
MTK_INLINE Acc blend_one(Acc near, Acc far, Acc weight) {
  const Acc blended = near + weight * (far - near);
  return far == near || weight == 0 ? near : blended;
}

template <class Dst, class Src>
MTK_INLINE void average(Dst* teacher, const Src* student, int64_t count, Blend blend) {
  using Acc = Accumulator<Dst, Src>;
  const Acc weight = static_cast<Acc>(blend.weight);
  if (blend.from_teacher) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      store(&teacher[i], blend_one<Acc>(widen(teacher[i]), widen(student[i]), weight));
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      store(&teacher[i], blend_one<Acc>(widen(student[i]), widen(teacher[i]), weight));
    }
  }
}

template <class Dst, class Src>
MTK_INLINE void convert(Dst* teacher, const Src* student, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) store(&teacher[i], widen(student[i]));
}

// The row's elements [start, start + count), where its code is `pair` or one that follows it.
template <int pair>
MTK_INLINE void run_from(const Row& row, int64_t start, int64_t count, Blend blend) {
  if constexpr (pair < kDtypes * kDtypes) {
    using Dst = typename TypeOf<static_cast<Dtype>(pair / kDtypes)>::type;
    using Src = typename TypeOf<static_cast<Dtype>(pair % kDtypes)>::type;
    Dst* dst = reinterpret_cast<Dst*>(row.dst) + start;
    const Src* src = reinterpret_cast<const Src*>(row.src) + start;
    if (row.code == kAverage + pair) return average(dst, src, count, blend);
    if constexpr (pair / kDtypes != pair % kDtypes) {
      if (row.code == kConvert + pair) return convert(dst, src, count);
    }
    run_from<pair + 1>(row, start, count, blend);
  } else {
    const int64_t unit = row.code == kCopyWords ? 4 : 1;
    memcpy(reinterpret_cast<char*>(row.dst) + start * unit,
           reinterpret_cast<const char*>(row.src) + start * unit, static_cast<size_t>(count * unit));
  }
}

// Elements [begin, end) of the whole table, counted row after row.
MTK_CPU_CLONES void run_share(const Row* rows, int64_t begin, int64_t end, Blend blend) {
  int64_t row_begin = 0;
  for (const Row* row = rows; row_begin < end; row_begin += row->count, ++row) {
    const int64_t start = std::max<int64_t>(begin - row_begin, 0);
    const int64_t count = std::min(end - row_begin, row->count) - start;
    if (count > 0) run_from<0>(*row, start, count, blend);
  }
}

double read_decay(const EmaUpdate& args) {
  if (!args.decay_data) return args.decay;
  return args.decay_dtype == Dtype::f64 ? *static_cast<const double*>(args.decay_data)
                                        : *static_cast<const float*>(args.decay_data);
}

}  // namespace

void ema_update_cpu(const EmaUpdate& args) {
  const Blend blend(read_decay(args));
  const Row* rows = args.plan->rows.data();
  const int64_t count = args.plan->count;
  const int threads = threads_for(count, kGrain);
  if (threads == 1) return run_share(rows, 0, count, blend);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread) {
    run_share(rows, count * thread / threads, count * (thread + 1) / threads, blend);
  }
}

}  // namespace mtk
