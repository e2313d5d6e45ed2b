// The CUDA side of consistency.h: one launch gives loss and gradient. A group of threads shares a row: one thread (rows that
// lie side by side, as in NCHW), some lanes of a warp, or a block. Logits are read once where their exponentials fit in
// shared memory (cached), else once with a running maximum for the sums, and again for what follows (streamed).
#pragma once
#include <algorithm>

#include "consistency.h"
#include "launch.cuh"

namespace mtk {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxThreads = 512;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr int kSharedHeader = 1024;  // bytes before the cache: the slots of reductions over a block
constexpr int kAnyDtype = -1;
constexpr int64_t kMaxClasses = int64_t{1} << 30;  // offsets within a row in classes are int; in memory, int64

// How a launch shares its rows among threads.
struct Sharing {
  int group;     // threads of a row, a power of two; above a warp, all threads of the block
  bool one_dim;  // rows are one dim, whose offsets need no division
  double scale;  // Consistency::row_scale()
  Scratch scratch;
};

// What a kernel is compiled for. kDtype_: that of both sides, or kAnyDtype, looked up at run time. N_: classes of a pack.
template <class Acc_, int kDtype_, int N_>
struct Format {
  using Acc = Acc_;
  static constexpr int kDtype = kDtype_, N = N_;
  // Packs of each side that are loaded before the first is used, and blocks that fit a multiprocessor's registers: as many
  // as the compiler grants without spills.
  static constexpr int kBatch = sizeof(Acc) == 8 ? 2 / N : N == 8 ? 1 : N == 4 ? 2 : 4;
  static constexpr int kBlocksPerSm = sizeof(Acc) == 8 || (kDtype == kAnyDtype && N > 1) ? 1 : 2;
  static constexpr int kPiece = std::min<int>(N, 16 / sizeof(Acc));  // classes of a pack that move together in the cache
};

// ---- arithmetic

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }

template <class Acc>
__device__ inline Acc minus_infinity() {
  return -static_cast<Acc>(INFINITY);
}

template <class Acc>
__device__ inline Acc finite_max(Acc max) {
  return max == minus_infinity<Acc>() ? Acc(0) : max;
}

// NaN in x is left out; it shows in the sums.
template <class Acc>
__device__ inline Acc larger(Acc m, Acc x) {
  return x > m ? x : m;
}

// Of one row: sums of exp(a - max a) and of exp(b - max b); cross = sum of exp(b - max b) * ((b - max b) - (a - max a)).
template <class Acc>
struct RowSums {
  Acc za, zb, cross;

  __device__ bool masked() const { return za == 0 || zb == 0; }  // -inf throughout; NaN is not masked
  __device__ Acc inverse_za() const { return masked() ? Acc(0) : 1 / za; }
};

// p - q = (ea * (zb / za) - eb) / zb: exactly 0 for equal sides.
template <class Acc>
struct Weights {
  Acc ratio, inverse_zb;  // both 0 for a masked row

  __device__ explicit Weights(const RowSums<Acc>& sums)
      : ratio(sums.masked() ? Acc(0) : sums.zb / sums.za), inverse_zb(sums.masked() ? Acc(0) : 1 / sums.zb) {}
  __device__ Acc difference(Acc ea, Acc eb) const { return (ea * ratio - eb) * inverse_zb; }
};

// A row's sums as they grow, relative to the maxima seen so far.
template <class Acc, bool kCross>
struct RunningSums {
  Acc max_a = minus_infinity<Acc>(), max_b = minus_infinity<Acc>();
  Acc za = 0, zb = 0, cross = 0;

  // Replaces the logits by exponentials.
  __device__ void add(Acc& a, Acc& b) {
    const Acc x = a - finite_max(max_a), y = b - finite_max(max_b);
    a = exponential(x), b = exponential(y);
    za += a, zb += b;
    if (kCross) cross += b != 0 ? b * (y - x) : Acc(0);
  }

