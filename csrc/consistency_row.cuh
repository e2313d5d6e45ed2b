// One thread's way through a row of logits, of two or three sides: cached, where its part fits in shared
// memory, so that a logit is read once; else streamed, with running maxima for the sums, and read again for
// what follows.
#pragma once
#include "consistency_sums.cuh"

namespace mtk {

// One thread's part of a row: every size-th pack, and perhaps one of the classes before the first pack or
// after the last (the edge). After `sums`, the cache holds exponentials, or still logits where kLogits.
template <class F, int kSides, class Group, bool kCached, bool kLogits>
class RowPart {
 public:
  using Acc = typename F::Acc;
  using OneClass = Class<Acc, kSides>;
  static constexpr int N = F::N, kBatch = F::kBatch;

  __device__ RowPart(const Logits<Acc, kSides>& logits, const Group& group, int64_t row)
      : logits_(logits), group_(group), row_(row) {
#pragma unroll
    for (int s = 0; s < kSides; ++s) max_[s] = 0, offsets_[s] = 0;
    if (row >= logits.rows) return;
    const int classes = static_cast<int>(logits.classes);  // at most kMaxClasses
#pragma unroll
    for (int s = 0; s < kSides; ++s) offsets_[s] = logits.offset(logits.sides[s], row);
    if (N > 1) {  // all operands reach a pack's alignment at the same class: in_phase()
      const uint64_t size = static_cast<uint64_t>(F::kWidth ? F::kWidth : size_of(logits.sides[0].dtype));
      const uint64_t first =
          reinterpret_cast<uint64_t>(logits.sides[0].data) / size + static_cast<uint64_t>(offsets_[0]);
      head_ = static_cast<int>((0 - first) % N);
      head_ = head_ < classes ? head_ : classes;
    }
    packs_ = (classes - head_) / N;
    const int edge = group.rank < head_ ? group.rank : group.rank + packs_ * N;
    if (N > 1 && edge < classes) edge_ = edge;
  }

