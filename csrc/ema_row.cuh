// What a block of ema_update does with its row. One body for each pair of dtypes; the wider of the two moves
// in packs of 16 bytes, and a pack of the student serves all averages.
#pragma once
#include "ema_update.h"
#include "launch.cuh"
#include "low_part.h"

namespace mtk {

constexpr int kThreads = 256;

// What a kernel is compiled for: the rarer its work, the more registers it takes. kSeveral: more than one
// average. kExtras: low-order parts, random rounding, drift. kBatch: packs of 16 bytes that a thread loads
// before it uses the first.
struct Plain {
  static constexpr bool kSeveral = false, kExtras = false;
  static constexpr int kBatch = 4, kBlocksPerSm = 4;
};
struct Several {
  static constexpr bool kSeveral = true, kExtras = false;
  static constexpr int kBatch = 2, kBlocksPerSm = 4;
};
struct Anything {
  static constexpr bool kSeveral = true, kExtras = true;
  static constexpr int kBatch = 1, kBlocksPerSm = 3;
};

// One average of a block's row.
struct Average {
  Target target;
  double weight;  // of the far side, <= 1/2
  float weight32;
  bool from_teacher;  // the near side is the teacher: decay > 1/2

  // The arithmetic of ema_update.cpp: equal sides stay as they are, infinite ones too; a weight of 0 keeps
  // the near side, whatever the far one is.
  template <class Acc>
  __device__ Acc blend(Acc teacher, Acc student) const {
    const Acc by = std::is_same_v<Acc, double> ? static_cast<Acc>(weight) : static_cast<Acc>(weight32);
    const Acc near = from_teacher ? teacher : student, far = from_teacher ? student : teacher;
    const Acc blended = near + by * (far - near);
    return far == near || by == 0 ? near : blended;
  }
};

// What the threads of a block share.
struct Shared {
  Average averages[kMaxAverages];
  RandomKey random;
  int64_t number;  // of the step
  int count;       // averages
  bool skipped, writes, stochastic, drifts;
  // [averages, kThreads] where the launch gives a drift: each thread's sums of squares.
  __device__ double& square_sum(int average) {
    return reinterpret_cast<double*>(this + 1)[average * kThreads + threadIdx.x];
  }
};

// As words where it is whole words: halves held singly would take a register each.
template <class T, int N>
using Held = std::conditional_t<N * sizeof(T) % 4 == 0, WordsOf<T, N>, Pack<T, N>>;

// In one access where the pack is aligned, else by the element. What is known of an address is said where it
// is used: the compiler forgets it on the way.
template <int N, class T>
__device__ inline Held<T, N> load_pack(const T* address, bool aligned) {
  const T* const from = global_pointer(address);
  if constexpr (N > 1) {
    if (aligned) return load_words<N>(from);
  }
  Pack<T, N> elements;
#pragma unroll
  for (int i = 0; i < N; ++i) elements.at[i] = from[i];
  return bit_cast<Held<T, N>>(elements);
}

template <class T, int N>
__device__ inline void store_pack(T* address, const Pack<T, N>& pack, bool aligned) {
  T* const to = global_pointer(address);
  if constexpr (N > 1) {
    if (aligned) return store_pack(to, pack);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = pack.at[i];
}

// The random bits of N elements, 16 each. Where they lie in two groups of 8, two counters are drawn.
template <int N>
struct RandomBits {
  uint32_t words[8];

  __device__ RandomBits(uint64_t element, int average, RandomKey key) : words{} {
    const int offset = static_cast<int>(element % 8);
    draw(words, element / 8, average, key);
    if (offset + N > 8) draw(words + 4, element / 8 + 1, average, key);
    // Shifted by the offset in steps of 4, 2 and 1 elements, so that no index is known at run time only.
#pragma unroll
    for (int i = 0; i < 6; ++i) words[i] = offset & 4 ? words[i + 2] : words[i];
#pragma unroll
    for (int i = 0; i < 5; ++i) words[i] = offset & 2 ? words[i + 1] : words[i];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = offset & 1 ? words[i] >> 16 | words[i + 1] << 16 : words[i];
  }
  __device__ uint32_t of(int i) const { return words[i / 2] >> (i % 2 * 16) & 0xffffu; }

 private:
  __device__ static void draw(uint32_t* to, uint64_t group, int average, RandomKey key) {
    const auto bits = philox<uint32_t>(group, average, key);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = bits.word[i];
  }
};

enum class Rounding { nearest, random, parts };

// The packs of a row that a call moves: `packs` of them from element `start` on.
struct Span {
  int start, packs;
};

// V: what the kernel is compiled for. kAverages: whether the row is averaged or copied.
template <class V, bool kAverages, class Dst, class Src>
class RowMover {
 public:
  __device__ RowMover(const Row& row, Shared& shared)
      : row_(row),
        shared_(shared),
        student_(reinterpret_cast<const Src*>(row.src)),
        first_average_(shared.averages[0]) {}

  // Elements before the first teacher's alignment, and those that make no pack, go one to a thread.
  __device__ void run() const {
    constexpr int N = 16 / static_cast<int>(sizeof(Dst) > sizeof(Src) ? sizeof(Dst) : sizeof(Src));
    static_assert(2 * N <= kThreads, "a thread takes one element of head or tail");
    const int count = static_cast<int>(row_.count), thread = static_cast<int>(threadIdx.x);
    const int to_alignment =
        static_cast<int>(elements_to_alignment<N>(reinterpret_cast<const Dst*>(first_average_.target.dst)));
    const int head = to_alignment < count ? to_alignment : count;
    const int packs = (count - head) / N;
    const int edge = thread < head ? thread : thread + packs * N;
    if (edge < count) move<1, 1>({edge, 1}, 0, false);
    const bool aligned = elements_to_alignment<N>(student_ + head) == 0;
    if (V::kSeveral) {
      move<N, V::kBatch>({head, packs}, thread, aligned);
    } else if (aligned) {
      move<N, V::kBatch>({head, packs}, thread, true);
    } else {
      constexpr int kSmallBatch = N < 8 ? 8 / N : 1;  // by the element: a register for each
      move<N, kSmallBatch>({head, packs}, thread, false);
    }
  }

 private:
  template <int N, int kBatch>
  __device__ void move(Span span, int thread, bool aligned) const {
    for (int pack = thread; pack < span.packs; pack += kBatch * kThreads) {
      const Src* const from = student_ + (span.start + pack * N);
      Held<Src, N> student[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (pack + b * kThreads >= span.packs) continue;
        student[b] = load_pack<N>(from + b * kThreads * N, aligned);
      }
      if constexpr (V::kSeveral) {
#pragma unroll 1
        for (int k = 0; k < shared_.count; ++k) move_to<N>(shared_.averages[k], k, student, span, pack);
      } else {
        move_to<N>(first_average_, 0, student, span, pack);
      }
    }
  }

  template <int N, int kBatch>
  __device__ void move_to(const Average& average, int k, const Held<Src, N> (&student)[kBatch], Span span,
                          int pack) const {
    if constexpr (V::kExtras && kAverages && sizeof(Dst) == 2) {
      if (average.target.low) return round_to<Rounding::parts, N>(average, k, student, span, pack);
      if (shared_.stochastic) return round_to<Rounding::random, N>(average, k, student, span, pack);
    }
    round_to<Rounding::nearest, N>(average, k, student, span, pack);
  }

  template <Rounding kRounding, int N, int kBatch>
  __device__ void round_to(const Average& average, int k, const Held<Src, N> (&student)[kBatch], Span span,
                           int pack) const {
    constexpr bool kParts = kRounding == Rounding::parts;
    const int start = span.start + pack * N;
    Dst* const teacher = reinterpret_cast<Dst*>(average.target.dst) + start;
    uint16_t* const low = kParts ? reinterpret_cast<uint16_t*>(average.target.low) + start : nullptr;
    // The row's head is the first average's.
    const bool aligned = !V::kSeveral || elements_to_alignment<N>(teacher) == 0;
    const bool low_aligned = kParts && elements_to_alignment<N>(low) == 0;
    Held<Dst, N> teachers[kBatch];
    Held<uint16_t, N> lows[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int at = b * kThreads * N;
      if (pack + b * kThreads >= span.packs) continue;
      if constexpr (kAverages) teachers[b] = load_pack<N>(teacher + at, aligned);
      if constexpr (kParts) lows[b] = load_pack<N>(low + at, low_aligned);
    }
    double squares = 0;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int at = b * kThreads * N;
      if (pack + b * kThreads >= span.packs) continue;
      Pack<Dst, N> t = bit_cast<Pack<Dst, N>>(teachers[b]);
      Pack<uint16_t, N> l = bit_cast<Pack<uint16_t, N>>(lows[b]);
      const Pack<Src, N> s = bit_cast<Pack<Src, N>>(student[b]);
      update<kRounding>(average, k, start + at, s, t, l);
      store_pack(teacher + at, t, aligned);
      if constexpr (kParts) store_pack(low + at, l, low_aligned);
      if constexpr (V::kExtras && kAverages) {
        if (shared_.drifts) squares += distance<kParts>(s, t, l);
      }
    }
    if (V::kExtras && kAverages && shared_.drifts) shared_.square_sum(k) += squares;
  }

  // The pack whose first element is number `at` of the row.
  template <Rounding kRounding, int N>
  __device__ void update(const Average& average, int k, int at, const Pack<Src, N>& s, Pack<Dst, N>& t,
                         Pack<uint16_t, N>& l) const {
    using Acc = Accumulator<Dst, Src>;
    if constexpr (!kAverages) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if constexpr (std::is_same_v<Dst, Src>) t.at[i] = s.at[i];
        if constexpr (!std::is_same_v<Dst, Src>) t.at[i] = narrowed<Dst>(widened<Acc>(s.at[i]));
      }
    } else if constexpr (kRounding == Rounding::nearest) {
#pragma unroll
      for (int i = 0; i < N; ++i)
        t.at[i] = narrowed<Dst>(average.blend(widened<Acc>(t.at[i]), widened<Acc>(s.at[i])));
    } else if constexpr (kRounding == Rounding::random) {
      const RandomBits<N> random(static_cast<uint64_t>(row_.first + at), k, shared_.random);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float blended = average.blend(widened<float>(t.at[i]), widened<float>(s.at[i]));
        store_stochastic(&t.at[i], blended, random.of(i));
      }
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i)
        split(average.blend(joined(t.at[i], l.at[i]), widened<float>(s.at[i])), &t.at[i], &l.at[i]);
    }
  }

  // The sum of squares of what was stored less the student.
  template <bool kParts, int N>
  __device__ double distance(const Pack<Src, N>& s, const Pack<Dst, N>& t, const Pack<uint16_t, N>& l) const {
    using Acc = Accumulator<Dst, Src>;
    Acc sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      Acc stored;
      if constexpr (kParts) stored = static_cast<Acc>(joined(t.at[i], l.at[i]));
      if constexpr (!kParts) stored = widened<Acc>(t.at[i]);
      const Acc difference = stored - widened<Acc>(s.at[i]);
      sum += difference * difference;
    }
    return static_cast<double>(sum);
  }

  const Row row_;
  Shared& shared_;
  const Src* const student_;
  const Average first_average_;  // in registers
};

// The row, where its code is `pair` or one that follows it.
template <class V, int pair = 0>
__device__ __forceinline__ void move_row(const Row& row, Shared& shared) {
  if constexpr (pair < kDtypes * kDtypes) {
    using Dst = typename TypeOf<static_cast<Dtype>(pair / kDtypes)>::type;
    using Src = typename TypeOf<static_cast<Dtype>(pair % kDtypes)>::type;
    if (row.code == kAverage + pair) return RowMover<V, true, Dst, Src>(row, shared).run();
    if constexpr (!std::is_same_v<Dst, Src>) {
      if (row.code == kConvert + pair) return RowMover<V, false, Dst, Src>(row, shared).run();
    }
    move_row<V, pair + 1>(row, shared);
  } else if (row.code == kCopyWords) {
    RowMover<V, false, uint32_t, uint32_t>(row, shared).run();
  } else {
    RowMover<V, false, uint8_t, uint8_t>(row, shared).run();
  }
}

}  // namespace mtk