  __device__ void recenter(Acc next_a, Acc next_b) {
    if (next_a == max_a && next_b == max_b) return;
    const Acc to_a = finite_max(next_a), to_b = finite_max(next_b);
    const Acc scale_b = exponential(max_b - to_b);
    if (kCross) {
      const Acc shift = (to_a - to_b) - (finite_max(max_a) - finite_max(max_b));
      cross = scale_b != 0 ? scale_b * (cross + zb * shift) : Acc(0);  // cross may be infinite
    }
    za *= exponential(max_a - to_a), zb *= scale_b;
    max_a = next_a, max_b = next_b;
  }
};

// ---- memory

__device__ inline unsigned char* shared_bytes() {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  return shared_memory;
}

// A pack as it was loaded, of any dtype up to the accumulator's size.
template <class Acc, int N>
struct Raw {
  uint32_t words[N * sizeof(Acc) / 4];
};

template <class T, class Acc, int N>
__device__ inline void load_bits(const void* data, int64_t at, Raw<Acc, N>& raw) {
  const T* from = static_cast<const T*>(data) + at;
  if constexpr (N * sizeof(T) < 4) {
    raw.words[0] = *from;
  } else {
    const WordsOf<T, N> words = load_words<N>(from);
#pragma unroll
    for (int i = 0; i < static_cast<int>(N * sizeof(T) / 4); ++i) raw.words[i] = words.at[i];
  }
}

template <class F, class Acc, int N>
__device__ inline void load(const Operand& operand, int64_t at, Raw<Acc, N>& raw) {
  const Dtype dtype = F::kDtype == kAnyDtype ? operand.dtype : static_cast<Dtype>(F::kDtype);
  const int64_t size = size_of(dtype);
  if (size == 2) return load_bits<uint16_t>(operand.data, at, raw);
  if (size == 4) return load_bits<uint32_t>(operand.data, at, raw);
  if constexpr (sizeof(Acc) == 8) load_bits<uint64_t>(operand.data, at, raw);
}

template <class T, class Acc, int N>
__device__ inline void widen_as(const Raw<Acc, N>& raw, Acc (&x)[N]) {
  if constexpr (N * sizeof(T) < 4) {
    x[0] = widened<Acc>(bit_cast<T>(static_cast<uint16_t>(raw.words[0])));
  } else {
    WordsOf<T, N> words;
#pragma unroll
    for (int i = 0; i < static_cast<int>(N * sizeof(T) / 4); ++i) words.at[i] = raw.words[i];
    const Pack<T, N> pack = unpack<T, N>(words);
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = widened<Acc>(pack.at[i]);
  }
}

template <class F, class Acc, int N>
__device__ inline void widen_pack(const Operand& operand, const Raw<Acc, N>& raw, Acc (&x)[N]) {
  switch (F::kDtype == kAnyDtype ? operand.dtype : static_cast<Dtype>(F::kDtype)) {
    case Dtype::f32: return widen_as<float>(raw, x);
    case Dtype::f16: return widen_as<half_bits>(raw, x);
    case Dtype::bf16: return widen_as<bfloat16_bits>(raw, x);
    case Dtype::f64:
      if constexpr (sizeof(Acc) == 8) return widen_as<double>(raw, x);
  }
}

template <class T, class Acc, int N>
__device__ inline void store_as(void* data, int64_t at, const Acc (&x)[N]) {
  T* to = static_cast<T*>(data) + at;
  if constexpr (N == 1) {
    *to = narrowed<T>(x[0]);
  } else {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.at[i] = narrowed<T>(x[i]);
    store_pack(to, pack);
  }
}

template <class F, class Acc, int N>
__device__ inline void store_gradient(const Operand& operand, int64_t at, const Acc (&x)[N]) {
  constexpr Dtype kFixed = static_cast<Dtype>(F::kDtype);
  switch (F::kDtype == kAnyDtype ? operand.dtype : kFixed == Dtype::f16 ? Dtype::f32 : kFixed) {
    case Dtype::f32: return store_as<float>(operand.data, at, x);
    case Dtype::f16: return store_as<half_bits>(operand.data, at, x);
    case Dtype::bf16: return store_as<bfloat16_bits>(operand.data, at, x);
    case Dtype::f64:
      if constexpr (sizeof(Acc) == 8) return store_as<double>(operand.data, at, x);
  }
}

