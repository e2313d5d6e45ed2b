// One thread's way through a row: cached, where the exponentials of its part fit in shared memory, so that a
// logit is read once; else streamed, with a running maximum for the sums, and read again for what follows.
#pragma once
#include "consistency_device.cuh"

namespace mtk {

// One thread's part of a row: every size-th pack, and perhaps one of the classes before the first pack or
// after the last (the edge). An absent class is -inf, and adds nothing. After `sums`, cache and edge hold
// exponentials.
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
    offsets_ = one_dim
                   ? RowOffsets{row * args.student.row_strides[kLast], row * args.teacher.row_strides[kLast],
                                row * args.dstudent.row_strides[kLast]}
                   : row_offsets(args, row);
    if (N > 1) {  // all operands reach a pack's alignment at the same class: in_phase()
      const uint64_t size = static_cast<uint64_t>(size_of(args.student.dtype));
      const uint64_t first =
          reinterpret_cast<uint64_t>(args.student.data) / size + static_cast<uint64_t>(offsets_.student);
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
    return offset +
           (N > 1 ? int64_t{head_ + pack * N} : pack * operand.class_stride);  // packs have class_stride 1
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
      for_each_item(
          [&](int item, Acc(&ea)[N], Acc(&eb)[N]) { visit(group_.rank + item * group_.size, ea, eb); });
    } else {
      for_each_batch([&](int first, Acc(&a)[kBatch][N], Acc(&b)[kBatch][N]) {
        for_each_class(a, b,
                       [&](Acc& x, Acc& y) { x = exponential(x - max_a_), y = exponential(y - max_b_); });
#pragma unroll
        for (int k = 0; k < kBatch; ++k) visit(first + k * group_.size, a[k], b[k]);
      });
    }
  }

  // A thread reads what it wrote itself, so that the cache needs no barrier; neighbours in a warp are
  // neighbours in a bank.
  using Piece = Pack<Acc, F::kPiece>;
  __device__ static Piece& piece(int item, int side, int index) {
    Piece* pieces = reinterpret_cast<Piece*>(shared_bytes() + kSharedHeader);
    const int column = (item * 2 + side) * (N / F::kPiece) + index;
    return pieces[column * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)];
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

}  // namespace mtk
