// ema_update on the CPU: each thread walks an equal share of the table's elements.
#include "ema_update.h"

#include <algorithm>
#include <cmath>

#include "cpu.h"
#include "low_part.h"

namespace mtk {
namespace {

constexpr int64_t kGrain = 32 * 1024;  // elements that pay for one more thread
constexpr int64_t kBlock = 4096;       // elements that stay in the first cache from one use to the next
constexpr int64_t kPiece = 64 * 1024;  // elements of a partial sum
constexpr int64_t kSummed = 256;       // of those whose squares are added before they go to fp64

// The average as near + weight * (far - near), weight <= 1/2.
struct Blend {
  double weight;
  bool from_teacher;  // near is the teacher: decay > 1/2

  explicit Blend(double decay) : weight(decay > 0.5 ? 1.0 - decay : decay), from_teacher(decay > 0.5) {}
};

// One run of a pair's elements under one average.
template <class Dst, class Src>
struct Run {
  Dst* teacher;
  uint16_t* low;  // or null
  const Src* student;
  int64_t count;
};

// Equal sides stay as they are, infinite ones too; a weight of 0 keeps the near side, whatever the far one
// is.
template <class Acc>
MTK_INLINE Acc blend_one(Acc near, Acc far, Acc weight) {
  const Acc blended = near + weight * (far - near);
  return far == near || weight == 0 ? near : blended;
}

template <bool from_teacher, class Acc>
MTK_INLINE Acc blend_sides(Acc teacher, Acc student, Acc weight) {
  return from_teacher ? blend_one(teacher, student, weight) : blend_one(student, teacher, weight);
}

template <bool from_teacher, class Dst, class Src>
MTK_INLINE void average_to_nearest(const Run<Dst, Src>& run, double blend_weight) {
  using Acc = Accumulator<Dst, Src>;
  const Acc weight = static_cast<Acc>(blend_weight);
  Dst* const teacher = run.teacher;
  const Src* const student = run.student;
#pragma omp simd
  for (int64_t i = 0; i < run.count; ++i) {
    store(&teacher[i], blend_sides<from_teacher, Acc>(widen(teacher[i]), widen(student[i]), weight));
  }
}

template <bool from_teacher, class Dst, class Src>
MTK_INLINE void average_in_two_parts(const Run<Dst, Src>& run, double blend_weight) {
  const float weight = static_cast<float>(blend_weight);
  Dst* const teacher = run.teacher;
  uint16_t* const low = run.low;
  const Src* const student = run.student;
#pragma omp simd
  for (int64_t i = 0; i < run.count; ++i) {
    const float t = joined(teacher[i], low[i]), s = static_cast<float>(widen(student[i]));
    split(blend_sides<from_teacher, float>(t, s, weight), &teacher[i], &low[i]);
  }
}

using RandomBits = uint16_t __attribute__((may_alias));  // they are written four at a time

// random: 16 bits for each element.
template <bool from_teacher, class Dst, class Src>
MTK_INLINE void average_at_random(const Run<Dst, Src>& run, double blend_weight, const RandomBits* random) {
  const float weight = static_cast<float>(blend_weight);
  Dst* const teacher = run.teacher;
  const Src* const student = run.student;
#pragma omp simd
  for (int64_t i = 0; i < run.count; ++i) {
    const float t = widen(teacher[i]), s = static_cast<float>(widen(student[i]));
    store_stochastic(&teacher[i], blend_sides<from_teacher, float>(t, s, weight), random[i]);
  }
}

// What all rows of a launch share.
struct Launch {
  double decays[kMaxAverages];
  bool stochastic;
  RandomKey random;
};

struct RandomBlock {
  alignas(64) uint64_t words[(kBlock + 16) / 4];