// ---- threads

// The threads of a row. All of them, and all groups of a block, take part in every reduction; all get the same bits.
template <class Acc>
class Group {
 public:
  const int size, rank;

  __device__ explicit Group(int size) : size(size), rank(static_cast<int>(threadIdx.x) & (size - 1)) {}

  template <int K>
  __device__ void sum(Acc (&x)[K]) {
    reduce(x, [](Acc a, Acc b) { return a + b; });
  }
  template <int K>
  __device__ void max(Acc (&x)[K]) {
    reduce(x, [](Acc a, Acc b) { return larger(a, b); });
  }

 private:
  // Successive reductions over a block alternate between two sets of slots: who writes a set has passed the barrier that
  // follows the reads of its last use.
  int parity_ = 0;

  template <int K, class F>
  __device__ void reduce(Acc (&x)[K], F f) {
    for (int lanes = (size < kWarp ? size : kWarp) / 2; lanes > 0; lanes /= 2) {
#pragma unroll
      for (int k = 0; k < K; ++k) x[k] = f(x[k], __shfl_xor_sync(kAllLanes, x[k], lanes));
    }
    if (size <= kWarp) return;
    static_assert(2 * kMaxWarps * K * sizeof(Acc) <= kSharedHeader, "both sets fit before the cache");
    Acc* slots = reinterpret_cast<Acc*>(shared_bytes() + parity_ * (kSharedHeader / 2));
    parity_ ^= 1;
    if (rank % kWarp == 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) slots[rank / kWarp * K + k] = x[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) {
      x[k] = slots[k];
      for (int warp = 1; warp < size / kWarp; ++warp) x[k] = f(x[k], slots[warp * K + k]);
    }
  }
};

// One thread's part of a row: every size-th pack, and perhaps one of the classes before the first pack or after the last
// (the edge). An absent class is -inf, and adds nothing. After `sums`, cache and edge hold exponentials.
template <class F, bool kCached>
class RowPart {
 public:
  using Acc = typename F::Acc;
  static constexpr int N = F::N, kBatch = F::kBatch;

  __device__ RowPart(const Consistency& args, bool one_dim, const Group<Acc>& group, int64_t row)
      : args_(args), group_(group) {
    if (row >= args.rows) return;
    constexpr int kLast = kMaxRowDims - 1;
    const int classes = static_cast<int>(args.classes);  // at most kMaxClasses
    offsets_ = one_dim ? RowOffsets{row * args.student.row_strides[kLast], row * args.teacher.row_strides[kLast],
                                    row * args.dstudent.row_strides[kLast]}
                       : row_offsets(args, row);
    if (N > 1) {  // all operands reach a pack's alignment at the same class: in_phase()
      const uint64_t size = static_cast<uint64_t>(size_of(args.student.dtype));
      const uint64_t first = reinterpret_cast<uint64_t>(args.student.data) / size + static_cast<uint64_t>(offsets_.student);
      head_ = static_cast<int>((0 - first) % N);
      head_ = head_ < classes ? head_ : classes;
    }
    packs_ = (classes - head_) / N;
    const int edge = group.rank < head_ ? group.rank : group.rank + packs_ * N;
    if (N == 1 || edge >= classes) return;
    edge_ = edge;
    load_one(args.student, offsets_.student, edge_a_);
    load_one(args.teacher, offsets_.teacher, edge_b_);
  }