  // The sums over the row: z of each side, then the loss's own. `loss` has looked at every class.
  template <class Loss>
  __device__ void sums(Group& group, Loss& loss, double (&result)[kSides + Loss::kSums]) {
    Running<Acc, kSides, Loss> running;
    int item = 0;
    for_each_pack([&](int pack, Acc(&x)[kSides][N]) {
      Acc next[kSides];
      see(loss, pack, x, running.max, next);
      if constexpr (kCached) {
#pragma unroll
        for (int s = 0; s < kSides; ++s) running.max[s] = next[s], cache(item, s, x[s]);
        ++item;
      } else {
        running.recenter(loss, logits_, next);
#pragma unroll
        for (int s = 0; s < kSides; ++s) max_[s] = finite_max(next[s]);
#pragma unroll
        for (int i = 0; i < N; ++i) running.add(loss, of_logits(pack, x, i));
        running.sums.step(N);
      }
    });
    Acc edge[kSides][1] = {}, next[kSides];
    if (edge_ >= 0) {
      load_edge(edge);
      see_one(loss, edge_, edge, 0, running.max, next);
      for (int s = 0; s < kSides; ++s) {
        if (kCached) running.max[s] = next[s];
      }
      if (!kCached) running.recenter(loss, logits_, next);
    }
    share_maxima(group, loss, running);
    if constexpr (kCached) {
      for_each_item([&](int item, int pack, Acc(&x)[kSides][N]) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const OneClass c = of_logits(pack, x, i);
          running.add(loss, c);
#pragma unroll
          for (int s = 0; s < kSides; ++s) x[s][i] = c.e[s];
        }
        running.sums.step(N);
        if constexpr (!kLogits) {
#pragma unroll
          for (int s = 0; s < kSides; ++s) cache(item, s, x[s]);
        }
      });
    }
    if (edge_ >= 0) running.add(loss, of_logit(edge_, edge, 0));
    running.sums.fold();
#pragma unroll
    for (int k = 0; k < kSides + Loss::kSums; ++k) result[k] = running.sums.all[k];
    group.sum(result);
  }

  // What add(class, sums) adds up over the row.
  template <int K, class Add>
  __device__ void terms(Group& group, Add add, double (&result)[K]) const {
    LongSums<Acc, K> sums;
    for_each_class_pack([&](int, OneClass(&c)[N]) {
#pragma unroll
      for (int i = 0; i < N; ++i) add(c[i], sums.recent);
      sums.step(N);
    });
    if (edge_ >= 0) add(edge_class(), sums.recent);
    sums.fold();
#pragma unroll
    for (int k = 0; k < K; ++k) result[k] = sums.all[k];
    group.sum(result);
  }

  // Shows each class to `gradient`, and writes gradient.template of<side>(class) where that is asked for.
  template <class Gradient>
  __device__ void write(Gradient& gradient) const {
    if (row_ >= logits_.rows) return;
    int64_t starts[kSides];
#pragma unroll
    for (int s = 0; s < kSides; ++s) starts[s] = logits_.offset(logits_.gradients[s], row_);
    for_each_class_pack([&](int pack, OneClass(&c)[N]) {
#pragma unroll
      for (int i = 0; i < N; ++i) gradient.see(c[i]);
      write_pack<0>(gradient, pack, starts, c);
    });
    if (edge_ < 0) return;
    const OneClass c = edge_class();
    gradient.see(c);
    write_edge<0>(gradient, starts, c);
  }

  // A logit of this row, less the maximum, times the scale.
  __device__ Acc scaled(int side, Acc logit) const { return (logit - max_[side]) * logits_.scales[side]; }

 private:
  const Logits<Acc, kSides>& logits_;
  const Group& group_;
  const int64_t row_;
  int64_t offsets_[kSides];
  int head_ = 0, packs_ = 0, edge_ = -1;
  Acc max_[kSides];  // over the row; over what a thread has seen, while it streams

  template <class Loss, int M>
  __device__ static void see_one(Loss& loss, int index, const Acc (&x)[kSides][M], int i,
                                 const Acc (&max)[kSides], Acc (&next)[kSides]) {
    Acc logit[kSides];
#pragma unroll
    for (int s = 0; s < kSides; ++s) logit[s] = x[s][i], next[s] = larger(max[s], x[s][i]);
    if constexpr (Loss::kLooks) loss.look(index, logit);
  }

  template <class Loss>
  __device__ void see(Loss& loss, int pack, const Acc (&x)[kSides][N], const Acc (&max)[kSides],
                      Acc (&next)[kSides]) const {
#pragma unroll
    for (int s = 0; s < kSides; ++s) next[s] = max[s];
#pragma unroll
    for (int i = 0; i < N; ++i) see_one(loss, class_of(pack, i), x, i, next, next);
  }

  template <class Loss>
  __device__ void share_maxima(Group& group, const Loss& loss, Running<Acc, kSides, Loss>& running) {
    Acc all[kSides];
#pragma unroll
    for (int s = 0; s < kSides; ++s) all[s] = running.max[s];
    group.reduce(all, [](Acc(&x)[kSides], const Acc(&y)[kSides]) {
#pragma unroll
      for (int s = 0; s < kSides; ++s) x[s] = larger(x[s], y[s]);
    });
    if (!kCached) running.recenter(loss, logits_, all);
#pragma unroll
    for (int s = 0; s < kSides; ++s) max_[s] = finite_max(all[s]);
  }

  // ---- classes

  __device__ int class_of(int pack, int i) const { return N > 1 ? head_ + pack * N + i : pack; }

  template <int M>
  __device__ OneClass of_logit(int index, const Acc (&logits)[kSides][M], int i) const {
    OneClass c;
    c.index = index;
#pragma unroll
    for (int s = 0; s < kSides; ++s) {
      const Acc less = logits[s][i] - max_[s];
      c.logit[s] = logits[s][i];
      c.x[s] = less * logits_.scales[s];
      c.e[s] = exponential(less, logits_.multipliers[s]);
    }
    return c;
  }
  __device__ OneClass of_logits(int pack, const Acc (&logits)[kSides][N], int i) const {
    return of_logit(class_of(pack, i), logits, i);
  }
  __device__ OneClass edge_class() const {
    Acc edge[kSides][1];
    load_edge(edge);
    return of_logit(edge_, edge, 0);
  }

  // visit(pack, classes of the pack)
  template <class Visit>
  __device__ void for_each_class_pack(Visit visit) const {
    if constexpr (kCached) {
      for_each_item([&](int, int pack, Acc(&x)[kSides][N]) {
        OneClass c[N];
#pragma unroll
        for (int i = 0; i < N; ++i) c[i] = kLogits ? of_logits(pack, x, i) : of_exponentials(pack, x, i);
        visit(pack, c);
      });
    } else {
      for_each_pack([&](int pack, Acc(&x)[kSides][N]) {
        OneClass c[N];
#pragma unroll
        for (int i = 0; i < N; ++i) c[i] = of_logits(pack, x, i);
        visit(pack, c);
      });
    }
  }
  __device__ OneClass of_exponentials(int pack, const Acc (&x)[kSides][N], int i) const {
    OneClass c{};
    c.index = class_of(pack, i);
#pragma unroll
    for (int s = 0; s < kSides; ++s) c.e[s] = x[s][i];
    return c;
  }

  // ---- memory

  // packs have class_stride 1
  __device__ int64_t place(const Operand& operand, int pack) const {
    return N > 1 ? int64_t{head_ + pack * N} : pack * operand.class_stride;
  }

  template <int M>
  __device__ void subtract_center(int index, Acc (&x)[kSides][M]) const {
    if constexpr (F::kOptions) {
      if (!logits_.center.data) return;
#pragma unroll
      for (int i = 0; i < M; ++i)
        x[1][i] -= element<Acc>(logits_.center, (index + i) * logits_.center.class_stride);
    }
  }

  __device__ void load_edge(Acc (&x)[kSides][1]) const {
#pragma unroll
    for (int s = 0; s < kSides; ++s) {
      Raw<Acc, 1> raw;
      load<F>(logits_.sides[s], offsets_[s] + edge_, raw);
      widen_pack<F>(logits_.sides[s], raw, x[s]);
    }
    subtract_center(edge_, x);
  }

  // visit(pack, logits) for this thread's packs, which lie group_.size packs apart; kBatch are loaded at
  // once.
  template <class Visit>
  __device__ void for_each_pack(Visit visit) const {
    for (int first = group_.rank; first < packs_; first += kBatch * group_.size) {
      Raw<Acc, N> raw[kBatch][kSides];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int pack = first + k * group_.size;
        if (pack >= packs_) continue;
#pragma unroll
        for (int s = 0; s < kSides; ++s)
          load<F>(logits_.sides[s], offsets_[s] + place(logits_.sides[s], pack), raw[k][s]);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int pack = first + k * group_.size;
        if (pack >= packs_) continue;
        Acc x[kSides][N];
#pragma unroll
        for (int s = 0; s < kSides; ++s) widen_pack<F>(logits_.sides[s], raw[k][s], x[s]);
        subtract_center(class_of(pack, 0), x);
        visit(pack, x);
      }
    }
  }

  template <int side, class Gradient>
  __device__ void write_pack(const Gradient& gradient, int pack, const int64_t (&starts)[kSides],
                             const OneClass (&c)[N]) const {
    if constexpr (side < kSides) {
      const Operand& to = logits_.gradients[side];
      if ((F::kOptions || side != 1) && to.data) {
        Acc values[N];
#pragma unroll
        for (int i = 0; i < N; ++i) values[i] = gradient.template of<side>(c[i]);
        store_gradient<F>(to, starts[side] + place(to, pack), values);
      }
      write_pack<side + 1>(gradient, pack, starts, c);
    }
  }
  template <int side, class Gradient>
  __device__ void write_edge(const Gradient& gradient, const int64_t (&starts)[kSides],
                             const OneClass& c) const {
    if constexpr (side < kSides) {
      const Operand& to = logits_.gradients[side];
      if ((F::kOptions || side != 1) && to.data) {
        const Acc value[1] = {gradient.template of<side>(c)};
        store_gradient<F>(to, starts[side] + edge_, value);
      }
      write_edge<side + 1>(gradient, starts, c);
    }
  }

  // ---- the cache

  // visit(item, pack, what the cache holds) for this thread's packs, numbered from 0
  template <class Visit>
  __device__ void for_each_item(Visit visit) const {
    int item = 0;
#pragma unroll 2
    for (int pack = group_.rank; pack < packs_; pack += group_.size, ++item) {
      Acc x[kSides][N];
#pragma unroll
      for (int s = 0; s < kSides; ++s) read_cache(item, s, x[s]);
      visit(item, pack, x);
    }
  }

  // A thread reads what it wrote itself, so that the cache needs no barrier; neighbours in a warp are
  // neighbours in a bank.
  using Piece = Pack<Acc, F::kPiece>;
  __device__ static Piece& piece(int item, int side, int index) {
    Piece* pieces = reinterpret_cast<Piece*>(shared_bytes() + Group::kHeaderBytes);
    const int column = (item * kSides + side) * (N / F::kPiece) + index;
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