  // The bits of elements [first, first + count); gives where those of the first are.
  MTK_INLINE const RandomBits* fill(uint64_t first, int64_t count, int average, RandomKey key) {
    const uint64_t group = first / 8;
    const int64_t groups = static_cast<int64_t>((first + static_cast<uint64_t>(count) + 7) / 8 - group);
#pragma omp simd
    for (int64_t i = 0; i < groups; ++i) {
      const Philox<uint64_t> bits = philox<uint64_t>(group + static_cast<uint64_t>(i), average, key);
      words[2 * i] = bits.word[0] | bits.word[1] << 32;
      words[2 * i + 1] = bits.word[2] | bits.word[3] << 32;
    }
    return reinterpret_cast<const RandomBits*>(words) + first % 8;
  }
};

template <bool from_teacher, class Dst, class Src>
MTK_INLINE void average(const Run<Dst, Src>& run, double weight, const Launch& launch, uint64_t first,
                        int k) {
  if constexpr (sizeof(Dst) == 2) {
    if (run.low) return average_in_two_parts<from_teacher>(run, weight);
    if (launch.stochastic) {
      RandomBlock random;
      for (int64_t start = 0; start < run.count; start += kBlock) {
        const int64_t count = std::min(kBlock, run.count - start);
        const RandomBits* const bits =
            random.fill(first + static_cast<uint64_t>(start), count, k, launch.random);
        average_at_random<from_teacher, Dst, Src>({run.teacher + start, nullptr, run.student + start, count},
                                                  weight, bits);
      }
      return;
    }
  }
  average_to_nearest<from_teacher>(run, weight);
}

template <class Dst, class Src>
MTK_INLINE void convert(const Run<Dst, Src>& run) {
  Dst* const teacher = run.teacher;
  const Src* const student = run.student;
#pragma omp simd
  for (int64_t i = 0; i < run.count; ++i) store(&teacher[i], widen(student[i]));
}

// One run of a pair's elements: the function that is compiled for each instruction set.
template <class Dst, class Src>
MTK_CPU_CLONES static void average_or_convert(const Run<Dst, Src>& run, const Launch& launch, bool averages,
                                              uint64_t first, int k) {
  if (!averages) return convert(run);
  const Blend blend(launch.decays[k]);
  if (blend.from_teacher) return average<true>(run, blend.weight, launch, first, k);
  return average<false>(run, blend.weight, launch, first, k);
}

// Elements [start, start + count) of a row and of one of its targets, where its code is `pair` or one that
// follows it.
template <int pair>
void run_from(const Row& row, const Target& target, int64_t start, int64_t count, const Launch& launch,
              int k) {
  if constexpr (pair < kDtypes * kDtypes) {
    using Dst = typename TypeOf<static_cast<Dtype>(pair / kDtypes)>::type;
    using Src = typename TypeOf<static_cast<Dtype>(pair % kDtypes)>::type;
    const bool averages = row.code == kAverage + pair;
    if (!averages && (pair / kDtypes == pair % kDtypes || row.code != kConvert + pair))
      return run_from<pair + 1>(row, target, start, count, launch, k);
    uint16_t* const low = target.low ? reinterpret_cast<uint16_t*>(target.low) + start : nullptr;
    const Run<Dst, Src> run{reinterpret_cast<Dst*>(target.dst) + start, low,
                            reinterpret_cast<const Src*>(row.src) + start, count};
    average_or_convert(run, launch, averages, static_cast<uint64_t>(row.first + start), k);
  } else {
    const int64_t unit = row.code == kCopyWords ? 4 : 1;
    memcpy(reinterpret_cast<char*>(target.dst) + start * unit,
           reinterpret_cast<const char*>(row.src) + start * unit, static_cast<size_t>(count * unit));
  }
}

// Several averages take turns on blocks, so that the student is read from memory once.
void run_row(const Table& table, int64_t i, int64_t start, int64_t count, const Launch& launch) {
  const Row& row = table.row(i);
  if (table.averages == 1) return run_from<0>(row, table.targets(i)[0], start, count, launch, 0);
  for (int64_t done = 0; done < count; done += kBlock) {
    for (int k = 0; k < table.averages; ++k) {
      run_from<0>(row, table.targets(i)[k], start + done, std::min(kBlock, count - done), launch, k);
    }
  }
}

// Elements [begin, end) of the whole table, counted row after row.
void run_share(const Table& table, int64_t begin, int64_t end, const Launch& launch) {
  int64_t row_begin = 0;
  for (int64_t i = 0; row_begin < end; row_begin += table.row(i).count, ++i) {
    const int64_t start = std::max<int64_t>(begin - row_begin, 0);
    const int64_t count = std::min(end - row_begin, table.row(i).count) - start;
    if (count > 0) run_row(table, i, start, count, launch);
  }
}

// ---- drift

template <class Dst, class Src>
MTK_CPU_CLONES static double squared_distance(const Run<Dst, Src>& run) {
  using Acc = Accumulator<Dst, Src>;
  const Dst* const teacher = run.teacher;
  const uint16_t* const low = run.low;
  const Src* const student = run.student;
  double total = 0;
  for (int64_t start = 0; start < run.count; start += kSummed) {
    const int64_t end = std::min(start + kSummed, run.count);
    Acc sum = 0;
    if (low == nullptr) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = start; i < end; ++i) {
        const Acc difference = static_cast<Acc>(widen(teacher[i])) - static_cast<Acc>(widen(student[i]));
        sum += difference * difference;
      }
    } else if constexpr (sizeof(Dst) == 2) {
#pragma omp simd reduction(+ : sum)
      for (int64_t i = start; i < end; ++i) {
        const Acc difference =
            static_cast<Acc>(joined(teacher[i], low[i])) - static_cast<Acc>(widen(student[i]));
        sum += difference * difference;
      }
    }
    total += static_cast<double>(sum);
  }
  return total;
}