  template <bool kCross>
  __device__ RowSums<Acc> sums(Group<Acc>& group) {
    RunningSums<Acc, kCross> running;
    running.max_a = larger(running.max_a, edge_a_), running.max_b = larger(running.max_b, edge_b_);
    int item = 0;
    for_each_batch([&](int first, Acc(&a)[kBatch][N], Acc(&b)[kBatch][N]) {
      Acc next_a = running.max_a, next_b = running.max_b;
      for_each_class(a, b, [&](Acc x, Acc y) { next_a = larger(next_a, x), next_b = larger(next_b, y); });
      if constexpr (kCached) {
        running.max_a = next_a, running.max_b = next_b;
#pragma unroll
        for (int k = 0; k < kBatch; ++k, ++item) {
          if (first + k * group_.size < packs_) cache(item, 0, a[k]), cache(item, 1, b[k]);
        }
      } else {
        running.recenter(next_a, next_b);
        for_each_class(a, b, [&](Acc& x, Acc& y) { running.add(x, y); });
      }
    });
    Acc max[2] = {running.max_a, running.max_b};
    group.max(max);
    if constexpr (kCached) {
      running.max_a = max[0], running.max_b = max[1];
      for_each_item([&](int item, Acc(&a)[N], Acc(&b)[N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) running.add(a[i], b[i]);
        cache(item, 0, a), cache(item, 1, b);
      });
    } else {
      running.recenter(max[0], max[1]);
    }
    max_a_ = finite_max(max[0]), max_b_ = finite_max(max[1]);
    running.add(edge_a_, edge_b_);
    Acc sums[kCross ? 3 : 2];
    sums[0] = running.za, sums[1] = running.zb;
    if constexpr (kCross) sums[2] = running.cross;
    group.sum(sums);
    return {sums[0], sums[1], kCross ? sums[(kCross ? 3 : 2) - 1] : Acc(0)};
  }

  // visit(ea, eb) for each class
  template <class Visit>
  __device__ void for_each(Visit visit) {
    for_each_exponential([&](int, Acc(&ea)[N], Acc(&eb)[N]) {
#pragma unroll
      for (int i = 0; i < N; ++i) visit(ea[i], eb[i]);
    });
    visit(edge_a_, edge_b_);
  }

  // dstudent = gradient(ea, eb) for each class
  template <class Gradient>
  __device__ void write(Gradient gradient) {
    for_each_exponential([&](int pack, Acc(&ea)[N], Acc(&eb)[N]) {
      if (pack >= packs_) return;
#pragma unroll
      for (int i = 0; i < N; ++i) ea[i] = gradient(ea[i], eb[i]);
      store_gradient<F>(args_.dstudent, position(args_.dstudent, offsets_.dstudent, pack), ea);
    });
    if (edge_ < 0) return;
    const Acc value[1] = {gradient(edge_a_, edge_b_)};
    store_gradient<F>(args_.dstudent, offsets_.dstudent + edge_, value);
  }

 private:
  const Consistency& args_;
  const Group<Acc>& group_;
  RowOffsets offsets_{0, 0, 0};
  int head_ = 0, packs_ = 0, edge_ = -1;
  Acc edge_a_ = minus_infinity<Acc>(), edge_b_ = minus_infinity<Acc>();
  Acc max_a_ = 0, max_b_ = 0;  // over the row

  __device__ void load_one(const Operand& operand, int64_t offset, Acc& x) const {
    Raw<Acc, 1> raw;
    Acc wide[1];
    load<F>(operand, offset + edge_, raw);
    widen_pack<F>(operand, raw, wide);
    x = wide[0];
  }

  __device__ int64_t position(const Operand& operand, int64_t offset, int pack) const {
    return offset + (N > 1 ? int64_t{head_ + pack * N} : pack * operand.class_stride);  // packs have class_stride 1
  }

