// ema_update on CUDA: one block per row of the chunked table. Each body serves one pair of dtypes; the wider
// of the two moves in packs of 16 bytes.
#include "ema_update.h"

#include "launch.cuh"

namespace mtk {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocksPerSm = 4;

// The arithmetic of ema_update.cpp: from the teacher's side where decay > 1/2, else from the student's.
template <class Acc>
struct Average {
  static constexpr bool kReadsTeacher = true;
  Acc weight;
  bool from_teacher;

  __device__ explicit Average(double decay)
      : weight(static_cast<Acc>(decay > 0.5 ? 1.0 - decay : decay)), from_teacher(decay > 0.5) {}

  template <class Dst, class Src>
  __device__ void operator()(Dst& teacher, Src student) const {
    const Acc t = widened<Acc>(teacher), s = widened<Acc>(student);
    const Acc near = from_teacher ? t : s, far = from_teacher ? s : t;
    const Acc blended = near + weight * (far - near);
    teacher = narrowed<Dst>(far == near || weight == 0 ? near : blended);
  }
};

struct Copy {
  static constexpr bool kReadsTeacher = false;

  template <class Dst, class Src>
  __device__ void operator()(Dst& teacher, Src student) const {
    if constexpr (std::is_same_v<Dst, Src>) {
      teacher = student;
    } else {
      teacher = narrowed<Dst>(widened<Accumulator<Dst, Src>>(student));
    }
  }
};

// teacher is aligned to its packs, student where kAligned; elsewhere its packs are read by the element.
// kBatch packs are loaded before the first is used.
template <int N, bool kAligned, class Dst, class Src, class Op>
__device__ void run_packs(Dst* teacher, const Src* student, int64_t packs, Op op) {
  constexpr int kBatch = kAligned ? 4 : N < 8 ? 8 / N : 1;
  for (int64_t first = threadIdx.x; first < packs; first += kBatch * kThreads) {
    WordsOf<Dst, N> teacher_words[kBatch];
    WordsOf<Src, N> student_words[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const int64_t at = (first + k * kThreads) * N;
      if (first + k * kThreads >= packs) continue;
      if constexpr (Op::kReadsTeacher) teacher_words[k] = load_words<N>(teacher + at);
      if constexpr (kAligned) {
        student_words[k] = load_words<N>(student + at);
      } else {
        Pack<Src, N> elements;
#pragma unroll
        for (int i = 0; i < N; ++i) elements.at[i] = student[at + i];
        student_words[k] = bit_cast<WordsOf<Src, N>>(elements);
      }
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (first + k * kThreads >= packs) continue;
      Pack<Dst, N> t = unpack<Dst, N>(teacher_words[k]);
      const Pack<Src, N> s = unpack<Src, N>(student_words[k]);
#pragma unroll
      for (int i = 0; i < N; ++i) op(t.at[i], s.at[i]);
      store_pack(teacher + (first + k * kThreads) * N, t);
    }
  }
}

template <class Dst, class Src, class Op>
__device__ void run_row(const Row& row, Op op) {
  constexpr int N = 16 / static_cast<int>(sizeof(Dst) > sizeof(Src) ? sizeof(Dst) : sizeof(Src));
  static_assert(2 * N <= kThreads, "a thread takes one element of head or tail");
  Dst* teacher = global_pointer(reinterpret_cast<Dst*>(row.dst));
  const Src* student = global_pointer(reinterpret_cast<const Src*>(row.src));
  const int64_t to_alignment = elements_to_alignment<N>(teacher);
  const int64_t head = to_alignment < row.count ? to_alignment : row.count;
  const int64_t packs = (row.count - head) / N;
  const int64_t edge = threadIdx.x < head ? threadIdx.x : threadIdx.x + packs * N;
  if (edge < row.count) op(teacher[edge], student[edge]);
  if (elements_to_alignment<N>(student + head) == 0) {
    run_packs<N, true>(teacher + head, student + head, packs, op);
  } else {
    run_packs<N, false>(teacher + head, student + head, packs, op);
  }
}

// The row, where its code is `pair` or one that follows it.
template <int pair>
__device__ void run_from(const Row& row, double decay) {
  if constexpr (pair < kDtypes * kDtypes) {
    using Dst = typename TypeOf<static_cast<Dtype>(pair / kDtypes)>::type;
    using Src = typename TypeOf<static_cast<Dtype>(pair % kDtypes)>::type;
    if (row.code == kAverage + pair) return run_row<Dst, Src>(row, Average<Accumulator<Dst, Src>>(decay));
    if constexpr (!std::is_same_v<Dst, Src>) {
      if (row.code == kConvert + pair) return run_row<Dst, Src>(row, Copy());
    }
    run_from<pair + 1>(row, decay);
  } else if (row.code == kCopyWords) {
    run_row<uint32_t, uint32_t>(row, Copy());
  } else {
    run_row<uint8_t, uint8_t>(row, Copy());
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    ema_update_kernel(DeviceRows table, EmaUpdate args) {
  const double decay = args.decay_data ? read_number(args.decay_data, args.decay_dtype) : args.decay;
  run_from<0>(table.rows[blockIdx.x],
              decay);  // no loop over rows: ptxas hoists every body's indices out of it, and spills
}

}  // namespace

void ema_update_cuda(const EmaUpdate& args) {
  constexpr const char* kOp = "ema_update";
  const DeviceGuard guard(args.device, kOp);
  const DeviceRows table = device_rows(*args.plan, args.device, args.stream);
  if (table.n_rows == 0) return;
  launch(kOp, ema_update_kernel, {table.n_rows, kThreads, 0, args.stream}, table, args);
}

}  // namespace mtk