template <int pair>
double distance_from(const Row& row, const Target& target) {
  if constexpr (pair < kDtypes * kDtypes) {
    using Dst = typename TypeOf<static_cast<Dtype>(pair / kDtypes)>::type;
    using Src = typename TypeOf<static_cast<Dtype>(pair % kDtypes)>::type;
    if (row.code != kAverage + pair) return distance_from<pair + 1>(row, target);
    return squared_distance<Dst, Src>({reinterpret_cast<Dst*>(target.dst),
                                       reinterpret_cast<uint16_t*>(target.low),
                                       reinterpret_cast<const Src*>(row.src), row.count});
  }
  return 0;
}

// One row of a table of pieces, and its part of each average's drift.
void run_piece(const Table& table, int64_t i, const Launch& launch, double* distances) {
  run_row(table, i, 0, table.row(i).count, launch);
  for (int k = 0; k < table.averages; ++k) distances[k] = distance_from<0>(table.row(i), table.targets(i)[k]);
}

// The sums are over pieces of one size, in order: the same bits for any number of threads.
void run_with_drift(const EmaUpdate& args, const Launch& launch) {
  const Plan pieces = args.plan->chunks(args.plan->count / kPiece + 1);
  const Table table = pieces.table();
  std::vector<double> distances(static_cast<size_t>(table.n_rows * table.averages));
  const int threads = threads_for(pieces.count, kGrain);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < table.n_rows; ++i) {
    run_piece(table, i, launch, distances.data() + i * table.averages);
  }
  for (int k = 0; k < table.averages; ++k) {
    double sum = 0;
    for (int64_t i = 0; i < table.n_rows; ++i) sum += distances[static_cast<size_t>(i * table.averages + k)];
    args.drift[k] = std::sqrt(sum);
  }
}

void run(const EmaUpdate& args, const Launch& launch) {
  const Table table = args.plan->table();
  const int64_t count = args.plan->count;
  const int threads = threads_for(count * table.averages, kGrain);
  if (threads == 1) return run_share(table, 0, count, launch);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread) {
    run_share(table, count * thread / threads, count * (thread + 1) / threads, launch);
  }
}

}  // namespace

void ema_update_cpu(const EmaUpdate& args) {
  const EmaStep step(args);
  if (step.writes) {
    Launch launch{{}, args.stochastic, step.random};
    for (int k = 0; k < args.plan->averages; ++k) launch.decays[k] = step.decay(args, k);
    args.drift ? run_with_drift(args, launch) : run(args, launch);
  }
  if (args.advance && !step.skipped) *args.step = step.number;
}

}  // namespace mtk