  template <class Visit>
  __device__ static void for_each_class(Acc (&a)[kBatch][N], Acc (&b)[kBatch][N], Visit visit) {
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
#pragma unroll
      for (int i = 0; i < N; ++i) visit(a[k][i], b[k][i]);
    }
  }

  // visit(first pack, a, b) for this thread's packs, kBatch at a time; they lie group_.size packs apart.
  template <class Visit>
  __device__ void for_each_batch(Visit visit) const {
    for (int first = group_.rank; first < packs_; first += kBatch * group_.size) {
      Raw<Acc, N> raw_a[kBatch], raw_b[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int pack = first + k * group_.size;
        if (pack >= packs_) continue;
        load<F>(args_.student, position(args_.student, offsets_.student, pack), raw_a[k]);
        load<F>(args_.teacher, position(args_.teacher, offsets_.teacher, pack), raw_b[k]);
      }
      Acc a[kBatch][N], b[kBatch][N];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        if (first + k * group_.size < packs_) {
          widen_pack<F>(args_.student, raw_a[k], a[k]);
          widen_pack<F>(args_.teacher, raw_b[k], b[k]);
        } else {
#pragma unroll
          for (int i = 0; i < N; ++i) a[k][i] = b[k][i] = minus_infinity<Acc>();
        }
      }
      visit(first, a, b);
    }
  }

  // visit(item, a, b) for this thread's packs in the cache, numbered from 0
  template <class Visit>
  __device__ void for_each_item(Visit visit) const {
    int item = 0;
#pragma unroll 2
    for (int pack = group_.rank; pack < packs_; pack += group_.size, ++item) {
      Acc a[N], b[N];
      read_cache(item, 0, a), read_cache(item, 1, b);
      visit(item, a, b);
    }
  }

  // visit(pack, ea, eb); a pack past the last is 0 throughout
  template <class Visit>
  __device__ void for_each_exponential(Visit visit) const {
    if constexpr (kCached) {
      for_each_item([&](int item, Acc(&ea)[N], Acc(&eb)[N]) {
        visit(group_.rank + item * group_.size, ea, eb);
      });
    } else {
      for_each_batch([&](int first, Acc(&a)[kBatch][N], Acc(&b)[kBatch][N]) {
        for_each_class(a, b, [&](Acc& x, Acc& y) { x = exponential(x - max_a_), y = exponential(y - max_b_); });
#pragma unroll
        for (int k = 0; k < kBatch; ++k) visit(first + k * group_.size, a[k], b[k]);
      });
    }
  }

  // A thread reads what it wrote itself, so that the cache needs no barrier; neighbours in a warp are neighbours in a bank.
  using Piece = Pack<Acc, F::kPiece>;
  __device__ static Piece& piece(int item, int side, int index) {
    Piece* pieces = reinterpret_cast<Piece*>(shared_bytes() + kSharedHeader);
    return pieces[((item * 2 + side) * (N / F::kPiece) + index) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)];
  }
  __device__ static void cache(int item, int side, const Acc (&x)[N]) {
#pragma unroll
    for (int first = 0; first < N; first += F::kPiece) {
      Piece values;
#pragma unroll
      for (int i = 0; i < F::kPiece; ++i) values.at[i] = x[first + i];
      piece(item, side, first / F::kPiece) = values;
    }
  }
  __device__ static void read_cache(int item, int side, Acc (&x)[N]) {
#pragma unroll
    for (int first = 0; first < N; first += F::kPiece) {
      const Piece values = piece(item, side, first / F::kPiece);
#pragma unroll
      for (int i = 0; i < F::kPiece; ++i) x[first + i] = values.at[i];
    }
  }
};

// The sum of x over the block, on every thread, in a fixed order. Barriers before and after: the slots are shared.
__device__ inline double block_sum(double x) {
  double* slots = reinterpret_cast<double*>(shared_bytes());
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = x;
  __syncthreads();
  double sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += slots[warp];
  __syncthreads();
  return sum;
}

// Whether this block is the last of the grid to come here. What every block wrote before is then visible to it.
__device__ inline bool is_last_block(unsigned* ticket) {
  bool* last = reinterpret_cast<bool*>(shared_bytes());
  if (threadIdx.x == 0) {
    __threadfence();  // the partial sum before the ticket
    *last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    __threadfence();  // the ticket before the other blocks' sums
  }
  __syncthreads();
  const bool result = *last;
  __syncthreads();
  return result;
}

// Loss<Acc> says what is added up over a row, and what loss and gradient follow.
template <template <class> class Loss, class F, bool kCached>
__global__ void __launch_bounds__(kMaxThreads, F::kBlocksPerSm)
    consistency_kernel(const Consistency args, const Sharing sharing) {
  using Acc = typename F::Acc;
  Group<Acc> group(sharing.group);
  const int64_t rows_per_block = static_cast<int>(blockDim.x) / group.size;
  double total = 0;
  for (int64_t first = blockIdx.x * rows_per_block; first < args.rows; first += gridDim.x * rows_per_block) {
    const int64_t row = first + static_cast<int>(threadIdx.x) / group.size;  // past the end for some: an empty part
    RowPart<F, kCached> part(args, sharing.one_dim, group, row);
    Loss<Acc> loss(part.template sums<Loss<Acc>::kCross>(group), args.classes, sharing.scale);
    if constexpr (Loss<Acc>::kSecondPass) {
      Acc terms[2] = {0, 0};
      part.for_each([&](Acc ea, Acc eb) { loss.add(ea, eb, terms); });
      group.sum(terms);
      loss.finish(terms);
    }
    if (args.dstudent.data) part.write([&](Acc ea, Acc eb) { return loss.gradient(ea, eb); });
    if (group.rank != 0 || row >= args.rows) continue;
    if (args.reduction == Reduction::none) {
      static_cast<Acc*>(args.loss)[row] = loss.value();
    } else {
      total += static_cast<double>(loss.value());
    }
  }
  if (args.reduction == Reduction::none) return;
  total = block_sum(total);
  if (threadIdx.x == 0) sharing.scratch.partials[blockIdx.x] = total;
  if (!is_last_block(sharing.scratch.ticket)) return;
  total = 0;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) {
    total += __ldcg(&sharing.scratch.partials[block]);  // from L2: another multiprocessor wrote it
  }
  total = block_sum(total);
  if (threadIdx.x != 0) return;
  *static_cast<Acc*>(args.loss) = static_cast<Acc>(total * sharing.scale);
  *sharing.scratch.ticket = 0;
}

// ---- host

inline int64_t power_of_two_from(int64_t x) {
  int64_t power = 1;
  while (power < x) power *= 2;
  return power;
}

// Whether packs of n classes start at the same classes in every operand, in every row.
inline bool in_phase(const Consistency& args, int64_t n) {
  const auto phase = [n](const Operand& operand) {
    return static_cast<int64_t>(reinterpret_cast<uint64_t>(operand.data) / static_cast<uint64_t>(size_of(operand.dtype)) %
                                static_cast<uint64_t>(n));
  };
  for (const Operand* operand : {&args.student, &args.teacher, &args.dstudent}) {
    if (!operand->data) continue;
    if (operand->class_stride != 1 || phase(*operand) != phase(args.student)) return false;
    for (int dim = 0; dim < kMaxRowDims; ++dim) {
      if (args.row_sizes[dim] > 1 && (operand->row_strides[dim] - args.student.row_strides[dim]) % n != 0) return false;
    }
  }
  return true;
}

template <template <class> class Loss, class F>
void launch_consistency(const Consistency& args, const char* op) {
  constexpr int64_t kItems = 4;          // packs of a thread, where there are rows enough to fill the device
  constexpr int64_t kFull = 1024;        // threads of a multiprocessor that fill it
  constexpr int64_t kFewClasses = 32;    // whose exponentials one thread may well hold
  constexpr int64_t kSideBySide = 64 * 1024;  // bytes of cache that still leave several blocks to a multiprocessor
  const DeviceLimits limits = device_limits(args.device, op);
  const int64_t packs = ceil_div(args.classes, F::N);
  const bool strided = args.student.class_stride != 1 || args.teacher.class_stride != 1;
  const bool thread_per_row = F::N == 1 && ((strided && args.rows >= limits.sms * kWarp) ||
                                            (args.classes <= kFewClasses && args.rows >= limits.sms * kFull));

  int64_t group = 1;
  if (!thread_per_row) {
    const int64_t most = std::min<int64_t>(power_of_two_from(packs), kMaxThreads);
    group = std::min(power_of_two_from(ceil_div(packs, kItems)), most);
    while (group < most && group * args.rows < limits.sms * kFull) group *= 2;
    group = std::max<int64_t>(group, 2 * F::N);  // room for the edge: 2 (N - 1) classes
  }
  const auto shared_for = [&](int64_t group) {
    const int64_t threads = std::max<int64_t>(group, 128);
    return kSharedHeader + ceil_div(packs, group) * 2 * F::N * static_cast<int64_t>(sizeof(typename F::Acc)) * threads;
  };
  const bool cached = shared_for(group) <= (group == 1 ? std::min<int64_t>(kSideBySide, limits.shared_per_block) : limits.shared_per_block);
  if (!cached && group > 1) group = kMaxThreads;

  LaunchShape shape{0, static_cast<int>(std::max<int64_t>(group, 128)), cached ? shared_for(group) : kSharedHeader, args.stream};
  if (group == 2 * kWarp) shape.threads = 2 * kWarp;
  const int64_t resident = std::max<int64_t>(1, std::min<int64_t>(2048 / shape.threads, limits.shared_per_sm / (shape.shared + 1024)));
  shape.blocks = std::min({ceil_div(args.rows, shape.threads / group), limits.sms * resident, int64_t{kMaxPartials}});
  const bool one_dim = args.row_sizes[0] == 1 && args.row_sizes[1] == 1 && args.row_sizes[2] == 1;
  const bool reduces = args.reduction != Reduction::none;
  const Sharing sharing{static_cast<int>(group), one_dim, args.row_scale(),
                        reduces ? scratch_of(args.device, args.stream, op) : Scratch{nullptr, nullptr}};
  if (cached) {
    launch(op, consistency_kernel<Loss, F, true>, shape, args, sharing);
  } else {
    launch(op, consistency_kernel<Loss, F, false>, shape, args, sharing);
  }
}

template <template <class> class Loss>
void consistency_cuda(const Consistency& args, const char* op) {
  constexpr int64_t kFewClasses = 32;  // for which a head and a tail would be most of the row
  constexpr int kF32 = static_cast<int>(Dtype::f32), kF16 = static_cast<int>(Dtype::f16), kBf16 = static_cast<int>(Dtype::bf16);
  if (args.classes > kMaxClasses) throw std::runtime_error(std::string(op) + ": student must have at most 2^30 classes on CUDA");
  const DeviceGuard guard(args.device, op);
  if (args.rows == 0) {
    const size_t bytes = args.reduction == Reduction::none ? 0 : args.doubles() ? sizeof(double) : sizeof(float);
    if (bytes) check(cudaMemsetAsync(args.loss, 0, bytes, static_cast<cudaStream_t>(args.stream)), op);
    return;
  }
  const bool many = args.classes > kFewClasses, same = args.student.dtype == args.teacher.dtype;
  if (args.doubles()) {
    if (many && in_phase(args, 2)) return launch_consistency<Loss, Format<double, kAnyDtype, 2>>(args, op);
    return launch_consistency<Loss, Format<double, kAnyDtype, 1>>(args, op);
  }
  if (many && same && args.student.dtype == Dtype::f32 && in_phase(args, 4)) {
    return launch_consistency<Loss, Format<float, kF32, 4>>(args, op);
  }
  if (many && same && args.student.dtype == Dtype::f16 && in_phase(args, 8)) {
    return launch_consistency<Loss, Format<float, kF16, 8>>(args, op);
  }
  if (many && same && args.student.dtype == Dtype::bf16 && in_phase(args, 8)) {
    return launch_consistency<Loss, Format<float, kBf16, 8>>(args, op);
  }
  if (many && in_phase(args, 4)) return launch_consistency<Loss, Format<float, kAnyDtype, 4>>(args, op);
  return launch_consistency<Loss, Format<float, kAnyDtype, 1>>(args, op);
}

}  // namespace mtk
